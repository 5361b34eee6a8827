"""Dropout that is quick on CPUs too, of elements and of attention weights.

PyTorch draws a number for every element there, which takes longer than the layers around it; and
attention with dropout leaves its fused kernel for one that keeps three matrices of (N, M) in
memory. Here 16 bits decide over an element: chances are rounded to multiples of 1 / 65536, and
what is kept is scaled by the rounded chance, so that means stay exact.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LEVELS = 1 << 16
# Attention weights that are computed at a time: they stay in a processor's cache.
_CHUNK = 1 << 21


class Dropout(nn.Module):
    """`nn.Dropout` by `dropout`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, training=self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout(x: Tensor, p: float, *, training: bool) -> Tensor:
    """Zero elements with chance `p` in training, and scale the others by 1 / (1 - p)."""
    if not training or p == 0.0:
        return x
    if not _is_drawn_here(x, p):
        return F.dropout(x, p)
    return x * _kept(torch.empty_like(x), p).mul_(_scale(p))


def attention_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, p: float
) -> Tensor:
    """Return `F.scaled_dot_product_attention(q, k, v, allowed, dropout_p=p)`.

    `q` is (B, h, N, d), `k` and `v` (B, h, M, d), `allowed` (B, 1, 1 or N, M) bool or
    None.
    """
    if not _is_drawn_here(q, p):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=p)
    bias = None
    if allowed is not None:
        bias = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, -torch.inf)
        bias = bias.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    of_heads = _DropoutAttention.apply(*(x.flatten(0, 1) for x in (q, k, v)), bias, p)
    return of_heads.unflatten(0, q.shape[:2])


def _is_drawn_here(x: Tensor, p: float) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and 0 < round(p * _LEVELS) < _LEVELS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _scale(p: float) -> float:
    return 1.0 / (1.0 - round(p * _LEVELS) / _LEVELS)


def _kept(out: Tensor, p: float) -> Tensor:
    """Fill `out` with ones, and with zeros where the element is to be dropped."""
    words = torch.empty(-(-out.numel() // 4), dtype=torch.int64)
    # Without bounds, `random_` would leave every sign bit 0.
    words.random_(-(2**63), None)
    lanes = words.view(torch.int16)[: out.numel()].view(out.shape)
    return torch.ge(lanes, round(p * _LEVELS) - _LEVELS // 2, out=out)


class _DropoutAttention(torch.autograd.Function):
    """Attention of a few heads at a time; the backward pass computes the weights anew.

    Gradients as in Dao et al. 2022 (FlashAttention, appendix B.4). Only which weights were kept
    is held between the passes: one byte for each.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, p: float) -> Tensor:
        out = torch.empty_like(q)
        kept = torch.empty(*q.shape[:2], k.shape[1], dtype=torch.bool)
        for heads in _chunks(q, k):
            weights = _weights(q, k, bias, heads)
            factor = _kept(torch.empty_like(weights), p)
            kept[heads] = factor
            torch.bmm(weights.mul_(factor), v[heads], out=out[heads])
        out.mul_(_scale(p))
        ctx.save_for_backward(q, k, v, bias, out, kept)
        ctx.scale = _scale(p)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, kept = ctx.saved_tensors
        common = (grad * out).sum(-1, keepdim=True)
        of_q, of_k, of_v = (torch.empty_like(x) for x in (q, k, v))
        for heads in _chunks(q, k):
            weights = _weights(q, k, bias, heads)
            factor = kept[heads].to(q.dtype).mul_(ctx.scale)
            of_scores = (grad[heads] @ v[heads].mT).mul_(factor).sub_(common[heads]).mul_(weights)
            torch.bmm(weights.mul_(factor).mT, grad[heads], out=of_v[heads])
            torch.bmm(of_scores, k[heads], out=of_q[heads])
            torch.bmm(of_scores.mT, q[heads], out=of_k[heads])
        root = q.shape[-1] ** -0.5
        return of_q.mul_(root), of_k.mul_(root), of_v, None, None


def _chunks(q: Tensor, k: Tensor) -> list[slice]:
    size = max(1, _CHUNK // (q.shape[1] * k.shape[1]))
    return [slice(start, start + size) for start in range(0, len(q), size)]


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, heads: slice) -> Tensor:
    """Return (heads, N, M) attention weights, each row summing to one."""
    added = q.new_zeros(1, 1, 1) if bias is None else bias[heads]
    return torch.baddbmm(added, q[heads], k[heads].mT, alpha=q.shape[-1] ** -0.5).softmax(-1)
