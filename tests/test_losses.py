"""The criterion: each term by hand, empty images, splitting a step, and broken outputs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from detr_kit.boxes import cxcywh_to_xyxy, generalized_iou
from detr_kit.losses import SetCriterion, StepCounts, cardinality_error, class_error
from detr_kit.matching import HungarianMatcher, NonFiniteCostError
from detr_kit.structures import ModelOutput, TargetBatch
from tests.host_reads import counting_host_reads

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
    output, targets = random_output(4, layers=3, images=2), random_targets(4, (2, 1))
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
    for name in ("class_error", "cardinality_error", "cost_class", "cost_l1", "cost_giou"):
        torch.testing.assert_close(together.logged[name], apart[-1].logged[name])
    assert together.logged["class_error"] != apart[0].logged["class_error"]


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
    predicted = torch.full((2, QUERIES), CATEGORIES)  # everything says `no object` ...
    predicted[0, 0], predicted[0, 1], predicted[1, 3] = 1, 2, 0  # ... but three queries
    error = cardinality_error(predicted, (4, 1), no_object=CATEGORIES)
    assert error.item() == pytest.approx((2 + 0) / 2)
    right_wrong_missed = torch.tensor([1, 2, CATEGORIES])
    assert class_error(right_wrong_missed, torch.tensor([1, 0, 0])).item() == pytest.approx(200 / 3)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert class_error(nothing, nothing).item() == 0.0


def test_logged_costs_are_the_mean_share_of_a_matched_pair() -> None:
    output, targets = random_output(7, layers=2, images=2), random_targets(7, (2, 1))
    matcher = HungarianMatcher(class_cost=2.0, l1_cost=3.0, giou_cost=4.0)
    losses = SetCriterion(CATEGORIES, matcher)(output, targets)
    expected = {"cost_class": 0.0, "cost_l1": 0.0, "cost_giou": 0.0}
    for image, query, target in losses.assignment.pairs[:, -1].T.tolist():
        box, true = output.boxes_cxcywh[image, query], targets.boxes_cxcywh[target]
        probability = output.logits[image, query].softmax(-1)[targets.labels[target]]
        giou = generalized_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(true))
        expected["cost_class"] -= 2 * probability.item() / 3
        expected["cost_l1"] += 3 * (box - true).abs().sum().item() / 3
        expected["cost_giou"] -= 4 * giou.item() / 3
    for name, value in expected.items():
        assert losses.logged[name].item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("counts", [(0, 0), (2, 1)])
def test_logged_values_are_numbers_without_a_gradient(counts: tuple[int, ...]) -> None:
    output, targets = random_output(7, layers=2, images=2), random_targets(7, counts)
    logged = SetCriterion(CATEGORIES)(output, targets).logged
    of_layers = {f"{term}{layer}" for term in ("class", "l1", "giou") for layer in ("", "_0")}
    others = {"class_error", "cardinality_error", "cost_class", "cost_l1", "cost_giou"}
    assert logged.keys() == of_layers | others
    for name, value in logged.items():
        assert value.shape == (), name
        assert not value.requires_grad, name
        assert torch.isfinite(value), name
    if sum(counts) == 0:
        assert all(logged[name] == 0 for name in others - {"cardinality_error"})


@pytest.mark.parametrize("counts", [(0, 0), (7, 2)])
def test_a_step_waits_for_the_device_once(counts: tuple[int, ...]) -> None:
    output, targets = random_output(8, layers=3, images=2), random_targets(8, counts)
    aside = torch.tensor([0.0, 2.5])
    with counting_host_reads() as reads:
        losses = SetCriterion(CATEGORIES, on_nonfinite="poison")(output, targets, aside=aside)
        losses.total.backward()
    assert [read.kind for read in reads] == ["cpu"]
    assert losses.assignment.aside is not None
    assert losses.assignment.aside.tolist() == [0.0, 2.5]


class Heads(nn.Module):
    """Queries and two linear heads: all that a set of outputs depends on."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.queries = nn.Parameter(torch.randn(QUERIES, 8))
            self.class_head, self.box_head = nn.Linear(8, CATEGORIES + 1), nn.Linear(8, 4)

    def forward(self, images: int) -> ModelOutput:
        logits, boxes = self.class_head(self.queries), self.box_head(self.queries).sigmoid()
        return ModelOutput(
            *(part.expand(2, images, *part.shape).clone() for part in (logits, boxes))
        )


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["layer_logits", "layer_boxes_cxcywh"]),
    st.sampled_from([float("nan"), float("inf")]),
    st.integers(0, 1),
    st.integers(0, QUERIES - 1),
)
def test_a_broken_cost_raises_or_poisons_every_gradient(
    part: str, broken: float, layer: int, query: int
) -> None:
    model, targets = Heads(), random_targets(9, (2, 7))
    output = model(2)
    getattr(output, part).data[layer, 1, query] = broken
    with pytest.raises(NonFiniteCostError, match=rf"^image id 1: .* decoder layer {layer} "):
        SetCriterion(CATEGORIES)(output, targets)
    losses = SetCriterion(CATEGORIES, on_nonfinite="poison")(output, targets)
    assert losses.assignment.nonfinite is not None
    assert losses.total.isnan()
    losses.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isnan().all(), name


def test_poison_alone_changes_nothing() -> None:
    output, targets = random_output(10, layers=2, images=2), random_targets(10, (2, 1))
    raising = SetCriterion(CATEGORIES)(output, targets)
    poisoning = SetCriterion(CATEGORIES, on_nonfinite="poison")(output, targets)
    assert poisoning.total.item() == raising.total.item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_losses_are_computed_in_fp32(dtype: torch.dtype) -> None:
    output, targets = random_output(6, layers=1, images=2), random_targets(6, (2, 1))
    half = ModelOutput(output.layer_logits.to(dtype), output.layer_boxes_cxcywh.to(dtype))
    assert SetCriterion(CATEGORIES)(half, targets).total.dtype == torch.float32
