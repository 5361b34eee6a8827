from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from detr_kit.config import ModelConfig
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ImageBatch
from tests.models.deformable_models import (
    CLASSES,
    QUERIES,
    REFINED,
    SIZES,
    SOME,
    SWITCHES,
    TINY,
    build,
    sum_of,
    targets_of,
)


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_trains(make_batch: Callable[..., ImageBatch], name: str) -> None:
    model = build(**SWITCHES[name]).train()
    output = model(make_batch((64, 96), (50, 40)), targets=targets_of(2, 1))
    sum_of(output).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    numbers = resolve(ModelConfig(**{**TINY, **SWITCHES[name]}))
    selects = numbers["query_selection"] != "none"
    columns = CLASSES + (numbers["scoring"] == "softmax")
    layers = numbers["groups"] * (numbers["decoder_layers"] + selects)
    assert output.layer_logits.shape == (layers, 2, QUERIES, columns)
    assert output.layer_boxes_cxcywh.shape == (layers, 2, QUERIES, 4)
    assert (output.groups, output.scoring) == (numbers["groups"], numbers["scoring"])
    assert (model.scoring, model.num_columns) == (numbers["scoring"], columns)
    assert model.wants_targets == (numbers["denoising_queries"] > 0)
    assert (output.denoised is not None) == model.wants_targets


@pytest.mark.parametrize("name", SWITCHES)
def test_a_prediction_does_not_depend_on_the_batch(
    make_batch: Callable[..., ImageBatch], batch_difference: Callable[..., float], name: str
) -> None:
    model = build(**SWITCHES[name]).double()
    # The last picture has fewer tokens than there are queries.
    batch = make_batch(*SIZES, (7, 9), dtype=torch.float64)
    assert batch_difference(model, batch) <= 1e-12


@pytest.mark.parametrize("name", SOME)
def test_any_size_of_picture_will_do(make_batch: Callable[..., ImageBatch], name: str) -> None:
    model = build(**SWITCHES[name]).eval()
    with torch.no_grad():
        for size_hw in ((1, 1), (1, 50), (33, 2), (16, 16), (65, 31)):
            output = model(make_batch(size_hw))
            assert output.logits.shape[:2] == (1, QUERIES)
            assert output.logits.isfinite().all()
            boxes = output.boxes_cxcywh
            assert ((boxes >= 0) & (boxes <= 1)).all()


def test_queries_without_a_token_find_nothing(make_batch: Callable[..., ImageBatch]) -> None:
    for name in ("rtdetr", "rtdetr_softmax"):
        output = build(**SWITCHES[name]).eval()(make_batch((7, 9)))
        scored = output.logits[0].sigmoid()
        if output.scoring == "softmax":
            scored = output.logits[0].softmax(-1)[:, :-1]
        assert (scored[9:] < 1e-8).all()  # 2 x 3 + 1 x 2 + 1 tokens
        assert (scored[:9] > 1e-6).all()


@pytest.mark.parametrize("name", ["dino", "rtdetr", "denoising", "dino_groups"])
def test_denoising_changes_nothing_of_what_predicts(
    make_batch: Callable[..., ImageBatch], name: str
) -> None:
    model = build(**SWITCHES[name]).double().train()
    batch = make_batch((64, 96), (50, 40), dtype=torch.float64)
    without = model(batch)
    for counts in ((2, 1), (0, 3), (0, 0)):
        output = model(batch, targets=targets_of(*counts))
        assert (output.denoised is None) == (not any(counts))
        for ours, theirs in (
            (output.layer_logits, without.layer_logits),
            (output.layer_boxes_cxcywh, without.layer_boxes_cxcywh),
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "anchors_sine", "mixed"])
def test_groups_change_nothing_of_what_predicts(
    make_batch: Callable[..., ImageBatch], name: str
) -> None:
    model = build(**{**SWITCHES[name], "groups": 3}).double()
    batch = make_batch((64, 96), (50, 40), dtype=torch.float64)
    training, evaluation = model.train()(batch), model.eval()(batch, all_layers=True)
    assert training.groups == 3
    layers = evaluation.layer_logits.shape[0]
    torch.testing.assert_close(
        training.layer_logits[-layers:], evaluation.layer_logits, rtol=0, atol=1e-12
    )
    others = training.layer_logits.unflatten(0, (3, -1))[:, -1]
    assert (others[0] - others[1]).abs().max() > 1e-3
    assert evaluation.groups == 1


def test_proposals_come_first_in_training(make_batch: Callable[..., ImageBatch]) -> None:
    model, batch = build(**SWITCHES["dino_groups"]).train(), make_batch((64, 64))
    output = model(batch)
    assert output.layer_logits.shape[0] == 6
    assert torch.equal(output.layer_logits[0], output.layer_logits[3])
    proposals = model.queries(model._encoded(batch)[0]).proposals
    torch.testing.assert_close(output.layer_logits[3], proposals.logits)
    assert model(batch, all_layers=False).layer_logits.shape[0] == 2
    assert model.eval()(batch, all_layers=True).layer_logits.shape[0] == 2
    assert model(batch).layer_logits.shape[0] == 1


def test_denoising_queries_of_an_image_do_not_depend_on_its_batch_mates(
    make_batch: Callable[..., ImageBatch],
) -> None:
    model = build(**SWITCHES["rtdetr"], box_noise=0.0, label_noise=0.0).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    batch = make_batch((64, 96), (64, 96), dtype=torch.float64)
    single = ImageBatch(batch.pixels[:1], batch.padding_mask[:1], batch.sizes_hw[:1])
    together = model(batch, targets=targets_of(1, 3)).denoised
    alone = model(single, targets=targets_of(1)).denoised
    assert (together.plan.copies, alone.plan.copies) == (2, 6)
    own = together.plan.present[0]
    torch.testing.assert_close(
        together.layer_boxes_cxcywh[:, 0, own], alone.layer_boxes_cxcywh[:, 0, :4]
    )


def test_denoised_queries_name_their_objects(make_batch: Callable[..., ImageBatch]) -> None:
    model, targets = build(**SWITCHES["dino"], box_noise=0.0).train(), targets_of(2, 1)
    with torch.no_grad():  # then boxes stay where they begin
        for heads in model.heads:
            heads.box_head.last.weight.zero_()
            heads.box_head.last.bias.zero_()
    denoised = model(make_batch((64, 96), (50, 40)), targets=targets).denoised
    assert denoised.layer_logits.shape == (2, 2, 12, CLASSES)
    found = denoised.layer_boxes_cxcywh[:, denoised.plan.image, denoised.plan.query]
    for layer in found:
        torch.testing.assert_close(layer, targets.boxes_cxcywh[denoised.plan.target])


def test_what_denoises_has_a_gradient_also_without_objects(
    make_batch: Callable[..., ImageBatch],
) -> None:
    """Processes that average gradients must have the same ones, whatever their batches hold."""
    model = build(**SWITCHES["dino"]).train()
    sum_of(model(make_batch((64, 64)), targets=targets_of(0))).backward()
    gradient = model.denoising.labels.weight.grad
    assert gradient is not None
    assert not gradient.any()


def test_models_start_as_published() -> None:
    torch.manual_seed(0)
    numbers = resolve(ModelConfig(**{**TINY, **SWITCHES["dino"]}))
    model = build_model(numbers, CLASSES)
    assert len(model.heads) == 2
    for heads in (*model.heads, model.queries.heads):
        assert not heads.box_head.last.weight.any()
        assert not heads.box_head.last.bias.any()
        torch.testing.assert_close(
            heads.class_head.last.bias.sigmoid(), torch.full((CLASSES,), 0.01)
        )
    learned = build_model(resolve(ModelConfig(**TINY)), CLASSES)
    assert len(learned.heads) == 1
    assert learned.heads[0].box_head.last.bias.tolist() == [0, 0, -2, -2]


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({}, 0.1192),  # a sigmoid of -2
        ({"refinement": True}, 0.1192),
        # One head cannot tell the layer that gives a point its sides from those that refine them.
        ({"refinement": True, "shared_heads": True}, 0.5),
        ({**REFINED, "shared_heads": True, "decoder_norm": True}, 0.5),
    ],
)
def test_boxes_of_learned_points_begin_with_the_same_sides_in_all_layers(
    make_batch: Callable[..., ImageBatch], changes: dict[str, Any], side: float
) -> None:
    torch.manual_seed(0)
    numbers = resolve(ModelConfig(**{**TINY, "decoder_layers": 6, **changes}))
    model = build_model(numbers, CLASSES).eval()
    sides = model(make_batch((64, 96)), all_layers=True).layer_boxes_cxcywh[..., 2:]
    assert len(sides) == 6
    torch.testing.assert_close(sides, torch.full_like(sides, side), rtol=0, atol=1e-4)


def test_official_padding_runs(make_batch: Callable[..., ImageBatch]) -> None:
    for name in ("plain", "rtdetr"):
        model = build(**{**SWITCHES[name], "padding": "official", "levels": 4}).eval()
        assert model(make_batch((64, 96), (50, 40))).logits.isfinite().all()


def test_what_lies_in_the_padding_does_not_matter(make_batch: Callable[..., ImageBatch]) -> None:
    batch = make_batch((64, 64), (50, 40))
    noisy = replace(batch, pixels=torch.where(batch.padding_mask[:, None], 9.0, batch.pixels))
    for name in SOME:
        model = build(**SWITCHES[name]).eval()
        with torch.no_grad():
            assert torch.equal(model(batch).logits, model(noisy).logits), name
