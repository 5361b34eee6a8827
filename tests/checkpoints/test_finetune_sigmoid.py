"""Fine-tuning detectors with sigmoids, whose class columns lie in several heads and tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec
from detr_kit.checkpoints.finetune import load_for_finetuning
from detr_kit.checkpoints.opened import OpenedCheckpoint, class_tables
from detr_kit.checkpoints.report import LoadReport
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

OLD = CategoryTable((1, 2, 3), ("cat", "dog", "owl"))
NEW = CategoryTable((4, 9), ("owl", "newt"))
SMALL = {
    "name": "dino_r50",
    "shared_heads": False,
    "backbone": "plain",
    "backbone_norm": "batch",
    "backbone_weights": "none",
    "levels": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "hidden_dim": 64,
    "num_heads": 2,
    "feedforward_dim": 32,
    "num_queries": 5,
    "denoising_queries": 10,
}
HEADS = ("heads.0", "heads.1", "queries.heads")


def build(categories: CategoryTable, seed: int, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(resolve(ModelConfig(**SMALL | changes)), num_classes=len(categories))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def finetuned(
    model: nn.Module, source: nn.Module, changes: dict[str, Any], old: dict[str, Any]
) -> LoadReport:
    preprocessing = Preprocessing(SizeRule("square", 64, 64), IMAGENET_MEAN, IMAGENET_STD)
    spec = DetectorSpec(resolve(ModelConfig(**SMALL | old)), OLD, preprocessing)
    opened = OpenedCheckpoint("old", "own", spec, dict(source.state_dict()))
    return load_for_finetuning(model, resolve(ModelConfig(**SMALL | changes)), opened, NEW)


@pytest.mark.parametrize("queries", [3, 8])
def test_classes_are_kept_by_name_in_every_head_and_in_denoising(queries: int) -> None:
    changes = {"num_queries": queries}
    source, fresh = build(OLD, 1), build(NEW, 2, **changes)
    model = build(NEW, 2, **changes)
    report = finetuned(model, source, changes, {})
    ours, theirs, random = (part.state_dict() for part in (model, source, fresh))
    for head in HEADS:
        for part in ("weight", "bias"):
            name = f"{head}.class_head.layers.0.{part}"
            assert torch.equal(ours[name][0], theirs[name][2])  # owl
            assert torch.equal(ours[name][1], random[name][1])  # newt is new
    labels = "denoising.labels.weight"
    assert torch.equal(ours[labels][0], theirs[labels][2])
    assert torch.equal(ours[labels][1], random[labels][1])
    assert torch.equal(ours[labels][2], theirs[labels][3])  # stands for nothing
    content, kept = "queries.content.weight", min(queries, 5)
    assert torch.equal(ours[content][:kept], theirs[content][:kept])
    assert torch.equal(ours[content][kept:], random[content][kept:])
    assert not report.missing
    assert not report.dropped
    assert len(report.partial) == 2 * len(HEADS) + 2


@pytest.mark.parametrize(("here", "there"), [("softmax", "sigmoid"), ("sigmoid", "softmax")])
def test_another_scoring_is_warned_of_and_leaves_no_object_alone(here: str, there: str) -> None:
    settings = {"denoising_queries": 0}
    own, old = settings | {"scoring": here}, settings | {"scoring": there}
    source, model, fresh = build(OLD, 1, **old), build(NEW, 2, **own), build(NEW, 2, **own)
    report = finetuned(model, source, own, old)
    assert any(
        note.startswith(f"warning: scoring is {here} here and {there} in the checkpoint")
        for note in report.notes
    )
    name = "heads.1.class_head.layers.0.weight"
    ours, theirs, random = (part.state_dict()[name] for part in (model, source, fresh))
    assert torch.equal(ours[0], theirs[2])
    assert torch.equal(ours[1:], random[1:])


def test_a_checkpoint_from_before_there_was_a_choice_scores_by_softmax() -> None:
    settings = {"denoising_queries": 0, "scoring": "softmax"}
    source, model = build(OLD, 1, **settings), build(NEW, 2, **settings)
    numbers = resolve(ModelConfig(**SMALL | settings))
    preprocessing = Preprocessing(SizeRule("square", 64, 64), IMAGENET_MEAN, IMAGENET_STD)
    older = {key: value for key, value in numbers.items() if key != "scoring"}
    spec = DetectorSpec(older, OLD, preprocessing)
    opened = OpenedCheckpoint("old", "own", spec, dict(source.state_dict()))
    report = load_for_finetuning(model, numbers, opened, NEW)
    assert not any("scoring" in note for note in report.notes)
    name = "heads.0.class_head.layers.0.bias"
    assert torch.equal(model.state_dict()[name][-1], source.state_dict()[name][-1])


def test_other_positions_are_warned_of_whether_or_not_the_checkpoint_names_them() -> None:
    source = build(OLD, 1)
    numbers = resolve(ModelConfig(**SMALL))
    assert not numbers["centered_positions"]
    preprocessing = Preprocessing(SizeRule("square", 64, 64), IMAGENET_MEAN, IMAGENET_STD)
    older = {key: value for key, value in numbers.items() if key != "centered_positions"}
    told = []
    for given in (older, older | {"centered_positions": True}, numbers):
        opened = OpenedCheckpoint(
            "old", "own", DetectorSpec(given, OLD, preprocessing), dict(source.state_dict())
        )
        notes = load_for_finetuning(build(NEW, 2), numbers, opened, NEW).notes
        told.append([note for note in notes if note.startswith("warning: centered_positions")])
    expected = (
        "warning: centered_positions is False here and True in the checkpoint, whose weights were "
        "made for that"
    )
    assert told == [[expected], [expected], []]


TWO_STAGE = {"name": "deformable_detr_r50_two_stage", "denoising_queries": 0}


@pytest.mark.parametrize("queries", [5, 8])
def test_the_column_that_stands_for_all_categories_keeps_its_place(queries: int) -> None:
    """Whatever the categories are called: `owl` is our first column and the source's third."""
    own = TWO_STAGE | {"num_queries": queries}
    source, fresh, model = build(OLD, 1, **TWO_STAGE), build(NEW, 2, **own), build(NEW, 2, **own)
    report = finetuned(model, source, own, TWO_STAGE)
    ours, theirs, random = (part.state_dict() for part in (model, source, fresh))
    for part in ("weight", "bias"):
        name = f"queries.heads.class_head.layers.0.{part}"
        assert torch.equal(ours[name][0], theirs[name][0])
        assert torch.equal(ours[name][1], random[name][1])
        for head in HEADS[:2]:  # those of the decoder's layers go by name
            name = f"{head}.class_head.layers.0.{part}"
            assert torch.equal(ours[name][0], theirs[name][2])
    # Of another model it would be a table of queries; here it is a layer.
    assert "queries.positions.weight" in report.loaded
    assert not any(note.startswith("queries:") for note in report.notes)


LEARNED = {"query_selection": "none", "denoising_queries": 0}
TABLES = [
    ({}, ["content"]),
    (LEARNED | {"query_positions": "sine"}, ["content", "anchors"]),
    (LEARNED | {"query_positions": "learned"}, ["content", "positions"]),
]
THEIRS = (3, 5)  # groups, and queries of each
# What is told of the others.
GROUP_NOTES = {
    (3, 8): ("queries: the first 5 of 5 kept in each group, 3 new",),
    (3, 4): ("queries: the first 4 of 5 kept in each group",),
    (2, 5): ("groups: the first 2 of 3 kept",),
    (4, 6): (
        "queries: the first 5 of 5 kept in each group, 1 new",
        "groups: the first 3 of 3 kept, 1 new",
    ),
    (5, 3): (
        "queries: the first 3 of 5 kept in each group",
        "groups: the first 3 of 3 kept, 2 new",
    ),
    (1, 7): ("queries: the first 5 of 5 kept, 2 new", "groups: the first 1 of 3 kept"),
}


@pytest.mark.parametrize("ours", GROUP_NOTES)
@pytest.mark.parametrize(("kind", "names"), TABLES)
def test_every_group_keeps_its_own_queries(
    kind: dict[str, Any], names: list[str], ours: tuple[int, int]
) -> None:
    own, old = (
        kind | {"groups": groups, "num_queries": queries} for groups, queries in (ours, THEIRS)
    )
    source, fresh, model = build(OLD, 1, **old), build(NEW, 2, **own), build(NEW, 2, **own)
    report = finetuned(model, source, own, old)
    for name in names:
        table, random, given = (
            part.state_dict()[f"queries.{name}.weight"].unflatten(0, sizes)
            for part, sizes in ((model, ours), (fresh, ours), (source, THEIRS))
        )
        groups, queries = (min(pair) for pair in zip(ours, THEIRS, strict=True))
        assert torch.equal(table[:groups, :queries], given[:groups, :queries])
        assert torch.equal(table[groups:], random[groups:])
        assert torch.equal(table[:, queries:], random[:, queries:])
        assert f"queries.{name}.weight" in report.partial
    told = [note for note in report.notes if note.startswith(("queries:", "groups:"))]
    assert told == [*GROUP_NOTES[ours]]


def test_class_tables_are_found_by_the_last_layer_of_each_head() -> None:
    keys = [f"heads.class_head.layers.{i}.{part}" for i in range(3) for part in ("weight", "bias")]
    assert class_tables(keys) == tuple(keys[4:])
    assert set(class_tables(build(NEW, 0).state_dict())) == {
        "denoising.labels.weight",
        *(f"{head}.class_head.layers.0.{part}" for head in HEADS for part in ("weight", "bias")),
    }
