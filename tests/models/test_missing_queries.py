"""Queries that stand for nothing, as their picture has too few tokens, take part in nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.losses.criterion import SetCriterion
from detr_kit.losses.normalizers import Normalizer
from detr_kit.structures import ImageBatch, ModelOutput
from tests.models.deformable_models import CLASSES, NOISY, QUERIES, REFINED, SELECTED, build
from tests.models.deformable_models import targets_of as objects_of
from tests.sigmoid_outputs import CATEGORIES, drawn_output, drawn_targets


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(0, 7),
    st.lists(st.booleans(), min_size=5, max_size=5).filter(lambda gone: not all(gone)),
    st.sampled_from(["focal", "matchability", "cross_entropy"]),
    st.integers(1, 2),
)
def test_losses_are_those_of_the_other_queries(
    seed: int, objects: int, gone: list[bool], classification: str, groups: int
) -> None:
    """Also where there are more objects than other queries."""
    drawn = drawn_output(seed, layers=2, groups=groups)
    scoring = "softmax" if classification == "cross_entropy" else "sigmoid"
    if scoring == "softmax":
        no_object = torch.zeros_like(drawn.layer_logits[..., :1])
        drawn = replace(drawn, layer_logits=torch.cat([drawn.layer_logits, no_object], -1))
    missing = torch.tensor([gone])
    output = replace(drawn, scoring=scoring, missing=missing)
    others = ModelOutput(
        output.layer_logits[:, :, ~missing[0]],
        output.layer_boxes_cxcywh[:, :, ~missing[0]],
        scoring,
        groups,
    )
    targets = drawn_targets(seed, (objects,))
    criterion = SetCriterion(CATEGORIES, classification=classification)
    normalizer = Normalizer(max(objects, 1), 3.0)
    losses = criterion(output, targets, normalizer)
    expected = criterion(others, targets, normalizer)
    assert losses.total.item() == pytest.approx(expected.total.item(), abs=1e-9)
    for key in ("class", "l1", "giou", "class_0", "l1_0", "giou_0"):
        assert losses.logged[key].item() == pytest.approx(expected.logged[key].item(), abs=1e-9)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_no_object_is_lost_to_a_query_that_stands_for_nothing(
    make_batch: Callable[..., ImageBatch], scoring: str
) -> None:
    # 3 x 4 and 2 x 2 cells a picture; a missing query's outputs are about this very object.
    model = build(**REFINED, **SELECTED, levels=1, num_queries=300, scoring=scoring).train()
    batch = make_batch((64, 96), (50, 40))
    targets = objects_of(1, 1)
    targets = replace(targets, boxes_cxcywh=torch.full_like(targets.boxes_cxcywh, 0.5))
    output = model(batch)
    assert output.missing is not None
    assert output.missing.any(1).all()
    losses = SetCriterion(CLASSES)(output, targets)
    image, query = losses.assignment.image, losses.assignment.query
    assert not output.missing[image, query].any()
    losses.total.backward()
    for name, parameter in model.named_parameters():
        if "box_head.layers.2.weight" in name:
            assert parameter.grad.any(), name


def test_enough_tokens_leave_no_query_missing(make_batch: Callable[..., ImageBatch]) -> None:
    model = build(**REFINED, **SELECTED, **NOISY).train()
    output = model(make_batch((64, 96)), targets=objects_of(2))
    assert output.missing is None
    assert output.layer_logits.shape[2] == QUERIES
