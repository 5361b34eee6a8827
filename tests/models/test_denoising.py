from __future__ import annotations

import pytest
import torch

from detr_kit.boxes import cxcywh_to_xyxy
from detr_kit.models.denoising import Denoised, Denoising, blocked_queries
from detr_kit.structures import Target, TargetBatch


def targets_of(*counts: int) -> TargetBatch:
    generator = torch.Generator().manual_seed(2)
    targets = []
    for image, count in enumerate(counts):
        boxes = torch.rand(count, 4, generator=generator) * 0.2
        boxes += torch.tensor([0.4, 0.4, 0.05, 0.05])
        labels = torch.randint(4, (count,), generator=generator)
        targets.append(Target(labels, boxes, image))
    return TargetBatch.from_targets(targets)


def denoising(queries: int = 24, *, label_noise: float = 0.5, box_noise: float = 1.0) -> Denoising:
    torch.manual_seed(0)
    return Denoising(4, 8, queries, label_noise=label_noise, box_noise=box_noise)


def test_objects_are_repeated_as_often_as_fits() -> None:
    made = denoising(24)(targets_of(3, 0, 1))
    assert made.plan.copies == 4
    assert made.content.shape == (3, 24, 8)
    assert made.reference.shape == (3, 24, 4)
    assert made.plan.present.sum(1).tolist() == [24, 0, 8]
    assert denoising(24)(targets_of(5)).content.shape == (1, 20, 8)
    assert denoising(24)(targets_of(100)).plan.copies == 1


def test_without_objects_there_is_nothing() -> None:
    module = denoising()
    assert module(targets_of(0, 0)) is None
    zero = module.nothing()
    zero.backward()
    assert zero == 0
    assert module.labels.weight.grad is not None


def test_positives_name_their_objects() -> None:
    targets = targets_of(3, 0, 1)
    made = denoising(24, label_noise=0.0, box_noise=0.0)(targets)
    assert len(made.plan.image) == 4 * made.plan.copies
    assert sorted(made.plan.target.tolist()) == sorted([0, 1, 2, 3] * 4)
    own = made.reference[made.plan.image, made.plan.query]
    torch.testing.assert_close(own, targets.boxes_cxcywh[made.plan.target])
    assert made.plan.present[made.plan.image, made.plan.query].all()
    # Each copy: the positives, then as many negatives.
    positives = {6 * copy + slot for copy in range(4) for slot in range(3)}
    assert set(made.plan.query.tolist()) <= positives


def moves(made: Denoised, targets: TargetBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the corners of positives and negatives moved, in halves of the sides."""
    objects = targets.boxes_cxcywh[made.plan.target]
    half = objects[:, 2:].repeat(1, 2) / 2
    distances = []
    for shift in (0, max(targets.counts)):
        noisy = cxcywh_to_xyxy(made.reference[made.plan.image, made.plan.query + shift])
        distances.append((noisy - cxcywh_to_xyxy(objects)).abs() / half)
    return distances[0], distances[1]


@pytest.mark.parametrize("box_noise", [0.4, 1.0])
def test_positives_move_less_than_half_a_side_and_negatives_more(box_noise: float) -> None:
    targets = targets_of(50, 20)
    module = denoising(1000, box_noise=box_noise)
    near, far = moves(module(targets), targets)
    assert near.max() <= box_noise + 1e-4
    assert near.mean().item() == pytest.approx(box_noise / 2, abs=0.02)
    # A side's two corners may pass each other and then change places.
    if box_noise < 0.5:
        assert far.min() >= box_noise - 1e-4
        assert far.max() <= 2 * box_noise + 1e-4


def test_noisy_boxes_are_boxes_inside_the_picture() -> None:
    made = denoising(1000, box_noise=1.0)(targets_of(50))
    assert (made.reference >= 0).all()
    corners = cxcywh_to_xyxy(made.reference)
    assert ((corners >= -1e-6) & (corners <= 1 + 1e-6)).all()


def test_categories_are_drawn_anew_with_half_the_chance() -> None:
    targets = targets_of(50)
    module = denoising(4000, label_noise=0.5)
    made = module(targets)
    own = module.labels.weight[targets.labels[made.plan.target]]
    kept = (made.content[made.plan.image, made.plan.query] == own).all(-1).float().mean()
    # A quarter is drawn anew, of which a quarter again is right.
    assert kept.item() == pytest.approx(1 - 0.25 * 0.75, abs=0.03)
    same = denoising(24, label_noise=0.0)
    made = same(targets_of(3, 1))
    row = same.labels.weight[targets_of(3, 1).labels[made.plan.target]]
    assert torch.equal(made.content[made.plan.image, made.plan.query], row)


def test_queries_without_object_have_an_embedding_of_zeros() -> None:
    made = denoising()(targets_of(3, 1))
    assert not made.content[~made.plan.present].any()
    assert made.content[made.plan.present].abs().sum(-1).all()


def test_a_seed_gives_the_same_noise() -> None:
    module, made = denoising(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(module(targets_of(3, 2)).reference)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_only_the_labels_of_the_batch_learn() -> None:
    module, targets = denoising(label_noise=0.0), targets_of(3, 1)
    module(targets).content.sum().backward()
    learned = module.labels.weight.grad.any(-1)
    assert set(learned.nonzero().flatten().tolist()) == set(targets.labels.tolist())


def test_who_sees_whom() -> None:
    assert blocked_queries(1, 5, 0, 0, torch.device("cpu")) is None
    # Two groups of two, two copies of one pair.
    blocked = blocked_queries(2, 2, 4, 2, torch.device("cpu"))
    expected = """
        ..xxxxxx
        ..xxxxxx
        xx..xxxx
        xx..xxxx
        ..xx..xx
        ..xx..xx
        ..xxxx..
        ..xxxx..
    """
    rows = ["".join(".x"[cell] for cell in row) for row in blocked.int().tolist()]
    assert rows == expected.split()
    groups = blocked_queries(3, 2, 0, 0, torch.device("cpu"))
    assert torch.equal(~groups, torch.block_diag(*[torch.ones(2, 2)] * 3).bool())
