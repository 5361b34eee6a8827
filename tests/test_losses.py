"""The criterion: each term by hand, empty images, and splitting a step."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detr_kit.losses import SetCriterion, StepCounts, cardinality_error, class_error
from detr_kit.structures import ModelOutput, TargetBatch

CATEGORIES = 3
QUERIES = 5


def random_output(seed: int, layers: int, images: int) -> ModelOutput:
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, images, QUERIES)
    logits = torch.randn(*shape, CATEGORIES + 1, generator=generator, dtype=torch.float64)
    boxes = torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1
    return ModelOutput(logits.requires_grad_(), boxes.requires_grad_())


def random_targets(seed: int, counts: tuple[int, ...]) -> TargetBatch:
    generator = torch.Generator().manual_seed(seed + 1)
    total = sum(counts)
    labels = torch.randint(0, CATEGORIES, (total,), generator=generator)
    boxes = torch.rand(total, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1
    return TargetBatch(labels, boxes, counts, tuple(range(len(counts))))


def rows(output: ModelOutput, images: slice) -> ModelOutput:
    return ModelOutput(output.layer_logits[:, images], output.layer_boxes_cxcywh[:, images])


def gradients(total: Tensor, output: ModelOutput) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, (output.layer_logits, output.layer_boxes_cxcywh))


def test_terms_by_hand() -> None:
    # One object; query 2 predicts exactly its box moved by 0.1 in x, the others lie far away.
    output = random_output(0, layers=1, images=1)
    with torch.no_grad():
        output.layer_boxes_cxcywh[:] = torch.tensor([0.9, 0.9, 0.1, 0.1], dtype=torch.float64)
        output.layer_boxes_cxcywh[0, 0, 2] = torch.tensor([0.4, 0.3, 0.2, 0.2], dtype=torch.float64)
    box = torch.tensor([[0.3, 0.3, 0.2, 0.2]], dtype=torch.float64)
    targets = TargetBatch(torch.tensor([1]), box, (1,), (7,))
    losses = SetCriterion(CATEGORIES)(output, targets)

    classes = torch.tensor([3, 3, 1, 3, 3])
    weight = torch.tensor([1, 1, 1, 0.1], dtype=torch.float64)
    expected_class = F.cross_entropy(output.layer_logits[0, 0], classes, weight=weight)
    overlap, union, hull = 0.1 * 0.2, 0.3 * 0.2, 0.3 * 0.2
    expected_giou = 1 - (overlap / union - (hull - union) / hull)
    assert losses.logged["class"].item() == pytest.approx(expected_class.item(), abs=1e-12)
    assert losses.logged["l1"].item() == pytest.approx(0.1, abs=1e-12)
    assert losses.logged["giou"].item() == pytest.approx(expected_giou, abs=1e-12)
    expected_total = expected_class.item() + 5 * 0.1 + 2 * expected_giou
    assert losses.total.item() == pytest.approx(expected_total, abs=1e-12)


def test_layers_together_equal_layers_apart() -> None:
    output, targets = random_output(1, layers=3, images=2), random_targets(1, (2, 1))
    criterion = SetCriterion(CATEGORIES)
    together = criterion(output, targets)
    apart = [
        criterion(
            ModelOutput(output.layer_logits[i : i + 1], output.layer_boxes_cxcywh[i : i + 1]),
            targets,
        )
        for i in range(3)
    ]
    expected = torch.stack([losses.total for losses in apart]).sum()
    torch.testing.assert_close(together.total, expected, atol=1e-12, rtol=0)
    for term in ("class", "l1", "giou"):
        names = [f"{term}_0", f"{term}_1", term]
        for name, losses in zip(names, apart, strict=True):
            torch.testing.assert_close(
                together.logged[name], losses.logged[term], atol=1e-12, rtol=0
            )


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (7, 0)])
def test_empty_and_overfull_images_give_finite_losses_and_gradients(
    counts: tuple[int, ...],
) -> None:
    output, targets = random_output(2, layers=2, images=2), random_targets(2, counts)
    losses = SetCriterion(CATEGORIES)(output, targets)
    logit_gradient, box_gradient = gradients(losses.total, output)
    assert torch.isfinite(losses.total)
    assert torch.isfinite(logit_gradient).all()
    assert logit_gradient.abs().sum() > 0
    assert torch.isfinite(box_gradient).all()
    assert (box_gradient.abs().sum() > 0) == (sum(counts) > 0)


def test_splitting_a_step_changes_no_gradient() -> None:
    counts = (3, 0, 1, 2)
    output, targets = random_output(3, layers=2, images=4), random_targets(3, counts)
    criterion = SetCriterion(CATEGORIES)
    whole = gradients(criterion(output, targets).total, output)

    step = criterion.normalizer(StepCounts.of([targets], QUERIES), QUERIES)
    total = torch.zeros((), dtype=torch.float64)
    for images, objects in ((slice(0, 1), slice(0, 3)), (slice(1, 4), slice(3, 6))):
        part = TargetBatch(
            targets.labels[objects],
            targets.boxes_cxcywh[objects],
            counts[images],
            targets.image_ids[images],
        )
        total = total + criterion(rows(output, images), part, step).total
    for split, expected in zip(gradients(total, output), whole, strict=True):
        torch.testing.assert_close(split, expected, atol=1e-12, rtol=0)


def test_processes_average_to_the_whole_step() -> None:
    counts = (3, 1)
    output, targets = random_output(4, layers=1, images=2), random_targets(4, counts)
    criterion = SetCriterion(CATEGORIES)
    whole = criterion(output, targets).total
    shared = criterion.normalizer(StepCounts.of([targets], QUERIES), QUERIES, world_size=2)
    parts = []
    for image, objects in ((0, slice(0, 3)), (1, slice(3, 4))):
        part = TargetBatch(
            targets.labels[objects], targets.boxes_cxcywh[objects], (counts[image],), (image,)
        )
        parts.append(criterion(rows(output, slice(image, image + 1)), part, shared).total)
    torch.testing.assert_close(torch.stack(parts).mean(), whole, atol=1e-12, rtol=0)


def test_official_normalizer_keeps_the_class_mean_of_the_own_batch() -> None:
    criterion = SetCriterion(CATEGORIES)
    own, step = StepCounts(1, 3, 3), StepCounts(2, 4, 4)
    official = criterion.official_normalizer(own, step, QUERIES, world_size=2)
    assert official.boxes == 2.0
    assert official.class_weights == pytest.approx(3 + 0.1 * 2)
    # Two batches a step: their class means are averaged, not added.
    halves = criterion.official_normalizer(own, step, QUERIES, world_size=2, batches=2)
    assert halves.class_weights == pytest.approx(2 * official.class_weights)


def test_logged_errors() -> None:
    logits = torch.full((2, QUERIES, CATEGORIES + 1), -9.0)
    logits[..., CATEGORIES] = 0.0  # everything says `no object` ...
    logits[0, 0, 1] = logits[0, 1, 2] = logits[1, 3, 0] = 5.0  # ... but three queries
    classes = torch.full((2, QUERIES), CATEGORIES)
    classes[0, 0], classes[0, 1], classes[1, 4] = 1, 0, 0
    assert class_error(logits, classes, CATEGORIES).item() == pytest.approx(100 * 2 / 3)
    assert cardinality_error(logits, (4, 1)).item() == pytest.approx((2 + 0) / 2)


def test_half_precision_losses_are_computed_in_fp32() -> None:
    output, targets = random_output(6, layers=1, images=2), random_targets(6, (2, 1))
    half = ModelOutput(output.layer_logits.half(), output.layer_boxes_cxcywh.half())
    assert SetCriterion(CATEGORIES)(half, targets).total.dtype == torch.float32
