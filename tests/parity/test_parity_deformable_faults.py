"""Faults planted behind the loader of Deformable DETR and RT-DETR: transformers shows each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from detr_kit.losses import SetCriterion
from detr_kit.matching import HungarianMatcher
from detr_kit.structures import ImageBatch
from tests.parity.hf_deformable import random_reference
from tests.parity.hf_models import (
    BOUND,
    NUM_CATEGORIES,
    Pair,
    in_dtype,
    largest,
    load_ours,
    output_difference,
    random_batch,
)
from tests.parity.saved import Saved, faultless_fixture
from tests.parity.table import Table
from tests.parity.test_parity_deformable import (
    GRADIENT_BOUND,
    TRAINED,
    gradient_difference,
    rtdetr_losses,
)
from tests.parity.test_parity_transformers_faults import (
    Fault,
    Tensors,
    packed_in_order,
    swapped,
)

PADDED = [random_batch((96, 160)), random_batch((96, 160), (141, 101))]
WHOLE = [random_batch((96, 160)), random_batch((96, 160), (96, 160), seed=3)]


def batches_of(saved: Saved) -> list[ImageBatch]:
    return WHOLE if saved.is_rtdetr else PADDED


def rows_in_order(key: str, order: list[int]) -> Callable[[Tensors], Tensors]:
    """Bring the rows of a tensor, or equal parts of it along them, to another order."""

    def change(tensors: Tensors) -> Tensors:
        parts = tensors[key].chunk(len(order))
        return tensors | {key: torch.cat([parts[place] for place in order])}

    return change


def columns_in_order(key: str, order: list[int]) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        return tensors | {key: tensors[key][:, order]}

    return change


def zeroed(key: str) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        return tensors | {key: torch.zeros_like(tensors[key])}

    return change


def set_to(path: str, name: str, value: object) -> Callable[[nn.Module], object]:
    """Set an attribute of the module at `path`, which has it."""

    def plant(model: nn.Module) -> None:
        module = model.get_submodule(path)
        assert hasattr(module, name)
        setattr(module, name, value)

    return plant


def halves_swapped(path: str) -> Callable[[nn.Module], object]:
    """Swap the halves of what the module at `path` returns, along the last axis."""

    def plant(model: nn.Module) -> None:
        model.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output: output.roll(output.shape[-1] // 2, dims=-1)
        )

    return plant


def input_scaled(path: str, place: int, factor: float) -> Callable[[nn.Module], object]:
    """Scale one of the inputs of the module at `path`."""

    def scale(_module: nn.Module, inputs: tuple) -> tuple:
        return *inputs[:place], inputs[place] * factor, *inputs[place + 1 :]

    return lambda model: model.get_submodule(path).register_forward_pre_hook(scale)


def offsets_by_level(tensors: Tensors) -> Tensors:
    """Lay the sampling offsets of a layer out by level first, not by head."""
    key = "decoder.layers.1.cross_attn.offsets.weight"
    laid_out = tensors[key].unflatten(0, (4, 4, -1)).transpose(0, 1).flatten(0, 2)
    return tensors | {key: laid_out}


def mask_dropped(model: nn.Module) -> None:
    """Take the padding for a part of the pictures."""
    model.register_forward_pre_hook(
        lambda _module, inputs: (ImageBatch.from_images(list(inputs[0].pixels)), *inputs[1:])
    )


FAULTS = {
    "deformable_r18": [
        Fault("query and key swapped", packed_in_order((1, 0, 2), "decoder.layers.1.self_attn")),
        Fault(
            "value and output projection swapped",
            swapped("decoder.layers.1.cross_attn.value.", "decoder.layers.1.cross_attn.proj."),
        ),
        Fault("offsets laid out by level", offsets_by_level),
        Fault(
            "content and positions of queries swapped",
            swapped("queries.content.", "queries.positions."),
        ),
        Fault("level embeddings reversed", rows_in_order("encoder.level_embed", [3, 2, 1, 0])),
        Fault("reference points' axes swapped", rows_in_order("queries.points.weight", [1, 0])),
        Fault(
            "norms of an encoder layer swapped",
            swapped("encoder.layers.1.norm1.", "encoder.layers.1.norm2."),
        ),
        Fault("half the heads, twice the points", build_as={"num_heads": 2, "points": 8}),
        Fault("padding not masked", plant=mask_dropped),
        Fault(
            "first category in the last column",
            rows_in_order("heads.0.class_head.layers.0.weight", [1, 2, 3, 4, 5, 6, 0]),
        ),
    ],
    "deformable_r18_refined": [
        Fault("box heads of two layers swapped", swapped("heads.0.box_", "heads.1.box_")),
        Fault("class heads of two layers swapped", swapped("heads.1.class_", "heads.2.class_")),
    ],
    "deformable_r18_two_stage": [
        Fault(
            "proposals scored by their best category",
            plant=set_to("queries", "scored_by_first", False),
        ),
        Fault("sines of boxes: rows before columns", plant=set_to("queries.sine", "swapped", True)),
        Fault("content before positions", plant=halves_swapped("queries.positions_norm")),
        Fault(
            "the last layer's box head for the proposals'",
            swapped("queries.heads.box_", "heads.2.box_"),
        ),
    ],
    "rtdetrv2_r18d": [
        Fault("fusion blocks swapped", swapped("encoder.top_down.0.", "encoder.top_down.1.")),
        Fault("up and down fusion swapped", swapped("encoder.top_down.", "encoder.bottom_up.")),
        Fault("laterals swapped", swapped("encoder.laterals.0.", "encoder.laterals.1.")),
        Fault(
            "no 1x1 branch in one block", zeroed("encoder.top_down.1.blocks.0.conv2.norm.weight")
        ),
        Fault("rows and columns of cells swapped", plant=halves_swapped("encoder.positions")),
        Fault(
            "query, key and value of the encoder out of order",
            packed_in_order((2, 0, 1), "encoder.attention.layers.0.attn"),
        ),
        Fault(
            "sides before centres in the queries' positions",
            columns_in_order("decoder.positions.layers.0.weight", [2, 3, 0, 1]),
        ),
        Fault("references twice as far", plant=input_scaled("decoder.layers.0.cross_attn", 1, 2.0)),
        Fault(
            "one decoder layer less",
            build_as={"decoder_layers": 2},
            change=lambda tensors: {
                key: tensor
                for key, tensor in tensors.items()
                if not key.startswith(("decoder.layers.2.", "heads.2."))
            },
        ),
    ],
}


saved = faultless_fixture(random_reference, batches_of)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(name, fault, id=f"{name}-{fault.name}")
        for name, faults in FAULTS.items()
        for fault in faults
    ],
)
def test_fault_is_shown(
    saved: Callable[[str], Saved], name: str, fault: Fault, table: Table
) -> None:
    one = saved(name)
    ours = load_ours(one.folder, change=fault.change, build_as=fault.build_as, padding="official")
    fault.plant(ours)
    difference = output_difference(Pair(ours, one.reference), batches_of(one))
    table.fault(
        fault.name,
        comparison=f"transformers, {name}: logits and boxes",
        difference=difference,
        bound=BOUND,
    )
    assert difference > BOUND  # a NaN, too, would have to be looked into


CRITERIA = {
    "focal loss for the varifocal": SetCriterion(NUM_CATEGORIES, HungarianMatcher(class_cost=2.0)),
    "class cost 1 for 2": SetCriterion(NUM_CATEGORIES, classification="varifocal"),
    "every class weighs alike": SetCriterion(
        NUM_CATEGORIES,
        HungarianMatcher(class_cost=2.0),
        classification="varifocal",
        focal_alpha=1.0,
    ),
}


@pytest.mark.parametrize("fault", CRITERIA)
def test_fault_in_the_criterion_is_shown(
    saved: Callable[[str], Saved], fault: str, table: Table
) -> None:
    one, batch = saved("rtdetrv2_r18d"), in_dtype(TRAINED, torch.float64)
    pair = one.pair(padding="official").to(torch.float64)
    found = rtdetr_losses(pair, batch, CRITERIA[fault])
    difference = largest(found.differences["losses of all layers"])
    table.fault(
        fault,
        comparison="transformers, rtdetrv2_r18d: losses of all layers",
        difference=difference,
        bound=BOUND,
    )
    assert difference > BOUND


def test_gradients_through_the_next_layers_box_are_shown(
    saved: Callable[[str], Saved], table: Table
) -> None:
    """The official code has them, transformers has not; outputs and losses are the same."""
    one, batch = saved("rtdetrv2_r18d"), in_dtype(TRAINED, torch.float64)
    pair = one.pair({"look_forward_twice": True}, padding="official").to(torch.float64)
    found = rtdetr_losses(pair, batch)
    for differences in found.differences.values():
        assert largest(differences) <= BOUND
    difference = gradient_difference(pair, one.key_map(), found.totals)
    table.fault(
        "look forward twice",
        comparison="transformers, rtdetrv2_r18d: gradients of losses of all layers, relative",
        difference=difference,
        bound=GRADIENT_BOUND,
    )
    assert difference > GRADIENT_BOUND
