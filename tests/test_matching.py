"""Matching: optimal, one transfer's worth of layers at once, never on a broken cost."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from detr_kit.boxes import cxcywh_to_xyxy, pairwise_generalized_iou
from detr_kit.matching import HungarianMatcher, NonFiniteCostError, matching_cost, solve
from detr_kit.structures import ModelOutput, TargetBatch

CATEGORIES = 4


def random_boxes(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1


def random_case(
    seed: int, layers: int, queries: int, counts: tuple[int, ...]
) -> tuple[ModelOutput, TargetBatch]:
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, len(counts), queries)
    logits = torch.randn(*shape, CATEGORIES + 1, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CATEGORIES, (sum(counts),), generator=generator)
    targets = TargetBatch(
        labels, random_boxes(generator, sum(counts)), counts, tuple(range(100, 100 + len(counts)))
    )
    return ModelOutput(logits, random_boxes(generator, *shape)), targets


def one_image_cost(
    logits: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor, target_boxes: torch.Tensor
) -> np.ndarray:
    """The cost as the paper states it, an image and a layer at a time."""
    giou = pairwise_generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
    l1 = torch.cdist(boxes, target_boxes, p=1)
    return (5 * l1 - logits.softmax(-1)[:, labels] - 2 * giou).numpy()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple),
)
def test_equals_scipy_image_by_image(seed: int, layers: int, counts: tuple[int, ...]) -> None:
    queries = 5  # some images hold more objects than there are queries
    output, targets = random_case(seed, layers, queries, counts)
    assignment = HungarianMatcher()(output, targets)
    starts = [0, *itertools.accumulate(counts)]
    for layer in range(layers):
        expected = []
        for image, count in enumerate(counts):
            own = slice(starts[image], starts[image] + count)
            cost = one_image_cost(
                output.layer_logits[layer, image],
                output.layer_boxes_cxcywh[layer, image],
                targets.labels[own],
                targets.boxes_cxcywh[own],
            )
            pairs = zip(*linear_sum_assignment(cost), strict=True)
            expected += [(image, int(query), starts[image] + int(t)) for query, t in pairs]
        found = torch.stack([assignment.image, assignment.query, assignment.target], -1)[layer]
        assert [tuple(row) for row in found.tolist()] == expected


def test_cost_of_each_pair() -> None:
    output, targets = random_case(3, layers=2, queries=4, counts=(2, 3))
    cost = matching_cost(output, targets, class_cost=1.0, l1_cost=5.0, giou_cost=2.0)
    expected = one_image_cost(
        output.layer_logits[1, 1],
        output.layer_boxes_cxcywh[1, 1],
        targets.labels[2:],
        targets.boxes_cxcywh[2:],
    )
    np.testing.assert_allclose(cost[1, 1, :, :3].numpy(), expected, atol=1e-12)


def test_finds_the_planted_objects() -> None:
    output, targets = random_case(0, layers=1, queries=6, counts=(3,))
    output.layer_boxes_cxcywh[0, 0, [4, 0, 2]] = targets.boxes_cxcywh
    assignment = HungarianMatcher(class_cost=0.0)(output, targets)
    of_query = dict(zip(assignment.query[0].tolist(), assignment.target[0].tolist(), strict=True))
    assert of_query == {4: 0, 0: 1, 2: 2}


def test_half_precision_is_matched_in_fp32() -> None:
    output, targets = random_case(5, layers=2, queries=5, counts=(3, 1))
    half = ModelOutput(output.layer_logits.half(), output.layer_boxes_cxcywh.half())
    single = ModelOutput(half.layer_logits.float(), half.layer_boxes_cxcywh.float())
    cost = matching_cost(half, targets, class_cost=1.0, l1_cost=5.0, giou_cost=2.0)
    assert cost.dtype == torch.float32
    torch.testing.assert_close(
        cost,
        matching_cost(single, targets, class_cost=1.0, l1_cost=5.0, giou_cost=2.0),
        atol=0,
        rtol=0,
    )


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_output_names_its_image(broken: float) -> None:
    output, targets = random_case(1, layers=2, queries=4, counts=(2, 1))
    output.layer_boxes_cxcywh[1, 1, 0, 0] = broken
    with pytest.raises(NonFiniteCostError, match=r"image id 101.*layer 1"):
        HungarianMatcher()(output, targets)


def test_broken_output_beside_an_empty_image_does_not_reach_the_solver() -> None:
    output, targets = random_case(1, layers=1, queries=4, counts=(0, 2))
    cost = matching_cost(output, targets, class_cost=1.0, l1_cost=5.0, giou_cost=2.0)
    cost[0, 0] = float("nan")  # image 0 has no objects: nothing of its cost is used
    assert solve(cost.numpy(), targets).shape == (3, 1, 2)


def test_batch_of_empty_images() -> None:
    output, targets = random_case(1, layers=2, queries=4, counts=(0, 0))
    assert HungarianMatcher()(output, targets).query.shape == (2, 0)
