"""How operators of PyTorch become ONNX's where the exporter's way is missing or slow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import FLOAT, opset18

op: Any = opset18  # its annotations know tensors alone, and constants are allowed


def sort(
    self: Any, *, stable: bool = True, dim: int = -1, descending: bool = False
) -> tuple[Any, Any]:
    """`aten::sort.stable`: of equal values, TopK gives the one first that came first."""
    del stable
    length = op.Shape(self, start=dim, end=None if dim == -1 else dim + 1)
    return op.TopK(self, length, axis=dim, largest=int(descending), sorted=1)


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`aten::scaled_dot_product_attention` of (B, h, N, D) tensors with a bool mask or none.

    The exporter's own asks of every weight whether it is nan, for the sake of rows that are masked
    throughout: as much memory to read and write as all the rest, and there are none here.
    """
    if dropout_p or is_causal or enable_gqa or scale is not None:
        raise NotImplementedError("attention of a kind that these models do not have")
    depth = op.Cast(op.Shape(query, start=3, end=4), to=FLOAT.dtype)
    scaled = op.Div(query, op.Sqrt(depth))
    products = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        products = op.Add(products, op.Where(attn_mask, 0.0, float("-inf")))
    return op.MatMul(op.Softmax(products, axis=-1), value)


def gelu(self: Any, *, approximate: str = "none") -> Any:
    """`aten::gelu` in the form that ONNX Runtime knows and computes in one pass."""
    if approximate != "none":
        raise NotImplementedError("GELU by an approximation")
    erf = op.Erf(op.Div(self, math.sqrt(2.0)))
    return op.Mul(op.Mul(self, op.Add(erf, 1.0)), 0.5)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.sort.stable: sort,
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    torch.ops.aten.gelu.default: gelu,
}
