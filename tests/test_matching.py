"""Matching: optimal, in one transfer with what rides aside, and a sentence on a broken cost."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from detr_kit.boxes import cxcywh_to_xyxy, generalized_iou
from detr_kit.matching import HungarianMatcher, matching_cost, solve
from detr_kit.structures import ModelOutput, TargetBatch
from tests.host_reads import counting_host_reads

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
    giou = generalized_iou(
        cxcywh_to_xyxy(boxes).unsqueeze(1), cxcywh_to_xyxy(target_boxes).unsqueeze(0)
    )
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
    np.testing.assert_allclose(cost[2:, 1].numpy(), expected.T, atol=1e-12)


def test_finds_the_planted_objects() -> None:
    output, targets = random_case(0, layers=1, queries=6, counts=(3,))
    output.layer_boxes_cxcywh[0, 0, [4, 0, 2]] = targets.boxes_cxcywh
    assignment = HungarianMatcher(class_cost=0.0)(output, targets)
    of_query = dict(zip(assignment.query[0].tolist(), assignment.target[0].tolist(), strict=True))
    assert of_query == {4: 0, 0: 1, 2: 2}


side = st.floats(0.01, 1.0)
boxes_cxcywh = st.lists(st.tuples(side, side, side, side), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(boxes_cxcywh, boxes_cxcywh, st.floats(0.5, 2.0))
def test_box_costs_equal_those_from_corners(
    found: list[tuple[float, ...]], true: list[tuple[float, ...]], scale: float
) -> None:
    objects = torch.tensor(true, dtype=torch.float64)
    # Among the queries are the objects themselves, and some that lie inside or around them.
    same_centers = torch.cat([objects[:, :2], objects[:, 2:] * scale], 1)
    queries = torch.cat([torch.tensor(found, dtype=torch.float64), objects, same_centers])
    output = ModelOutput(
        torch.zeros(1, 1, len(queries), CATEGORIES + 1, dtype=torch.float64), queries[None, None]
    )
    targets = TargetBatch(torch.zeros(len(true), dtype=torch.int64), objects, (len(true),), (7,))
    cost = matching_cost(output, targets, class_cost=1.0, l1_cost=5.0, giou_cost=2.0)
    expected = one_image_cost(output.layer_logits[0, 0], queries, targets.labels, objects)
    np.testing.assert_allclose(cost[:, 0].numpy(), expected.T, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple))
def test_ties_are_broken_as_scipy_breaks_them(seed: int, counts: tuple[int, ...]) -> None:
    queries = 5
    shape = (sum(counts), 2, queries)
    cost = np.random.default_rng(seed).integers(0, 3, shape).astype(np.float32)
    no_boxes = torch.zeros(sum(counts), 4)
    targets = TargetBatch(no_boxes[:, 0].long(), no_boxes, counts, tuple(range(len(counts))))
    pairs, nonfinite = solve(cost, targets)
    assert nonfinite is None
    starts = [0, *itertools.accumulate(counts)]
    for layer in range(2):
        expected = []
        for image, count in enumerate(counts):
            own = cost[starts[image] : starts[image] + count, layer]
            solved = zip(*linear_sum_assignment(own.T), strict=True)
            expected += [(image, query, starts[image] + target) for query, target in solved]
        assert [tuple(pair) for pair in pairs[:, layer].T.tolist()] == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_matched_in_fp32(dtype: torch.dtype) -> None:
    output, targets = random_case(5, layers=2, queries=5, counts=(3, 1))
    half = ModelOutput(output.layer_logits.to(dtype), output.layer_boxes_cxcywh.to(dtype))
    single = ModelOutput(half.layer_logits.float(), half.layer_boxes_cxcywh.float())
    weights = {"class_cost": 1.0, "l1_cost": 5.0, "giou_cost": 2.0}
    cost = matching_cost(half, targets, **weights)
    assert cost.dtype == torch.float32
    expected = matching_cost(single, targets, **weights)
    torch.testing.assert_close(cost, expected, atol=0, rtol=0)
    assert matching_cost(output, targets, **weights).dtype == torch.float64


def test_pairs_on_the_host_are_those_on_the_device() -> None:
    output, targets = random_case(6, layers=2, queries=5, counts=(3, 0, 7))
    found = HungarianMatcher()(output, targets)
    on_device = torch.stack([found.image, found.query, found.target])
    assert found.pairs.dtype == np.int64
    assert found.pairs.shape == (3, 2, 3 + 5)
    np.testing.assert_array_equal(found.pairs, on_device.numpy())


@pytest.mark.parametrize("counts", [(1,), (0, 0), (3, 7)])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@settings(max_examples=5, deadline=None)
@given(st.lists(st.floats(width=16), max_size=6))
def test_what_rides_aside_comes_back_unchanged(
    counts: tuple[int, ...], precision: torch.dtype, dtype: torch.dtype, values: list[float]
) -> None:
    output, targets = random_case(1, layers=1, queries=5, counts=counts)
    output = ModelOutput(output.layer_logits.to(precision), output.layer_boxes_cxcywh.to(precision))
    aside = torch.tensor(values, dtype=dtype)
    expected = aside.numpy().copy()
    found = HungarianMatcher()(output, targets, aside)
    aside.zero_()  # the device goes on with its own
    assert found.aside is not None
    assert found.aside.dtype == expected.dtype
    assert found.aside.tobytes() == expected.tobytes()
    alone = HungarianMatcher()(output, targets)
    assert alone.aside is None
    np.testing.assert_array_equal(found.pairs, alone.pairs)


@pytest.mark.parametrize(
    ("counts", "has_aside", "reads"),
    [((2, 1), False, 1), ((2, 1), True, 1), ((0, 0), True, 1), ((0, 0), False, 0)],
)
def test_waits_for_the_device_once_at_most(
    counts: tuple[int, ...], has_aside: bool, reads: int
) -> None:
    output, targets = random_case(1, layers=2, queries=4, counts=counts)
    with counting_host_reads() as found:
        HungarianMatcher()(output, targets, torch.ones(3) if has_aside else None)
    assert [read.kind for read in found] == ["cpu"] * reads


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_broken_output_is_told_of_by_image_and_layer(broken: float) -> None:
    output, targets = random_case(1, layers=2, queries=4, counts=(2, 1))
    sound = HungarianMatcher()(output, targets)
    output.layer_boxes_cxcywh[1, 1, 0, 0] = broken
    found = HungarianMatcher()(output, targets)
    assert sound.nonfinite is None
    assert found.nonfinite == (
        "image id 101: the matching cost of decoder layer 1 is not finite (nan or infinite "
        "outputs, or a broken target box)"
    )
    # Other layers and images are matched as before, and the broken query is left out.
    np.testing.assert_array_equal(found.pairs[:, 0], sound.pairs[:, 0])
    np.testing.assert_array_equal(found.pairs[:, 1, :2], sound.pairs[:, 1, :2])
    assert found.pairs[1, 1, 2] != 0


def test_the_first_broken_cost_is_that_of_the_earliest_layer() -> None:
    output, targets = random_case(1, layers=2, queries=4, counts=(2, 0, 1))
    output.layer_logits[1, 0] = float("nan")
    output.layer_logits[0, 2] = float("nan")
    sentence = HungarianMatcher()(output, targets).nonfinite or ""
    assert sentence.startswith("image id 102: the matching cost of decoder layer 0 ")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple))
def test_nothing_but_broken_costs_still_gives_pairs(seed: int, counts: tuple[int, ...]) -> None:
    queries = 5
    output, targets = random_case(seed, layers=2, queries=queries, counts=counts)
    found = HungarianMatcher()(
        ModelOutput(output.layer_logits * float("nan"), output.layer_boxes_cxcywh), targets
    )
    assert (found.nonfinite is None) == (sum(counts) == 0)
    for layer in range(2):
        image, query, target = found.pairs[:, layer]
        np.testing.assert_array_equal(
            np.bincount(image, minlength=len(counts)), np.minimum(counts, queries)
        )
        assert len(set(zip(image.tolist(), query.tolist(), strict=True))) == len(query)
        assert len(set(target.tolist())) == len(target)


def test_broken_output_beside_an_empty_image_is_not_looked_at() -> None:
    output, targets = random_case(1, layers=1, queries=4, counts=(0, 2))
    output.layer_logits[0, 0] = float("nan")  # image 0 has no objects
    found = HungarianMatcher()(output, targets)
    assert found.nonfinite is None
    assert found.query.shape == (1, 2)


def test_batch_of_empty_images() -> None:
    output, targets = random_case(1, layers=2, queries=4, counts=(0, 0))
    assert HungarianMatcher()(output, targets).query.shape == (2, 0)
