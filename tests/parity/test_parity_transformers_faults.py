"""Faults planted behind the loader: the comparison with transformers shows each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detr_kit.models.attention import Attention
from tests.parity.hf_models import (
    BOUND,
    Pair,
    both_attention_maps,
    in_dtype,
    largest,
    load_ours,
    output_difference,
    random_batch,
    random_reference,
)
from tests.parity.saved import Saved, faultless_fixture
from tests.parity.table import Table

# Both of its images have padding, so that an inverted mask leaves something of each.
BATCHES = [random_batch((96, 160)), random_batch((96, 160), (141, 101))]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Fault:
    """A fault in the tensors, in the numbers that a model is built from, or in what was built."""

    name: str
    change: Callable[[Tensors], Tensors] | None = None
    build_as: Mapping[str, Any] = field(default_factory=dict)
    plant: Callable[[nn.Module], object] = lambda model: None


def packed_in_order(order: tuple[int, int, int], *keys: str) -> Callable[[Tensors], Tensors]:
    """Stack query, key and value in another order, in weights and biases of these prefixes."""

    def change(tensors: Tensors) -> Tensors:
        for key in keys:
            for name in (f"{key}.qkv.weight", f"{key}.qkv.bias"):
                parts = tensors[name].chunk(3)
                tensors[name] = torch.cat([parts[place] for place in order])
        return tensors

    return change


def swapped(first: str, second: str) -> Callable[[Tensors], Tensors]:
    """Swap all tensors of two prefixes."""

    def change(tensors: Tensors) -> Tensors:
        names = [name.removeprefix(first) for name in tensors if name.startswith(first)]
        assert names
        both = [(first + name, second + name) for name in names]
        return tensors | {a: tensors[b] for a, b in both} | {b: tensors[a] for a, b in both}

    return change


def table_read_by_columns(tensors: Tensors) -> Tensors:
    table = tensors["backbone.pos_embed"].clone()
    patches = table[:, 1:-20].unflatten(1, (10, 6)).transpose(1, 2).flatten(1, 2)
    table[:, 1:-20] = patches
    return tensors | {"backbone.pos_embed": table}


def mid_positions_one_block_late(tensors: Tensors) -> Tensors:
    return tensors | {"backbone.mid_pos_embed": tensors["backbone.mid_pos_embed"].roll(1, dims=0)}


def no_object_first(tensors: Tensors) -> Tensors:
    last = max(name for name in tensors if name.startswith("heads.class_head."))
    prefix = last.removesuffix("weight")
    return tensors | {
        f"{prefix}{kind}": tensors[f"{prefix}{kind}"].roll(1, dims=0) for kind in ("weight", "bias")
    }


def mask_inverted(model: nn.Module) -> None:
    def invert(_module: nn.Module, inputs: tuple) -> tuple:
        batch = inputs[0]
        return replace(batch, padding_mask=~batch.padding_mask), *inputs[1:]

    model.register_forward_pre_hook(invert)


def sine_axes_swapped(model: nn.Module) -> None:
    model.positions.register_forward_hook(
        lambda _module, _inputs, encoded: encoded.roll(encoded.shape[-1] // 2, dims=-1)
    )


FAULTS = {
    "detr_timm_r18": [
        Fault(
            "encoder: query and key swapped", packed_in_order((1, 0, 2), "encoder.layers.1.attn")
        ),
        Fault(
            "cross attention: key and value swapped",
            packed_in_order((0, 2, 1), "decoder.layers.0.cross_attn"),
        ),
        Fault(
            "self and cross attention swapped",
            swapped("decoder.layers.1.self_attn.", "decoder.layers.1.cross_attn."),
        ),
        Fault(
            "norms of a decoder layer swapped",
            swapped("decoder.layers.2.norm1.", "decoder.layers.2.norm2."),
        ),
        Fault(
            "shortcut's norm and the last one swapped",
            swapped("backbone.body.layer3.0.bn2.", "backbone.body.layer3.0.downsample.1."),
        ),
        Fault("half as many heads", build_as={"num_heads": 2}),
        Fault("`no object` in the first column", no_object_first),
        Fault("mask inverted", plant=mask_inverted),
        Fault("sine positions: rows and columns swapped", plant=sine_axes_swapped),
    ],
    "detr_timm_r50_dc5": [Fault("dilation missing", build_as={"dilation": False})],
    "detr_transformers_r50_learned": [
        Fault(
            "learned positions: rows and columns swapped",
            swapped("positions.rows.", "positions.columns."),
        ),
        Fault(
            "convolutions counted from 1 in one block",
            swapped("backbone.body.layer2.1.conv1.", "backbone.body.layer2.2.conv1."),
        ),
    ],
    "yolos_mid": [
        Fault("query and key swapped", packed_in_order((1, 0, 2), "backbone.blocks.2.attn")),
        Fault("value first", packed_in_order((2, 0, 1), "backbone.blocks.0.attn")),
        Fault("the config's eps ignored: 1e-6", build_as={"norm_eps": 1e-6}),
        Fault("the config's eps ignored: 1e-5", build_as={"norm_eps": 1e-5}),
        Fault("position table read by columns", table_read_by_columns),
        Fault("positions' size turned", build_as={"position_size_hw": (160, 96)}),
        Fault("middle positions one block late", mid_positions_one_block_late),
        Fault("`no object` in the first column", no_object_first),
    ],
}


saved = faultless_fixture(random_reference, lambda _: BATCHES)


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
    folder, reference = saved(name).folder, saved(name).reference
    ours = load_ours(folder, change=fault.change, build_as=fault.build_as, padding="official")
    fault.plant(ours)
    difference = output_difference(Pair(ours, reference), BATCHES)
    table.fault(
        fault.name,
        comparison=f"transformers, {name}: logits and boxes",
        difference=difference,
        bound=BOUND,
    )
    assert difference > BOUND  # a NaN, too, would have to be looked into


@pytest.mark.parametrize("name", ["yolos_mid", "detr_timm_r18"])
def test_heads_in_another_order_show_in_attention_maps_alone(
    saved: Callable[[str], Saved], name: str, table: Table
) -> None:
    """Whichever head comes first, the output is the same."""
    pair = Pair(load_ours(saved(name).folder, padding="official"), saved(name).reference)
    for module in pair.ours.modules():
        if isinstance(module, Attention):
            _turn_heads(module)
    assert output_difference(pair, BATCHES) <= BOUND
    ours, theirs = both_attention_maps(pair, in_dtype(BATCHES[1], torch.float64))
    for kind, maps in theirs.items():
        difference = largest([a - b for a, b in zip(ours[kind], maps, strict=True)])
        table.fault(
            "heads in another order",
            comparison=f"transformers, {name}: attention weights, {kind}",
            difference=difference,
            bound=BOUND,
        )
        assert difference > BOUND


@torch.no_grad()
def _turn_heads(attention: Attention) -> None:
    """Make the last head the first, in every projection."""
    width = attention.dim // attention.num_heads
    qkv = attention.qkv
    for tensor in (qkv.weight, qkv.bias):
        tensor.copy_(tensor.unflatten(0, (3, -1)).roll(width, dims=1).flatten(0, 1))
    attention.proj.weight.copy_(attention.proj.weight.roll(width, dims=1))
