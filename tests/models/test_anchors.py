from __future__ import annotations

import math

import pytest
import torch

from detr_kit.errors import DetrKitError
from detr_kit.models.anchors import (
    SineOfBoxes,
    grid_anchors,
    inverse_sigmoid,
    moved,
)
from detr_kit.models.positions import MemoryPositions
from detr_kit.models.pyramid import Pyramid, flatten_levels


def pyramid(*sizes_hw: tuple[int, int], own: tuple[tuple[int, int], ...] = ()) -> Pyramid:
    """Zeros of one channel; `own` are an only image's sizes in each level."""
    levels = []
    for index, (height, width) in enumerate(sizes_hw):
        mask = None
        if own:
            mask = torch.ones(1, height, width, dtype=torch.bool)
            mask[:, : own[index][0], : own[index][1]] = False
        levels.append((torch.zeros(1, 1, height, width, dtype=torch.float64), mask))
    return flatten_levels(levels)


def test_inverse_sigmoid_undoes_a_sigmoid_and_ends_near_the_ends() -> None:
    x = torch.linspace(-9, 9, 37, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    most = math.log(1e5)
    torch.testing.assert_close(ends, torch.tensor([-most, -most, most, most]))


def test_a_box_moves_from_a_box_and_a_point_takes_its_sides() -> None:
    reference = torch.tensor([[0.3, 0.6, 0.2, 0.4]])
    torch.testing.assert_close(moved(torch.zeros(1, 4), reference), reference)
    delta = torch.tensor([[0.5, 0.0, -2.0, 1.0]])
    from_point = moved(delta, reference[:, :2])
    assert from_point[0, 1].item() == pytest.approx(0.6)
    assert from_point[0, 0] > 0.3
    torch.testing.assert_close(from_point[:, 2:], delta[:, 2:].sigmoid())
    assert moved(delta.half(), reference.half()).dtype == torch.float32


def test_sines_of_boxes_are_those_of_the_formula() -> None:
    boxes = torch.tensor([[0.1, 0.7, 0.25, 0.5]], dtype=torch.float64)
    encoded = SineOfBoxes(6, order="xywh")(boxes)
    expected = [
        function(2 * math.pi * number / 10000 ** (2 * pair / 6))
        for number in boxes[0].tolist()
        for pair in range(3)
        for function in (math.sin, math.cos)
    ]
    torch.testing.assert_close(encoded, torch.tensor([expected], dtype=torch.float64))
    swapped = SineOfBoxes(6, order="yxwh")(boxes)
    y_first = torch.cat([encoded[:, 6:12], encoded[:, :6], encoded[:, 12:]], dim=1)
    assert torch.equal(swapped, y_first)
    assert SineOfBoxes(4, order="yxwh")(boxes.half()).dtype == torch.float32


def test_sines_need_pairs() -> None:
    with pytest.raises(DetrKitError, match="hidden_dim 10"):
        SineOfBoxes(5, order="xywh")


def test_anchors_are_centred_on_cells_and_double_with_the_level() -> None:
    logits, usable = grid_anchors(pyramid((2, 4), (1, 2)))
    assert usable.all()
    boxes = logits.sigmoid()[0]
    expected = [[(x + 0.5) / 4, (y + 0.5) / 2, 0.05, 0.05] for y in (0, 1) for x in range(4)]
    expected += [[(x + 0.5) / 2, 0.5, 0.1, 0.1] for x in (0, 1)]
    torch.testing.assert_close(boxes, torch.tensor(expected, dtype=torch.float64))


def test_cells_at_the_border_of_a_large_map_and_huge_boxes_are_of_no_use() -> None:
    logits, usable = grid_anchors(pyramid((3, 60)))
    assert usable[0].view(3, 60).sum(1).tolist() == [58, 58, 58]
    assert not usable[0].view(3, 60)[:, [0, -1]].any()
    assert (logits.sigmoid()[~usable] == 1).all()
    _, of_six_levels = grid_anchors(pyramid(*[(2, 2)] * 6))
    assert of_six_levels[0].view(6, 4).all(1).tolist() == [True] * 5 + [False]


def test_anchors_stand_on_the_grid_of_the_image_itself() -> None:
    own = ((3, 5), (2, 3))
    alone, _ = grid_anchors(pyramid(*own))
    logits, usable = grid_anchors(pyramid((7, 6), (4, 3), own=own))
    assert usable.sum() == 21
    torch.testing.assert_close(logits[usable], alone[0], rtol=0, atol=1e-15)
    assert logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_anchors_are_finite_in_any_precision(dtype: torch.dtype) -> None:
    memory = pyramid((70, 3), own=((70, 2),))
    logits, _ = grid_anchors(memory.with_tokens(memory.tokens.to(dtype)))
    assert logits.dtype == torch.float32
    assert logits.half().isfinite().all()


def test_memory_positions_tell_cells_and_levels_apart() -> None:
    torch.manual_seed(0)
    own = ((2, 2), (1, 1))
    positions = MemoryPositions(8, 2).double()
    alone = positions(pyramid(*own))
    assert alone.shape == (1, 5, 8)
    assert len(alone[0].unique(dim=0)) == 5
    padded = pyramid((3, 4), (2, 2), own=own)
    torch.testing.assert_close(positions(padded)[~padded.padding_mask], alone[0])
