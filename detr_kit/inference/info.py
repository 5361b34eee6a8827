"""The command `info`: what a config or a checkpoint amounts to."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr_kit.categories import coco_table
from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.config import load_config
from detr_kit.errors import DetrKitError
from detr_kit.losses import class_loss_for
from detr_kit.models.linear import onednn_product
from detr_kit.models.zoo import build_model, completed, resolve
from detr_kit.preprocess import preprocessing_from
from detr_kit.sizes import USUAL_SIZE_HW, SizeHW, SizeRule
from detr_kit.structures import ImageBatch


@dataclass(frozen=True)
class _Source:
    """What a config or a checkpoint says of its detector."""

    model: nn.Module
    architecture: dict[str, Any]
    size_rule: SizeRule
    weights: str
    categories: str
    notes: str = ""


def describe(
    source: str | Path, overrides: Sequence[str] = (), *, size_hw: SizeHW | None = None
) -> dict[str, str]:
    """Return headings and texts about a config file or a checkpoint of any kind.

    `overrides` are `key=value` texts for a config. GFLOPs are those of `count_gflops` for one
    image of `size_hw`, by default of the size that a picture of COCO's usual one is resized to.
    The numbers of the model come as one text, a line each.

    Raises DetrKitError where the config's loss does not fit its model, as training does, and for
    overrides of a checkpoint.
    """
    if Path(source).suffix in (".yaml", ".yml"):
        found = _of_config(source, overrides)
    elif overrides:
        raise DetrKitError(
            f"{source}: only a config (.yaml) takes key=value, and this is none: {overrides[0]!r}"
        )
    else:
        found = _of_checkpoint(source)
    resized = ""
    if size_hw is None:
        size_hw = found.size_rule.target_hw(USUAL_SIZE_HW)
        resized = f", which a picture of {USUAL_SIZE_HW[0]} x {USUAL_SIZE_HW[1]} is resized to"
    rule = found.size_rule
    total = sum(parameter.numel() for parameter in found.model.parameters())
    trained = sum(p.numel() for p in found.model.parameters() if p.requires_grad)
    rows = {
        "family": str(found.architecture["family"]),
        "parameters": f"{total / 1e6:.3f}M, of which {trained / 1e6:.3f}M are trained",
        "GFLOPs": f"{count_gflops(found.model, size_hw):.1f} at {size_hw[0]} x {size_hw[1]}"
        f"{resized}; a multiplication and its addition count as one",
        "weights": found.weights,
        "categories": found.categories,
        "pictures": f"size rule {rule.rule}, {rule.short_side}, {rule.long_side}",
        "notes": found.notes,
        "numbers": _aligned(found.architecture),
    }
    return {heading: text for heading, text in rows.items() if text}


def _of_config(path: str | Path, overrides: Sequence[str]) -> _Source:
    config = load_config(path, overrides)
    architecture = resolve(config.model)
    class_loss_for(config.loss.classification, completed(architecture)["scoring"])
    columns = len(coco_table())  # a config does not say how many categories its data have
    started_from = config.model.init_from
    return _Source(
        build_model(architecture, num_classes=columns),
        architecture,
        preprocessing_from(config.image_size).size_rule,
        f"those of {started_from}" if started_from else _weights(architecture),
        f"those of the data; counted here with {columns}, as published",
    )


def _of_checkpoint(source: str | Path) -> _Source:
    opened = open_checkpoint(source)
    spec = opened.spec
    table = spec.categories
    names = ", ".join(n for n, used in zip(table.names, table.used, strict=True) if used)
    return _Source(
        opened.build(),
        spec.architecture,
        spec.preprocessing.size_rule,
        spec.origin or _weights(spec.architecture),
        f"{sum(table.used)}: {names}",
        "; ".join(opened.notes),
    )


def _weights(architecture: dict[str, Any]) -> str:
    source = architecture.get("backbone_weights")
    return f"backbone from {source}" if source else "random initialisation"


def _aligned(architecture: dict[str, Any]) -> str:
    numbers = {name: value for name, value in architecture.items() if name != "family"}
    width = max(map(len, numbers))
    return "\n".join(f"{name:{width}} {value}" for name, value in numbers.items())


def count_gflops(model: nn.Module, size_hw: tuple[int, int]) -> float:
    """Return the billions of multiply-adds of one image of `size_hw`.

    Those of convolutions and matrix products, attention's too, and of the weighted sums by which
    deformable attention samples; what is done to each value, as norms and softmax do, is left
    out. DETR's and Deformable DETR's papers count alike; RT-DETR's counts each multiply-add twice.
    """
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
