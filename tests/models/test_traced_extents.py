from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.backbones import Backbone
from detr_kit.models.extents import Extents, pad_to_multiple, pad_traced
from detr_kit.models.tracing import traceable_copy
from detr_kit.structures import ImageBatch, TracedBatch, outside_of


def test_own_sides_are_those_of_the_pictures(make_batch: Callable[..., ImageBatch]) -> None:
    batch = make_batch((5, 7), (9, 2), (9, 7))
    heights, widths = TracedBatch(batch.pixels, batch.padding_mask).own_sides()
    assert list(zip(heights.tolist(), widths.tolist(), strict=True)) == list(batch.sizes_hw)
    assert [sides.tolist() for sides in TracedBatch(batch.pixels).own_sides()] == [[9], [7]]


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_a_cell_is_outside_where_its_first_pixel_is(
    make_batch: Callable[..., ImageBatch], stride: int
) -> None:
    batch = make_batch((5, 17), (16, 3), (13, 8))
    expected = batch.padding_mask[:, ::stride, ::stride]
    own_sides = TracedBatch(batch.pixels, batch.padding_mask).own_sides()
    assert torch.equal(outside_of(own_sides, expected.shape[1:], stride=stride), expected)


def test_padding_by_symbols_is_padding(make_batch: Callable[..., ImageBatch]) -> None:
    for size in ((32, 64), (33, 31), (1, 65)):
        batch = make_batch(size)
        expected, _ = pad_to_multiple(batch.pixels, batch.padding_mask, 32)
        assert torch.equal(pad_traced(batch.pixels, 32), expected)


def test_levels_are_learned_of_what_layers_take_and_give() -> None:
    backbone = Backbone("resnet50", norm="frozen", dilation=True)
    backbone.extents.learn_levels(backbone.body, 64)
    levels = {
        name: backbone.extents._levels[part]
        for name, part in backbone.body.named_modules()
        if isinstance(part, nn.Conv2d | nn.MaxPool2d)
    }
    assert levels["conv1"] == (1, 2)
    assert levels["maxpool"] == (2, 4)
    assert levels["layer2.0.conv2"] == (4, 8)
    assert levels["layer4.2.conv2"] == (16, 16)


def test_a_layer_at_two_levels_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    with pytest.raises(DetrKitError, match="Conv2d at several strides"):
        Extents().learn_levels(Twice(), 16)


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_features_are_those_of_the_model(make_batch: Callable[..., ImageBatch], norm: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone("resnet18", norm=norm, stages=3).double().eval()  # type: ignore[arg-type]
    traceable = traceable_copy(backbone, mask=True)
    batch = make_batch((65, 70), (97, 33), dtype=torch.float64)
    traced = TracedBatch(batch.pixels, batch.padding_mask)
    with torch.no_grad():
        expected, mask = backbone(batch)
        features, traced_mask = traceable(traced)
    assert torch.equal(mask, traced_mask)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-9)
    # Without a mask, what was set for one with a mask is gone.
    alone = make_batch((65, 70), dtype=torch.float64)
    with torch.no_grad():
        assert traceable(TracedBatch(alone.pixels))[1] is None
        torch.testing.assert_close(
            traceable(TracedBatch(alone.pixels))[0], backbone(alone)[0], rtol=0, atol=1e-9
        )


def test_a_traceable_copy_can_be_copied(make_batch: Callable[..., ImageBatch]) -> None:
    traceable = traceable_copy(Backbone("plain", norm="batch").eval(), mask=True)
    batch = make_batch((40, 33), (20, 48))
    traced = TracedBatch(batch.pixels, batch.padding_mask)
    with torch.no_grad():
        again = copy.deepcopy(traceable)(traced)
        assert all(torch.equal(a, b) for a, b in zip(again, traceable(traced), strict=True))
