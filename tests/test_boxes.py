"""Box geometry: hand-made cases, and properties against torchvision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou

from detr_kit.boxes import (
    cxcywh_to_xyxy,
    generalized_iou,
    iou_and_union,
    xyxy_to_cxcywh,
)

side = st.floats(0.01, 1.0)
boxes_cxcywh = st.lists(st.tuples(side, side, side, side), min_size=1, max_size=6).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


@pytest.mark.parametrize(
    ("other_xyxy", "expected_loss"),
    [
        ((0, 0, 2, 2), 0.0),  # the same box
        ((0, 0, 1, 1), 0.75),  # a quarter of it
        ((2, 0, 4, 2), 1.0),  # touching along a side
        ((4, 0, 6, 2), 4 / 3),  # a gap as wide as the boxes
        ((2, 2, 4, 4), 1.5),  # touching at a corner
    ],
)
def test_giou_loss_of_drawn_boxes(other_xyxy: tuple[int, ...], expected_loss: float) -> None:
    box = torch.tensor([0, 0, 2, 2], dtype=torch.float64)
    other = torch.tensor(other_xyxy, dtype=torch.float64)
    assert 1 - generalized_iou(box, other).item() == pytest.approx(expected_loss, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(boxes_cxcywh)
def test_formats_invert_each_other(boxes: torch.Tensor) -> None:
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, atol=1e-12, rtol=0)


def test_cxcywh_is_center_then_width_then_height() -> None:
    box = cxcywh_to_xyxy(torch.tensor([10.0, 20.0, 4.0, 6.0]))
    assert box.tolist() == [8.0, 17.0, 12.0, 23.0]


@settings(max_examples=50, deadline=None)
@given(boxes_cxcywh, boxes_cxcywh)
def test_pairwise_overlaps_equal_torchvision(a: torch.Tensor, b: torch.Tensor) -> None:
    a_xyxy, b_xyxy = cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)
    exact = {"atol": 1e-12, "rtol": 0}
    every_pair = (a_xyxy.unsqueeze(-2), b_xyxy.unsqueeze(-3))
    torch.testing.assert_close(iou_and_union(*every_pair)[0], box_iou(a_xyxy, b_xyxy), **exact)
    expected = generalized_box_iou(a_xyxy, b_xyxy)
    torch.testing.assert_close(generalized_iou(*every_pair), expected, **exact)
