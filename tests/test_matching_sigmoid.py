"""Matching of outputs scored by sigmoids, and of several groups of queries."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from detr_kit.boxes import cxcywh_to_xyxy, generalized_iou
from detr_kit.matching import HungarianMatcher, focal_cost, matching_cost
from detr_kit.structures import ModelOutput
from tests.host_reads import counting_host_reads
from tests.sigmoid_outputs import QUERIES, drawn_output, drawn_targets, objects_of_images


def one_image_cost(
    logits: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor, target_boxes: torch.Tensor
) -> np.ndarray:
    """The cost as Deformable DETR's official code has it, an image and a layer at a time."""
    p = logits.sigmoid()[:, labels]
    right = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    wrong = 0.75 * p**2 * -(1 - p + 1e-8).log()
    giou = generalized_iou(
        cxcywh_to_xyxy(boxes).unsqueeze(1), cxcywh_to_xyxy(target_boxes).unsqueeze(0)
    )
    l1 = torch.cdist(boxes, target_boxes, p=1)
    return (5 * l1 + 2 * (right - wrong) - 2 * giou).detach().numpy()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple),
)
def test_equals_scipy_image_by_image_in_every_group(
    seed: int, layers: int, groups: int, counts: tuple[int, ...]
) -> None:
    output = drawn_output(seed, layers=layers, groups=groups, images=len(counts))
    targets = drawn_targets(seed, counts)
    assignment = HungarianMatcher(class_cost=2.0)(output, targets)
    assert assignment.pairs.shape[1] == layers * groups
    for layer in range(layers * groups):
        expected = []
        for image, first, count in objects_of_images(counts):
            own = slice(first, first + count)
            cost = one_image_cost(
                output.layer_logits[layer, image],
                output.layer_boxes_cxcywh[layer, image],
                targets.labels[own],
                targets.boxes_cxcywh[own],
            )
            pairs = zip(*linear_sum_assignment(cost), strict=True)
            expected += [(image, int(query), first + int(target)) for query, target in pairs]
        found = torch.stack([assignment.image, assignment.query, assignment.target], -1)[layer]
        assert [tuple(row) for row in found.tolist()] == expected


def test_cost_of_each_pair() -> None:
    output, targets = drawn_output(3, layers=2, images=2), drawn_targets(3, (2, 3))
    cost = matching_cost(output, targets, class_cost=2.0, l1_cost=5.0, giou_cost=2.0)
    expected = one_image_cost(
        output.layer_logits[1, 1],
        output.layer_boxes_cxcywh[1, 1],
        targets.labels[2:],
        targets.boxes_cxcywh[2:],
    )
    np.testing.assert_allclose(cost[2:, 1].detach().numpy(), expected.T, atol=1e-12)


@given(st.floats(-200, 200))
def test_the_focal_cost_is_that_of_the_official_code(logit: float) -> None:
    p, rest = (1 / (1 + math.exp(-value)) for value in (logit, -logit))
    expected = -0.25 * rest**2 * math.log(p + 1e-8) + 0.75 * p**2 * math.log(rest + 1e-8)
    found = focal_cost(torch.tensor([logit], dtype=torch.float64))
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_a_likelier_category_costs_less_down_to_the_last_digit() -> None:
    logits = torch.linspace(-30, 30, 241)
    costs = focal_cost(logits)
    assert (costs.diff() <= 0).all()
    assert costs[80:160].diff().max() < 0  # where the official code's constant is not felt


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_logit_is_told_of_by_image_layer_and_group(broken: float) -> None:
    output, targets = drawn_output(1, layers=2, groups=3, images=2), drawn_targets(1, (2, 1))
    logits = output.layer_logits.detach().clone()
    logits[3, 1, 0, targets.labels[2]] = broken
    found = HungarianMatcher()(replace(output, layer_logits=logits), targets)
    assert found.nonfinite == (
        "image id 101: the matching cost of decoder layer 1, group 1 of queries, is not finite "
        "(nan or infinite outputs, or a broken target box)"
    )
    sound = HungarianMatcher()(output, targets)
    for layer in (0, 1, 2, 4, 5):
        np.testing.assert_array_equal(found.pairs[:, layer], sound.pairs[:, layer])


def test_categories_that_no_object_has_cost_nothing() -> None:
    output, targets = drawn_output(2), drawn_targets(2, (2,))
    changed = output.layer_logits.detach().clone()
    others = [column for column in range(3) if column not in targets.labels.tolist()]
    changed[..., others] = 50.0
    assert others
    weights = {"class_cost": 2.0, "l1_cost": 5.0, "giou_cost": 2.0}
    expected = matching_cost(output, targets, **weights)
    assert torch.equal(
        matching_cost(replace(output, layer_logits=changed), targets, **weights), expected
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_matched_in_fp32(dtype: torch.dtype) -> None:
    output, targets = drawn_output(5, layers=2, images=2), drawn_targets(5, (3, 1))
    half = ModelOutput(
        output.layer_logits.to(dtype), output.layer_boxes_cxcywh.to(dtype), "sigmoid"
    )
    weights = {"class_cost": 1.0, "l1_cost": 5.0, "giou_cost": 2.0}
    cost = matching_cost(half, targets, **weights)
    assert cost.dtype == torch.float32
    assert torch.equal(cost, matching_cost(half.at_least_fp32(), targets, **weights))


@pytest.mark.parametrize(("counts", "reads"), [((2, 1), 1), ((0, 0), 0)])
def test_waits_for_the_device_once_at_most(counts: tuple[int, ...], reads: int) -> None:
    output, targets = drawn_output(1, layers=2, groups=3, images=2), drawn_targets(1, counts)
    with counting_host_reads() as found:
        HungarianMatcher()(output, targets)
    assert [read.kind for read in found] == ["cpu"] * reads


def test_more_objects_than_queries_leave_the_costliest_out() -> None:
    output, targets = drawn_output(6, groups=2), drawn_targets(6, (QUERIES + 2,))
    assignment = HungarianMatcher()(output, targets)
    costs = matching_cost(output, targets, class_cost=1.0, l1_cost=5.0, giou_cost=2.0)
    for layer in range(2):
        _, query, target = assignment.pairs[:, layer]
        assert sorted(query) == list(range(QUERIES))
        found = costs[target, layer, query].sum().item()
        best = min(
            costs[list(chosen), layer, range(QUERIES)].sum().item()
            for chosen in itertools.permutations(range(QUERIES + 2), QUERIES)
        )
        assert found == pytest.approx(best, abs=1e-12)
