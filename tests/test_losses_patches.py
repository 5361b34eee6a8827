"""What patches learn: whose each is, what each counts, and what a step comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detr_kit.boxes import cxcywh_to_xyxy, generalized_iou
from detr_kit.losses import ClassLossName, SetCriterion, StepCounts
from detr_kit.losses.classification import class_loss
from detr_kit.losses.patches import PatchTargets, assign_patches
from detr_kit.matching import HungarianMatcher
from detr_kit.structures import ModelOutput, PatchOutput, Scoring, TargetBatch
from tests.host_reads import counting_host_reads

CATEGORIES = 3
QUERIES = 5
ROWS, COLUMNS = 4, 6


def patch_output(
    seed: int, images: int, scoring: Scoring = "softmax", missing: Tensor | None = None
) -> PatchOutput:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, images, ROWS * COLUMNS)
    columns = CATEGORIES + (scoring == "softmax")
    logits = torch.randn(*shape, columns, generator=generator, dtype=torch.float64)
    boxes = torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1
    y, x = torch.meshgrid(
        (torch.arange(ROWS) + 0.5) / ROWS, (torch.arange(COLUMNS) + 0.5) / COLUMNS, indexing="ij"
    )
    centers = torch.stack([x, y], -1).flatten(0, 1).expand(images, -1, -1)
    if missing is None:
        missing = torch.zeros(shape[1:], dtype=torch.bool)
    return PatchOutput(logits.requires_grad_(), boxes.requires_grad_(), centers, missing)


def output_of(
    seed: int, patches: PatchOutput, scoring: Scoring = "softmax", groups: int = 1
) -> ModelOutput:
    generator = torch.Generator().manual_seed(seed + 100)
    shape = (groups, patches.layer_logits.shape[1], QUERIES)
    columns = CATEGORIES + (scoring == "softmax")
    logits = torch.randn(*shape, columns, generator=generator, dtype=torch.float64)
    boxes = torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1
    return ModelOutput(logits, boxes, scoring, groups, patches=patches)


def targets_of(*images: list[tuple[int, list[float]]]) -> TargetBatch:
    labels = [label for objects in images for label, _ in objects]
    boxes = [box for objects in images for _, box in objects]
    return TargetBatch(
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        tuple(len(objects) for objects in images),
        tuple(range(len(images))),
    )


def by_hand(patches: PatchOutput, objects: list[tuple[int, list[float]]], image: int) -> list[int]:
    """Return the object of each patch of an image, -1 for none, by loops."""
    centers, missing = patches.centers[image].tolist(), patches.missing[image].tolist()
    nearest = []
    for _, (cx, cy, _, _) in objects:
        away = [
            float("inf") if gone else (cx - x) ** 2 + (cy - y) ** 2
            for (x, y), gone in zip(centers, missing, strict=True)
        ]
        nearest.append(away.index(min(away)))
    areas = [box[2] * box[3] for _, box in objects]

    def smallest(some: list[int]) -> int:
        return min(some, key=lambda index: areas[index], default=-1)

    own = []
    for place, (x, y) in enumerate(centers):
        covering = [
            index
            for index, (_, (cx, cy, w, h)) in enumerate(objects)
            if (abs(x - cx) <= w / 2 and abs(y - cy) <= h / 2) or nearest[index] == place
        ]
        own.append(-1 if missing[place] else smallest(covering))
    counts = [own.count(index) for index in range(len(objects))]
    for place, owner in enumerate(own.copy()):
        without = [
            index for index, count in enumerate(counts) if not count and nearest[index] == place
        ]
        if without and counts[owner] > 1:
            own[place] = smallest(without)
    return own


# Floats hold these numbers exactly, and no box ends or lies midway between centres of patches.
side = st.integers(1, 32).map(lambda number: number / 32)
middle = st.integers(0, 31).map(lambda number: number / 32 + 3 / 1024)
box = st.tuples(middle, middle, side, side).map(list)
objects = st.lists(st.tuples(st.integers(0, CATEGORIES - 1), box), max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(objects, min_size=1, max_size=3), st.integers(0, COLUMNS - 1))
def test_patches_go_to_the_smallest_object_around_them(
    images: list[list[tuple[int, list[float]]]], gone: int
) -> None:
    missing = torch.zeros(len(images), ROWS, COLUMNS, dtype=torch.bool)
    missing[0, :, COLUMNS - gone :] = True
    patches = patch_output(0, len(images), missing=missing.flatten(1))
    found = assign_patches(patches, targets_of(*images), no_object=CATEGORIES)
    for image, own_objects in enumerate(images):
        own = by_hand(patches, own_objects, image)
        classes = [own_objects[index][0] if index >= 0 else CATEGORIES for index in own]
        assert found.classes[image].tolist() == classes
        for place, index in enumerate(own):
            share = found.shares[image, place].item()
            if index >= 0:
                assert found.boxes_cxcywh[image, place].tolist() == own_objects[index][1]
                assert share == pytest.approx(1 / own.count(index))
            else:
                assert share == 0
            is_background = index < 0 and not patches.missing[image, place]
            assert bool(found.background[image, place]) == is_background


def test_an_object_smaller_than_a_patch_has_the_nearest() -> None:
    patches = patch_output(0, 1)
    tiny = [(1, [0.52, 0.51, 0.001, 0.001])]
    found = assign_patches(patches, targets_of(tiny), no_object=CATEGORIES)
    (place,) = (found.classes[0] != CATEGORIES).nonzero().flatten().tolist()
    assert divmod(place, COLUMNS) == (2, 3)
    assert found.shares[0].sum() == 1


def owners(*found: tuple[int, list[float]]) -> list[int]:
    """Return how many patches each object has; categories tell them apart."""
    plan = assign_patches(patch_output(0, 1), targets_of(list(found)), no_object=CATEGORIES)
    return [int((plan.classes == category).sum()) for category, _ in found]


def test_an_object_that_others_cover_keeps_a_patch_if_there_is_one_to_spare() -> None:
    box = [0.5, 0.55, 0.4, 0.5]  # 2 x 2 patches
    assert owners((0, box), (1, box)) == [3, 1]
    assert owners((0, [0.3, 0.3, 0.01, 0.01]), (1, [0.3, 0.3, 0.02, 0.02])) == [1, 0]
    almost, whole = [0.55, 0.5, 0.99, 0.99], [0.55, 0.5, 1.0, 1.0]
    assert owners((0, almost), (1, box), (2, whole)) == [20, 3, 1]


SCORINGS: list[tuple[ClassLossName, Scoring]] = [
    ("cross_entropy", "softmax"),
    ("focal", "sigmoid"),
    ("varifocal", "sigmoid"),
    ("matchability", "sigmoid"),
]
TWO = (
    [(1, [0.3, 0.3, 0.4, 0.4]), (0, [0.8, 0.6, 0.3, 0.5])],
    [(2, [0.5, 0.5, 0.9, 0.3])],
)


def expected_terms(
    plan: PatchTargets, patches: PatchOutput, name: ClassLossName
) -> dict[str, float]:
    """The sums of the batch by loops, before they are divided."""
    sums = {"class": 0.0, "l1": 0.0, "giou": 0.0}
    logits, boxes = patches.layer_logits[0].detach(), patches.layer_boxes_cxcywh[0].detach()
    for image in range(logits.shape[0]):
        background = int(plan.background[image].sum())
        for place in range(ROWS * COLUMNS):
            if patches.missing[image, place]:
                continue
            target = plan.boxes_cxcywh[image, place].double()
            own = boxes[image, place]
            iou = torch.zeros(1, 1, 1, dtype=torch.float64)
            share = plan.shares[image, place].item()
            if share:
                corners = cxcywh_to_xyxy(own), cxcywh_to_xyxy(target)
                sums["l1"] += share * (own - target).abs().sum().item()
                sums["giou"] += share * (1 - generalized_iou(*corners)).item()
                low, high = (
                    torch.maximum(*(c[:2] for c in corners)),
                    torch.minimum(*(c[2:] for c in corners)),
                )
                overlap = (high - low).clamp(min=0).prod()
                iou[:] = overlap / (own[2:].prod() + target[2:].prod() - overlap)
            weight = share or QUERIES / background
            lost = class_loss(
                name,
                logits[image, place].view(1, 1, 1, -1),
                plan.classes[image, place].view(1, 1, 1),
                iou,
                no_object_weight=0.1,
            )
            sums["class"] += weight * lost.item()
    return sums


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("name", "scoring"), SCORINGS)
def test_terms_by_hand(name: ClassLossName, scoring: Scoring, groups: int) -> None:
    missing = torch.zeros(2, ROWS, COLUMNS, dtype=torch.bool)
    missing[1, :, 4:] = True
    patches = patch_output(3, 2, scoring, missing.flatten(1))
    output, targets = output_of(3, patches, scoring, groups), targets_of(*TWO)
    criterion = SetCriterion(CATEGORIES, HungarianMatcher(), classification=name)
    losses = criterion(output, targets)
    without = criterion(replace(output, patches=None), targets)
    plan = assign_patches(patches, targets, no_object=CATEGORIES)
    sums = expected_terms(plan, patches, name)
    classes = 3 + 0.1 * (2 * QUERIES - 3) if scoring == "softmax" else 3
    expected = {"class": sums["class"] / classes, "l1": sums["l1"] / 3, "giou": sums["giou"] / 3}
    for term, value in expected.items():
        assert losses.logged[f"patch_{term}"].item() == pytest.approx(value, rel=1e-6), term
    added = expected["class"] + 5 * expected["l1"] + 2 * expected["giou"]
    assert losses.total.item() == pytest.approx(without.total.item() + added, rel=1e-6)


def test_splitting_a_step_changes_nothing() -> None:
    criterion = SetCriterion(CATEGORIES)
    patches = patch_output(5, 2)
    output, targets = output_of(5, patches), targets_of(*TWO)
    normalizer = criterion.normalizer(StepCounts.of([targets], QUERIES), QUERIES)
    leaves = (patches.layer_logits, patches.layer_boxes_cxcywh)
    whole = criterion(output, targets, normalizer).total
    expected = torch.autograd.grad(whole, leaves)
    total = torch.zeros((), dtype=torch.float64)
    for image in range(2):
        own = slice(image, image + 1)
        part = PatchOutput(
            patches.layer_logits[:, own],
            patches.layer_boxes_cxcywh[:, own],
            patches.centers[own],
            patches.missing[own],
        )
        half = ModelOutput(
            output.layer_logits[:, own], output.layer_boxes_cxcywh[:, own], patches=part
        )
        total = total + criterion(half, targets_of(TWO[image]), normalizer).total
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=0)
    for found, wanted in zip(torch.autograd.grad(total, leaves), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


def test_pictures_without_objects_teach_their_patches_to_find_nothing() -> None:
    patches = patch_output(7, 2)
    losses = SetCriterion(CATEGORIES)(output_of(7, patches), targets_of([], []))
    losses.total.backward()
    assert losses.logged["patch_l1"] == 0
    assert losses.logged["patch_class"] > 0
    assert patches.layer_boxes_cxcywh.grad is not None
    assert not patches.layer_boxes_cxcywh.grad.any()
    assert patches.layer_logits.grad is not None
    assert (patches.layer_logits.grad[..., -1] < 0).all()


def test_patches_outside_their_picture_learn_nothing() -> None:
    missing = torch.zeros(2, ROWS, COLUMNS, dtype=torch.bool)
    missing[0, 2:] = True
    patches = patch_output(9, 2, missing=missing.flatten(1))
    SetCriterion(CATEGORIES)(output_of(9, patches), targets_of(*TWO)).total.backward()
    for leaf in (patches.layer_logits, patches.layer_boxes_cxcywh):
        assert leaf.grad is not None
        assert not leaf.grad[0, patches.missing].any()
        assert leaf.grad[0, ~patches.missing].any()


def test_patches_ask_the_device_for_nothing_more() -> None:
    patches = patch_output(11, 2)
    criterion = SetCriterion(CATEGORIES, on_nonfinite="poison")
    with counting_host_reads() as reads:
        criterion(output_of(11, patches), targets_of(*TWO)).total.backward()
    assert [read.kind for read in reads] == ["cpu"]  # the matching costs
