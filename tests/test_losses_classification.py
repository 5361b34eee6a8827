"""Class losses by name, groups and denoised queries: by hand, in plain loops, by transformers."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detr_kit.boxes import cxcywh_to_xyxy, iou_and_union
from detr_kit.errors import DetrKitError
from detr_kit.losses import SetCriterion, StepCounts, class_loss_for
from detr_kit.losses.classification import class_loss
from detr_kit.matching import HungarianMatcher, focal_cost
from detr_kit.structures import DenoisedOutput, ModelOutput, Scoring, TargetBatch
from tests.host_reads import counting_host_reads
from tests.sigmoid_outputs import (
    CATEGORIES,
    QUERIES,
    drawn_denoised,
    drawn_output,
    drawn_targets,
    objects_of_images,
)

SIGMOID_LOSSES = ("focal", "varifocal", "matchability")


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def by_formula(
    name: str, logit: float, *, is_class: bool, iou: float, alpha: float, gamma: float
) -> float:
    """One column of one query, as the papers write it."""
    p = 1 / (1 + math.exp(-logit))
    if name == "focal":
        if is_class:
            return -alpha * (1 - p) ** gamma * math.log(p)
        return -(1 - alpha) * p**gamma * math.log(1 - p)
    if not is_class:
        return -alpha * p**gamma * math.log(1 - p)
    if name == "varifocal":
        return -iou * (iou * math.log(p) + (1 - iou) * math.log(1 - p))
    goal = iou**gamma
    return -goal * math.log(p) - (1 - goal) * math.log(1 - p)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SIGMOID_LOSSES),
    st.lists(st.tuples(*[st.floats(-15, 15)] * CATEGORIES), min_size=1, max_size=6),
    st.integers(0, 2**31),
    st.floats(0, 1),
    st.floats(0, 4),
)
def test_each_column_loses_what_the_paper_says(
    name: Any, logits: list[tuple[float, ...]], seed: int, alpha: float, gamma: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, CATEGORIES + 1, (1, 1, len(logits)), generator=generator)
    ious = torch.rand(1, 1, len(logits), generator=generator, dtype=torch.float64)
    found = class_loss(
        name,
        torch.tensor(logits, dtype=torch.float64).view(1, 1, -1, CATEGORIES),
        classes,
        ious * (classes < CATEGORIES),
        no_object_weight=0.1,
        alpha=alpha,
        gamma=gamma,
    )
    for query, columns in enumerate(logits):
        expected = sum(
            by_formula(
                name,
                logit,
                is_class=classes[0, 0, query].item() == column,
                iou=ious[0, 0, query].item(),
                alpha=alpha,
                gamma=gamma,
            )
            for column, logit in enumerate(columns)
        )
        assert found[0, 0, query].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "alpha", "gamma"),
    [("focal", 0.25, 2.0), ("varifocal", 0.75, 2.0), ("matchability", 1.0, 1.5)],
)
def test_numbers_that_are_not_given_are_the_published_ones(
    name: Any, alpha: float, gamma: float
) -> None:
    logits = drawn_output(0).layer_logits
    classes, ious = torch.tensor([[[0, 3, 1, 2, 3]]]), torch.full((1, 1, QUERIES), 0.7)
    by_name = class_loss(name, logits, classes, ious.double(), no_object_weight=0.1)
    given = class_loss(
        name, logits, classes, ious.double(), no_object_weight=0.1, alpha=alpha, gamma=gamma
    )
    assert torch.equal(by_name, given)


@pytest.mark.parametrize("name", SIGMOID_LOSSES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_far_out_logits_give_finite_losses_and_gradients(name: Any, gamma: float) -> None:
    logits = torch.tensor([[[[-1e4, 0.0, 1e4], [1e4, -1e4, 0.0]]]], requires_grad=True)
    classes, ious = torch.tensor([[[0, 3]]]), torch.tensor([[[0.4, 0.0]]])
    losses = class_loss(name, logits, classes, ious, no_object_weight=0.1, gamma=gamma)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_badly_placed_match_counts_for_matchability_and_not_for_varifocal() -> None:
    logits, classes = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1).long()
    badly = torch.full((1, 1, 1), 0.01, dtype=torch.float64)
    varifocal, matchability = (
        class_loss(name, logits, classes, badly, no_object_weight=0.1).item()
        for name in ("varifocal", "matchability")
    )
    assert varifocal < 0.01
    assert matchability == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("name", "scoring"),
    [("cross_entropy", "sigmoid"), *((name, "softmax") for name in SIGMOID_LOSSES)],
)
def test_a_loss_for_another_scoring_is_refused_with_both_keys(name: Any, scoring: Any) -> None:
    output, targets = drawn_output(0), drawn_targets(0, (1,))
    words = rf"loss\.classification '{name}' needs model\.scoring .* the model's is '{scoring}'"
    with pytest.raises(DetrKitError, match=words):
        class_loss_for(name, scoring)
    with pytest.raises(DetrKitError, match=words):
        SetCriterion(CATEGORIES - 1, classification=name)(
            replace(output, scoring=scoring),
            TargetBatch(targets.labels * 0, targets.boxes_cxcywh, (1,), (0,)),
        )


@pytest.mark.parametrize(("scoring", "name"), [("softmax", "cross_entropy"), ("sigmoid", "focal")])
def test_auto_goes_by_the_scoring(scoring: Scoring, name: str) -> None:
    assert class_loss_for("auto", scoring) == name


def config_of_transformers(**changes: Any) -> SimpleNamespace:
    config = {
        "num_labels": CATEGORIES,
        "use_focal_loss": True,
        "matcher_alpha": 0.25,
        "matcher_gamma": 2.0,
        "matcher_class_cost": 2.0,
        "matcher_bbox_cost": 5.0,
        "matcher_giou_cost": 2.0,
        "weight_loss_vfl": 1.0,
        "weight_loss_bbox": 5.0,
        "weight_loss_giou": 2.0,
        "eos_coefficient": 1e-4,
        "focal_loss_alpha": 0.75,
        "focal_loss_gamma": 2.0,
    }
    return SimpleNamespace(**config | changes)


def layers_of_transformers(logits: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
    return [
        {"logits": own, "pred_boxes": own_boxes}
        for own, own_boxes in zip(logits, boxes, strict=True)
    ]


def labels_of_transformers(targets: TargetBatch) -> list[dict[str, Tensor]]:
    return [
        {
            "class_labels": targets.labels[first : first + count],
            "boxes": targets.boxes_cxcywh[first : first + count],
        }
        for _, first, count in objects_of_images(targets.counts)
    ]


def assert_same_losses(
    found: dict[str, Tensor], theirs: dict[str, Tensor], names: dict[str, str], suffix: str
) -> None:
    for ours, their in names.items():
        assert_close(found[ours], theirs[f"{their}{suffix}"])


@pytest.mark.parametrize("counts", [(2, 0, 3), (7, 1, 0)])
def test_focal_losses_are_those_of_transformers(counts: tuple[int, ...]) -> None:
    theirs = pytest.importorskip("transformers.loss.loss_deformable_detr")
    output, targets = drawn_output(1, layers=3, images=3), drawn_targets(1, counts)
    first, second, last = layers_of_transformers(output.layer_logits, output.layer_boxes_cxcywh)
    reference = theirs.DeformableDetrImageLoss(
        theirs.DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2),
        CATEGORIES,
        0.25,
        ["labels", "boxes", "cardinality"],
    )(last | {"auxiliary_outputs": [first, second]}, labels_of_transformers(targets))
    losses = SetCriterion(CATEGORIES, HungarianMatcher(class_cost=2.0), class_weight=2.0)(
        output, targets
    )
    for layer in ("", "_0", "_1"):
        names = {f"class{layer}": "loss_ce", f"l1{layer}": "loss_bbox", f"giou{layer}": "loss_giou"}
        assert_same_losses(losses.logged, reference, names, layer)
    total = sum(
        weight * value
        for name, weight in (("loss_ce", 2.0), ("loss_bbox", 5.0), ("loss_giou", 2.0))
        for key, value in reference.items()
        if key.startswith(name)
    )
    assert_close(losses.total, total)
    errors = losses.logged["cardinality_error"], reference["cardinality_error"]
    assert errors[0].item() == pytest.approx(errors[1].item(), abs=1e-6)  # theirs is of float32


@pytest.mark.parametrize("counts", [(2, 0, 3), (1, 1, 1)])
def test_varifocal_losses_with_denoising_are_those_of_transformers(
    counts: tuple[int, ...],
) -> None:
    theirs = pytest.importorskip("transformers.loss.loss_rt_detr")
    output, targets = drawn_output(2, layers=3, images=3), drawn_targets(2, counts)
    denoised = drawn_denoised(2, targets, layers=2, copies=3)
    # Theirs count each image's as present throughout.
    plan = denoised.plan
    denoised = replace(denoised, plan=replace(plan, present=torch.ones_like(plan.present)))
    positions = [plan.query[plan.image == image] for image in range(len(counts))]
    first, second, last = layers_of_transformers(output.layer_logits, output.layer_boxes_cxcywh)
    reference = theirs.RTDetrLoss(config_of_transformers()).double()(
        last
        | {
            "auxiliary_outputs": [first, second],
            "dn_auxiliary_outputs": layers_of_transformers(
                denoised.layer_logits, denoised.layer_boxes_cxcywh
            ),
            "denoising_meta_values": {"dn_positive_idx": positions, "dn_num_group": 3},
        },
        labels_of_transformers(targets),
    )
    criterion = SetCriterion(
        CATEGORIES, HungarianMatcher(class_cost=2.0), classification="varifocal"
    )
    losses = criterion(replace(output, denoised=denoised), targets)
    assert_close(losses.total, torch.stack([value.sum() for value in reference.values()]).sum())
    assert_close(losses.logged["class_1"], reference["loss_vfl_aux_1"])
    assert_close(losses.logged["dn_class"], reference["loss_vfl_dn_1"])
    assert_close(losses.logged["dn_giou"] * 2, reference["loss_giou_dn_1"])


def weighted_terms(
    criterion: SetCriterion,
    logits: Tensor,
    boxes: Tensor,
    expected: dict[int, int],
    targets: TargetBatch,
    present: Tensor | None = None,
) -> dict[str, float]:
    """The sums of one layer of one image, query by query; `expected` is query to object."""
    name = class_loss_for(criterion.classification, "sigmoid")
    sums = {"class": 0.0, "l1": 0.0, "giou": 0.0}
    for query in range(len(logits)):
        if present is not None and not present[query]:
            continue
        label, iou = CATEGORIES, torch.zeros((), dtype=torch.float64)
        if query in expected:
            label = int(targets.labels[expected[query]])
            own, true = boxes[query], targets.boxes_cxcywh[expected[query]]
            corners = cxcywh_to_xyxy(own), cxcywh_to_xyxy(true)
            iou, union = iou_and_union(*corners)
            hull = (
                torch.maximum(corners[0][2:], corners[1][2:])
                - torch.minimum(corners[0][:2], corners[1][:2])
            ).prod()
            sums["l1"] += (own - true).abs().sum().item()
            sums["giou"] += (1 - iou + (hull - union) / hull).item()
        lost = class_loss(
            name,
            logits[query].view(1, 1, 1, -1),
            torch.tensor([[[label]]]),
            iou.detach().view(1, 1, 1),
            no_object_weight=0.1,
        )
        sums["class"] += lost.item()
    return sums


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(SIGMOID_LOSSES),
    st.integers(0, 2**31),
    st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple).filter(any),
    st.integers(1, 3),
)
def test_a_denoised_loss_is_the_sum_over_its_queries(
    name: Any, seed: int, counts: tuple[int, ...], copies: int
) -> None:
    output = drawn_output(seed, layers=2, images=len(counts))
    targets = drawn_targets(seed, counts)
    denoised = drawn_denoised(seed, targets, layers=2, copies=copies)
    criterion = SetCriterion(CATEGORIES, classification=name)
    without = criterion(output, targets)
    losses = criterion(replace(output, denoised=denoised), targets)
    added, last = 0.0, dict.fromkeys(("class", "l1", "giou"), 0.0)
    for layer in range(2):
        for image in range(len(counts)):
            plan = denoised.plan
            own = plan.image == image
            found = dict(zip(plan.query[own].tolist(), plan.target[own].tolist(), strict=True))
            terms = weighted_terms(
                criterion,
                denoised.layer_logits[layer, image],
                denoised.layer_boxes_cxcywh[layer, image],
                found,
                targets,
                denoised.plan.present[image],
            )
            shares = {key: value / (sum(counts) * copies) for key, value in terms.items()}
            added += shares["class"] + 5 * shares["l1"] + 2 * shares["giou"]
            if layer == 1:
                last = {key: last[key] + shares[key] for key in last}
    assert (losses.total - without.total).item() == pytest.approx(added, abs=1e-9)
    for key, value in last.items():
        assert losses.logged[f"dn_{key}"].item() == pytest.approx(value, abs=1e-9)
    for key, own_value in without.logged.items():
        assert torch.equal(losses.logged[key], own_value)


def test_absent_denoising_queries_teach_nothing() -> None:
    output, targets = drawn_output(3, images=2), drawn_targets(3, (3, 1))
    denoised = drawn_denoised(3, targets)
    SetCriterion(CATEGORIES)(replace(output, denoised=denoised), targets).total.backward()
    gradient = denoised.layer_logits.grad
    assert gradient is not None
    assert not gradient[:, ~denoised.plan.present].any()
    assert gradient[:, denoised.plan.present].all()


def group_of(output: ModelOutput, group: int) -> ModelOutput:
    layers = len(output.layer_logits) // output.groups
    own = slice(group * layers, (group + 1) * layers)
    return ModelOutput(output.layer_logits[own], output.layer_boxes_cxcywh[own], output.scoring)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(("cross_entropy", *SIGMOID_LOSSES)),
    st.integers(0, 2**31),
    st.integers(2, 4),
    st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple),
)
def test_groups_lose_the_mean_of_what_each_loses(
    name: Any, seed: int, groups: int, counts: tuple[int, ...]
) -> None:
    softmax = name == "cross_entropy"
    output = drawn_output(
        seed, layers=2, images=len(counts), groups=groups, categories=CATEGORIES + softmax
    )
    output = replace(output, scoring="softmax" if softmax else "sigmoid")
    targets = drawn_targets(seed, counts)
    criterion = SetCriterion(CATEGORIES, classification=name)
    together = criterion(output, targets)
    apart = [criterion(group_of(output, group), targets) for group in range(groups)]
    assert_close(together.total, torch.stack([losses.total for losses in apart]).mean())
    assert together.logged.keys() == apart[-1].logged.keys()
    for key, value in apart[-1].logged.items():
        assert_close(together.logged[key], value)


def test_a_first_layer_of_any_category_asks_its_first_column_alone() -> None:
    output, targets = drawn_output(4, layers=3, images=2), drawn_targets(4, (2, 4))
    with torch.no_grad():
        output.layer_logits[0] = output.layer_logits[0, ..., :1]
    criterion = SetCriterion(CATEGORIES)
    losses = criterion(replace(output, first_is_of_any=True), targets)
    of_any = ModelOutput(output.layer_logits[:1, ..., :1], output.layer_boxes_cxcywh[:1], "sigmoid")
    boxes = targets.boxes_cxcywh
    things = TargetBatch(torch.zeros_like(targets.labels), boxes, targets.counts, (0, 1))
    alone = SetCriterion(1)(of_any, things)
    rest = criterion(
        ModelOutput(output.layer_logits[1:], output.layer_boxes_cxcywh[1:], "sigmoid"), targets
    )
    for name in ("class", "l1", "giou"):
        assert_close(losses.logged[f"{name}_0"], alone.logged[name])
        assert_close(losses.logged[name], rest.logged[name])
    assert_close(losses.total, alone.total + rest.total)
    losses.total.backward()
    assert output.layer_logits.grad is not None
    assert not output.layer_logits.grad[0, ..., 1:].any()


def test_varifocal_learns_each_layers_own_iou_without_moving_boxes() -> None:
    output, targets = drawn_output(5, layers=2, images=1), drawn_targets(5, (2,))
    criterion = SetCriterion(CATEGORIES, classification="varifocal", l1_weight=0.0, giou_weight=0.0)
    losses = criterion(output, targets)
    losses.total.backward()
    gradient = output.layer_boxes_cxcywh.grad
    assert gradient is None or not gradient.any()
    for layer, name in enumerate(("class_0", "class")):
        _, query, target = losses.assignment.pairs[:, layer]
        expected = dict(zip(query.tolist(), target.tolist(), strict=True))
        logits, boxes = output.layer_logits[layer, 0], output.layer_boxes_cxcywh[layer, 0]
        terms = weighted_terms(criterion, logits, boxes, expected, targets)
        assert losses.logged[name].item() == pytest.approx(terms["class"] / 2, abs=1e-9)


def test_logged_figures_by_hand() -> None:
    logits = torch.tensor([[3.0, -1, -1], [-1, 2, 4], [-2, -2, -1], [-3, 1, -1], [-1, -1, -1]])
    boxes = torch.tensor([[0.1, 0.1, 0.1, 0.1]] * 5)
    boxes[0], boxes[1] = torch.tensor([0.3, 0.3, 0.2, 0.2]), torch.tensor([0.7, 0.6, 0.2, 0.4])
    output = ModelOutput(logits.view(1, 1, 5, 3), boxes.view(1, 1, 5, 4), "sigmoid")
    targets = TargetBatch(torch.tensor([0, 1]), boxes[:2].clone(), (2,), (7,))
    logged = SetCriterion(CATEGORIES, HungarianMatcher(class_cost=2.0))(output, targets).logged
    assert logged["class_error"].item() == 50.0  # the second query rather says 2 than 1
    assert logged["cardinality_error"].item() == 1.0  # a third query finds something
    costs = [focal_cost(logits[0, 0]).item(), focal_cost(logits[1, 1]).item()]
    assert logged["cost_class"].item() == pytest.approx(2 * sum(costs) / 2, rel=1e-5)
    assert logged["cost_l1"].item() == 0.0
    assert logged["cost_giou"].item() == pytest.approx(-2.0, rel=1e-6)


@pytest.mark.parametrize("counts", [(0, 0), (2, 1)])
def test_names_and_numbers_of_what_is_logged(counts: tuple[int, ...]) -> None:
    output, targets = drawn_output(6, layers=2, images=2, groups=3), drawn_targets(6, counts)
    denoised = drawn_denoised(6, targets, layers=2) if any(counts) else None
    logged = SetCriterion(CATEGORIES)(replace(output, denoised=denoised), targets).logged
    expected = {f"{term}{layer}" for term in ("class", "l1", "giou") for layer in ("", "_0")}
    expected |= {"class_error", "cardinality_error", "cost_class", "cost_l1", "cost_giou"}
    if denoised is not None:
        expected |= {"dn_class", "dn_l1", "dn_giou"}
    assert logged.keys() == expected
    for name, value in logged.items():
        assert value.shape == (), name
        assert not value.requires_grad, name
        assert value.isfinite(), name


@pytest.mark.parametrize("name", SIGMOID_LOSSES)
def test_splitting_a_step_changes_no_gradient(name: Any) -> None:
    counts = (3, 0, 1, 2)
    output, targets = drawn_output(7, layers=2, images=4, groups=2), drawn_targets(7, counts)
    criterion = SetCriterion(CATEGORIES, classification=name)
    leaves = (output.layer_logits, output.layer_boxes_cxcywh)
    whole = torch.autograd.grad(criterion(output, targets).total, leaves)
    step = criterion.normalizer(StepCounts.of([targets], QUERIES), QUERIES)
    total = torch.zeros((), dtype=torch.float64)
    for images, objects in ((slice(0, 1), slice(0, 3)), (slice(1, 4), slice(3, 6))):
        part = TargetBatch(
            targets.labels[objects],
            targets.boxes_cxcywh[objects],
            counts[images],
            targets.image_ids[images],
        )
        own = replace(
            output,
            layer_logits=output.layer_logits[:, images],
            layer_boxes_cxcywh=output.layer_boxes_cxcywh[:, images],
        )
        total = total + criterion(own, part, step).total
    for split, expected in zip(torch.autograd.grad(total, leaves), whole, strict=True):
        assert_close(split, expected)


def half_of(denoised: DenoisedOutput, dtype: torch.dtype) -> DenoisedOutput:
    return replace(
        denoised,
        layer_logits=denoised.layer_logits.to(dtype),
        layer_boxes_cxcywh=denoised.layer_boxes_cxcywh.to(dtype),
    )


@pytest.mark.parametrize("name", SIGMOID_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_losses_are_computed_in_fp32(name: Any, dtype: torch.dtype) -> None:
    output, targets = drawn_output(8, images=2), drawn_targets(8, (2, 1))
    half = replace(
        output,
        layer_logits=output.layer_logits.to(dtype),
        layer_boxes_cxcywh=output.layer_boxes_cxcywh.to(dtype),
        denoised=half_of(drawn_denoised(8, targets), dtype),
    )
    losses = SetCriterion(CATEGORIES, classification=name)(half, targets)
    assert losses.total.dtype == torch.float32
    assert all(value.dtype != dtype for value in losses.logged.values())


@pytest.mark.parametrize("name", SIGMOID_LOSSES)
@pytest.mark.parametrize("counts", [(0, 0), (7, 2)])
def test_a_step_waits_for_the_device_once(name: Any, counts: tuple[int, ...]) -> None:
    output, targets = drawn_output(9, layers=3, images=2, groups=2), drawn_targets(9, counts)
    if any(counts):
        output = replace(output, denoised=drawn_denoised(9, targets, layers=3))
    criterion = SetCriterion(CATEGORIES, classification=name, on_nonfinite="poison")
    with counting_host_reads() as reads:
        criterion(output, targets, aside=torch.ones(2)).total.backward()
    assert [read.kind for read in reads] == ["cpu"]
