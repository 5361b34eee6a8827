"""What a run says of itself before its first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detr_kit.config import RunConfig
from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.errors import DetrKitError
from detr_kit.training.session import Session
from detr_kit.training.startup import initial_model
from detr_kit.training.summary import setup_rows

NAMES = ("circle", "square", "star", "cross")


def annotations_of(folder: Path, name: str, pictures: list[list[str]]) -> CocoAnnotations:
    """A split of pictures, each given by the names of its objects."""
    rows = [(image, thing) for image, things in enumerate(pictures, 1) for thing in things]
    coco = {
        "images": [
            {"id": image, "width": 50, "height": 40, "file_name": f"{image}.jpg"}
            for image in range(1, len(pictures) + 1)
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": NAMES.index(thing), "bbox": [5, 5, 9, 9]}
            for i, (image, thing) in enumerate(rows)
        ],
        "categories": [{"id": i, "name": thing} for i, thing in enumerate(NAMES)],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(coco))
    return load_annotations(path)


@pytest.fixture
def complete(tmp_path: Path) -> CocoAnnotations:
    return annotations_of(tmp_path, "complete", [list(NAMES)] * 2)


@pytest.fixture
def rows_of(
    tiny_config: Callable[..., RunConfig], complete: CocoAnnotations, tmp_path: Path
) -> Callable[..., dict[str, str]]:
    """Make the rows of a tiny run with changed keys, on complete data unless given others."""

    def make(
        *,
        train: CocoAnnotations = complete,
        val: CocoAnnotations = complete,
        world_size: int = 1,
        freeze: str = "",
        **changes: Any,
    ) -> dict[str, str]:
        config = tiny_config(tmp_path, tmp_path / "run", **changes)
        start = initial_model(config, train.categories)
        if freeze:
            start.model.get_submodule(freeze).requires_grad_(False)
        return setup_rows(
            config, start, train, val, world_size=world_size, device=torch.device("cpu")
        )

    return make


def test_a_plain_run_has_no_warning_but_that_of_its_size(
    rows_of: Callable[..., dict[str, str]],
) -> None:
    rows = rows_of()
    assert list(rows) == [
        "run", "model", "weights", "train", "val", "batch", "rates", "warning: scratch",
    ]  # fmt: skip
    assert rows["batch"] == "4 images a step: 1 process with 1 batch of up to 4"
    assert rows["rates"] == "backbone 0.001, rest 0.001"
    assert "frozen" not in rows["model"]


def test_a_split_without_objects_of_a_class_is_told(
    rows_of: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    two = annotations_of(tmp_path, "two", [["circle", "star"], []])
    three = annotations_of(tmp_path, "three", [["circle", "star", "cross"]])
    rows = rows_of(train=two, val=three)
    assert rows["warning: classes"] == (
        "2 of 4 categories have no object in the training split and can never be learned: "
        "square, cross"
    )
    assert rows["warning: AP"] == (
        "1 of 4 categories has no object in the validation split, so that AP says nothing of: "
        "square"
    )


def test_objects_beyond_the_queries_are_counted(
    rows_of: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    crowded = annotations_of(
        tmp_path, "crowded", [["star"] * 7, ["star"] * 6, ["star"] * 9, list(NAMES)]
    )
    assert rows_of(train=crowded)["warning: queries"] == (
        "an image holds up to 9 objects and the model has 6 queries: 4 objects in 2 training "
        "pictures can never be found; raise model.num_queries"
    )
    one = annotations_of(tmp_path, "one", [["star"] * 7])
    assert (
        "4 objects in 2 training pictures and 1 object in 1 validation picture can"
        in (rows_of(train=crowded, val=one)["warning: queries"])
    )


def test_batch_and_scaled_rates_are_told(rows_of: Callable[..., dict[str, str]]) -> None:
    rates = {"lr": 1e-4, "lr_backbone": 1e-5, "recipe_batch": 16}
    changes = {"batch_size": 4, "accumulate": 8, "world_size": 2}
    rows = rows_of(**changes, optimizer=rates | {"scale_lr": "sqrt"})
    assert rows["batch"] == "64 images a step: 2 processes with 8 batches of up to 4"
    assert rows["rates"] == (
        "backbone 2e-05, rest 0.0002 (stated for 16 images a step, scaled by square root to 64)"
    )
    assert rows_of(**changes, optimizer=rates)["rates"] == "backbone 1e-05, rest 0.0001"


def test_rates_of_layers_are_told_by_their_ends(rows_of: Callable[..., dict[str, str]]) -> None:
    rows = rows_of(
        family="yolos",
        optimizer={"lr": 1e-3, "lr_backbone": 1e-3, "layer_decay": 0.5, "decay": "yolos"},
    )
    assert rows["rates"] == "backbone 0.00025 to 0.001, rest 0.001"


def test_a_rate_that_cannot_be_scaled_is_refused(rows_of: Callable[..., dict[str, str]]) -> None:
    with pytest.raises(DetrKitError, match=r"needs optimizer\.recipe_batch"):
        rows_of(optimizer={"scale_lr": "linear"})


def test_frozen_parameters_are_counted(rows_of: Callable[..., dict[str, str]]) -> None:
    model = rows_of(freeze="backbone")["model"]
    total, trained, frozen = (float(part.split("M ")[0]) for part in model.split(", ")[1:])
    assert model.endswith("M frozen")
    assert frozen > 0
    assert trained + frozen == pytest.approx(total, abs=2e-3)


def test_rarer_settings_are_told_where_they_are_used(
    rows_of: Callable[..., dict[str, str]],
) -> None:
    rows = rows_of(
        precision="bf16",
        compile=True,
        average={"decay": 0.9998, "warmup_steps": 2000},
        evaluation={"metric": "ap50", "patience": 5, "min_gain": 0.01},
        checkpoint={"minutes": None, "steps": 500, "keep": 3, "keep_every": 10},
    )
    assert rows["run"].endswith("epochs on cpu, bf16, compiled")
    assert rows["average"] == (
        "weights averaged with decay 0.9998, reached over 2000 steps: they are evaluated and kept"
    )
    assert rows["evaluation"] == (
        "the best checkpoint is that of the highest ap50; training ends after 5 evaluations "
        "without a gain of more than 0.01 in ap50"
    )
    assert rows["checkpoints"] == (
        "saved after each epoch, every 500 steps; kept: the newest 3 epochs, one epoch in 10"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": {"warmup_steps": 12}}, "the run has 12 steps: it never gets to"),
        ({"average": {"decay": 0.99}}, "averages over some 100 steps, but the run has 12"),
        ({"schedule": {"warmup_steps": 11}, "average": {"decay": 0.9}}, None),
        # an average that reaches back over a tenth of the steps so far, as that of small_data
        ({"average": {"decay": 0.995, "warmup_steps": 2000}}, None),
        # one that has its full decay from the second step on
        ({"average": {"decay": 0.995, "warmup_steps": 1}}, "averages over some 200 steps, but"),
    ],
)
def test_warm_ups_that_are_longer_than_the_run(
    tiny_config, sample: Path, tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    config = tiny_config(sample, tmp_path / "run", **changes)  # 4 epochs of 10 pictures, 4 a step
    said = Session(config).setup_rows.get("warning: warm-up")
    assert (said is None) if message is None else (message in str(said))
