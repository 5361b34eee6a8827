"""The command `info`: what a config or a checkpoint amounts to."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr_kit.categories import coco_table
from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.config import load_config
from detr_kit.models.linear import onednn_product
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ImageBatch


def describe(source: str | Path, *, size_hw: tuple[int, int]) -> dict[str, str]:
    """Return headings and texts about a config file or a checkpoint of any kind.

    GFLOPs count multiply and add as one, as the papers do, for one image of `size_hw`.
    """
    extra = {}
    if Path(source).suffix in (".yaml", ".yml"):
        architecture = resolve(load_config(source).model)
        columns = len(coco_table())  # a config does not say how many categories its data have
        model = build_model(architecture, num_classes=columns)
        weights = _weights(architecture)
        categories = f"those of the data; counted here with {columns}, as published"
    else:
        opened = open_checkpoint(source)
        model, architecture = opened.build(), opened.spec.architecture
        table = opened.spec.categories
        names = ", ".join(n for n, used in zip(table.names, table.used, strict=True) if used)
        categories = f"{sum(table.used)}: {names}"
        weights = opened.spec.origin or _weights(architecture)
        rule = opened.spec.preprocessing.size_rule
        extra = {"pictures": f"size rule {rule.rule}, {rule.short_side}, {rule.long_side}"}
        if opened.notes:
            extra["notes"] = "; ".join(opened.notes)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "family": str(architecture["family"]),
        "parameters": f"{total / 1e6:.3f}M, of which {trained / 1e6:.3f}M are trained",
        "GFLOPs": f"{count_gflops(model, size_hw):.1f} at {size_hw[0]} x {size_hw[1]}",
        "weights": weights,
        "categories": categories,
        **extra,
        "numbers": ", ".join(f"{name} {value}" for name, value in architecture.items()),
    }


def count_gflops(model: nn.Module, size_hw: tuple[int, int]) -> float:
    """Return the billions of multiply-adds of one image of `size_hw`."""
    # A copy without gradients: torch's counter hooks parameters that have some, and trips over a
    # view of one.
    counted = copy.deepcopy(model).eval().requires_grad_(False)
    parameter = next(counted.parameters())
    image = torch.zeros(3, *size_hw, device=parameter.device, dtype=parameter.dtype)
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    # The plain form of attention is counted by every torch, the fused ones are not.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        counted(ImageBatch.from_images([image]))
    return counter.get_total_flops() / 2 / 1e9


def _product_flops(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x_shape) * weight_shape[0]


def _bag_flops(table_shape: Sequence[int], rows_shape: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(rows_shape) * table_shape[1]


# Unknown to the counter: products that go to oneDNN directly, see `detr_kit.models.linear`, and
# weighted sums of rows, which is how deformable attention samples, see `detr_kit.models.sampling`.
_FORMULAS: dict[Any, Any] = {
    torch.ops.aten._embedding_bag: _bag_flops,
    torch.ops.aten._embedding_bag_forward_only: _bag_flops,
}
if onednn_product is not None:
    _FORMULAS[onednn_product] = _product_flops


def _weights(architecture: dict[str, Any]) -> str:
    source = architecture.get("backbone_weights")
    return f"backbone from {source}" if source else "random initialisation"
