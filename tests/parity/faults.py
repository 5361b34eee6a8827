"""Faults that a port of DETR or YOLOS can have, planted to see that a comparison shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detr_kit import matching
from detr_kit.boxes import iou_and_union
from detr_kit.losses import LossValues, Normalizer, SetCriterion, StepCounts, terms
from detr_kit.matching import HungarianMatcher
from detr_kit.models import resampling
from detr_kit.models.norms import FrozenBatchNorm2d
from detr_kit.postprocess import to_detections
from detr_kit.sizes import SizeHW
from detr_kit.structures import ModelOutput, TargetBatch
from tests.parity.ours import Setup

Patch = pytest.MonkeyPatch
Plant = Callable[[Setup, Patch], None]


def nothing(setup: Setup, patch: Patch) -> None:
    """Leave what was built as it is."""


@dataclass(frozen=True)
class Fault:
    """A fault, the case that it is planted in, and the comparison that must show it.

    `architecture` changes the numbers that the model is built from, `plant` what was built from
    them. `backward` says that gradients are needed to see the fault.
    """

    name: str
    case: str
    shown_by: str
    plant: Plant = nothing
    architecture: Mapping[str, Any] = field(default_factory=dict)
    backward: bool = False


def attribute_set(kind: type[nn.Module], name: str, value: object) -> Plant:
    """Set an attribute of every module of a kind."""

    def plant(setup: Setup, patch: Patch) -> None:
        for module in setup.model.modules():
            if isinstance(module, kind):
                setattr(module, name, value)

    return plant


def replaced(path: str, make: Callable[[nn.Module], nn.Module]) -> Plant:
    """Replace the module at `path` by one made from it."""

    def plant(setup: Setup, patch: Patch) -> None:
        setup.model.set_submodule(path, make(setup.model.get_submodule(path)))

    return plant


def input_changed(path: str, place: int, change: Callable[..., Tensor | None]) -> Plant:
    """Give the module at `path` another input at `place`, made from all of its inputs."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return *inputs[:place], change(*inputs), *inputs[place + 1 :]

    def plant(setup: Setup, patch: Patch) -> None:
        setup.model.get_submodule(path).register_forward_pre_hook(hook)

    return plant


def sine_axes_swapped(setup: Setup, patch: Patch) -> None:
    setup.model.positions.register_forward_hook(
        lambda module, inputs, encoded: encoded.roll(encoded.shape[-1] // 2, dims=-1)
    )


def learned_axes_swapped(setup: Setup, patch: Patch) -> None:
    tables = setup.model.positions
    tables.rows, tables.columns = tables.columns, tables.rows


class LastLayerOnly(nn.Module):
    """Normalises the last layer of (L, B, Q, D) alone."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:-1], self.norm(x[-1:])])


def head_relu_dropped(setup: Setup, patch: Patch) -> None:
    first, second, last = setup.model.heads.box_head.layers
    patch.setattr(setup.model.heads.box_head, "forward", lambda x: last(second(first(x).relu())))


def corners_aligned(setup: Setup, patch: Patch) -> None:
    def resample(table: Tensor, from_hw: SizeHW, to_hw: SizeHW) -> Tensor:
        grid = table.unflatten(1, from_hw).permute(0, 3, 1, 2)
        resized = nn.functional.interpolate(grid, to_hw, mode="bicubic", align_corners=True)
        return resized.permute(0, 2, 3, 1)

    patch.setattr(resampling, "resample_grid", resample)


def one_mid_position_left_out(setup: Setup, patch: Patch) -> None:
    table = setup.model.backbone.mid_pos_embed.detach().clone()
    table[4] = 0.0
    setup.model.backbone.mid_pos_embed = nn.Parameter(table)


def softmax_over_queries(setup: Setup, patch: Patch) -> None:
    right = matching.matching_cost

    def cost(
        output: ModelOutput, targets: TargetBatch, *, class_cost: float, **weights: float
    ) -> Tensor:
        image = matching.image_of_objects(targets.counts)
        shares = output.layer_logits.softmax(-2)[:, image, :, targets.labels]
        return right(output, targets, class_cost=0.0, **weights) - class_cost * shares

    patch.setattr(matching, "matching_cost", cost)


def no_class_cost(setup: Setup, patch: Patch) -> None:
    setup.criterion.matcher = HungarianMatcher(class_cost=0.0)


def no_giou_cost(setup: Setup, patch: Patch) -> None:
    setup.criterion.matcher = HungarianMatcher(giou_cost=0.0)


def no_object_weighs_one(setup: Setup, patch: Patch) -> None:
    setup.criterion.no_object_weight = 1.0


def iou_for_giou(setup: Setup, patch: Patch) -> None:
    patch.setattr(terms, "generalized_iou", lambda a, b: iou_and_union(a, b)[0])


def boxes_per_image(setup: Setup, patch: Patch) -> None:
    right = SetCriterion.normalizer

    def normalizer(own: SetCriterion, counts: StepCounts, num_queries: int) -> Normalizer:
        return Normalizer(counts.images, right(own, counts, num_queries).class_weights)

    patch.setattr(SetCriterion, "normalizer", normalizer)


def earlier_layers_cut(setup: Setup, patch: Patch) -> None:
    right = SetCriterion.forward

    def forward(own: SetCriterion, output: ModelOutput, *rest: Any) -> LossValues:
        parts = (output.layer_logits, output.layer_boxes_cxcywh)
        cut = [torch.cat([part[:-1].detach(), part[-1:]]) for part in parts]
        return right(own, ModelOutput(*cut), *rest)

    patch.setattr(SetCriterion, "forward", forward)


def sizes_swapped(setup: Setup, patch: Patch) -> None:
    setup.to_detections = lambda output, sizes_hw, categories: to_detections(
        output, [(width, height) for height, width in sizes_hw], categories
    )


SMALL, LEARNED, DC5 = "detr_r18_pre_norm", "detr_r34_learned", "detr_r50_dc5"
TINY, WITH_MID = "yolos_ti", "yolos_s"

FAULTS = (
    # the CNN
    Fault(
        "frozen batch norm, eps 1e-3 for 1e-5",
        SMALL,
        "logits",
        attribute_set(FrozenBatchNorm2d, "eps", 1e-3),
    ),
    Fault("no dilation in DC5", DC5, "logits", architecture={"dilation": False}),
    Fault(
        "padding zeroed inside the CNN", SMALL, "logits", architecture={"padding": "independent"}
    ),
    Fault(
        "first stage not frozen",
        SMALL,
        "gradients (keys that differ)",
        architecture={"frozen_stages": 0},
        backward=True,
    ),
    # positions of a DETR
    Fault("sine positions, columns before rows", SMALL, "logits", sine_axes_swapped),
    Fault("learned positions, rows before columns", LEARNED, "logits", learned_axes_swapped),
    Fault(
        "sine positions that count padded cells",
        SMALL,
        "logits",
        input_changed("positions", 0, lambda mask, dtype: torch.zeros_like(mask)),
    ),
    # attention and layers
    Fault(
        "encoder padding mask inverted",
        SMALL,
        "logits",
        input_changed("encoder", 2, lambda x, positions, mask: None if mask is None else ~mask),
    ),
    Fault(
        "no padding mask in cross attention",
        SMALL,
        "logits",
        input_changed("decoder", 3, lambda *inputs: None),
    ),
    Fault(
        "positions in the values of one cross attention",
        LEARNED,
        "logits",
        input_changed("decoder.layers.1", 2, lambda x, queries, memory, keys, mask: keys),
    ),
    Fault("4 attention heads for 8", SMALL, "logits", architecture={"num_heads": 4}),
    Fault(
        "no activation in the MLP of one encoder layer",
        SMALL,
        "logits",
        replaced("encoder.layers.0.mlp.act", lambda act: nn.Identity()),
    ),
    Fault(
        "no norm after the pre-norm encoder",
        SMALL,
        "logits",
        replaced("encoder.norm", lambda norm: nn.Identity()),
    ),
    Fault(
        "decoder starts at the queries' positions",
        LEARNED,
        "logits",
        input_changed("decoder.layers.0", 0, lambda x, queries, *rest: queries),
    ),
    Fault(
        "decoder's norm on the last layer alone",
        SMALL,
        "logits, earlier layers",
        replaced("decoder.norm", LastLayerOnly),
    ),
    Fault("one ReLU dropped in the box head", SMALL, "boxes", head_relu_dropped),
    # YOLOS
    Fault(
        "ViT layer norm, eps 1e-5 for 1e-6",
        TINY,
        "logits",
        attribute_set(nn.LayerNorm, "eps", 1e-5),
    ),
    Fault(
        "GELU by its tanh approximation in one block",
        TINY,
        "logits",
        replaced("backbone.blocks.0.mlp.act", lambda act: nn.GELU(approximate="tanh")),
    ),
    Fault("position table resampled with aligned corners", TINY, "logits", corners_aligned),
    Fault(
        "padded patches masked in attention",
        TINY,
        "logits",
        architecture={"padding": "independent"},
    ),
    Fault(
        "mid position embedding left out after one block",
        WITH_MID,
        "logits",
        one_mid_position_left_out,
    ),
    # matching and losses
    Fault(
        "matching cost with a softmax over queries",
        DC5,
        "assignment (pairs that differ)",
        softmax_over_queries,
    ),
    Fault("no class cost in the matching", DC5, "assignment (pairs that differ)", no_class_cost),
    Fault("no GIoU cost in the matching", TINY, "assignment (pairs that differ)", no_giou_cost),
    Fault("no-object weight 1 for 0.1", SMALL, "class loss", no_object_weighs_one),
    Fault("IoU for GIoU in the loss", SMALL, "GIoU loss", iou_for_giou),
    Fault("box losses divided by images", SMALL, "L1 loss", boxes_per_image),
    Fault(
        "losses of earlier layers without gradient",
        SMALL,
        "gradient norms (relative)",
        earlier_layers_cut,
        backward=True,
    ),
    # post-processing
    Fault("width and height swapped in boxes", SMALL, "boxes (pixels)", sizes_swapped),
)
