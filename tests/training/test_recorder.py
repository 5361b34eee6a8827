"""The record of a run: what it holds, and that it neither loses nor repeats an epoch."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detr_kit.data.sample import write_sample
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import load_ground_truth
from detr_kit.training.recorder import Recorder
from detr_kit.training.run_files import EVENTS_FOLDER, METRICS_FILE, read_metrics


def row(epoch: int, **more: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": 50 * epoch,
        "lr": 1e-4,
        "rates": {"backbone": 1e-5, "rest": 1e-4},
        "images_per_second": 10.5,
        "seconds_waiting": 0.25,
        "skipped_steps": 2,
        "train": {"loss": 1 / epoch, "class_0": 0.5, "grad_norm": 3.0},
        "matching": {"query_changed": None, "queries_never_matched": 7},
    } | more


def record(folder: Path, *rows: dict[str, Any], after_epoch: int = 0, after_step: int = 0) -> None:
    recorder = Recorder(folder, after_epoch=after_epoch, after_step=after_step)
    for each in rows:
        recorder.epoch(each)
    recorder.close()


def epochs(folder: Path) -> list[int]:
    return [each["epoch"] for each in read_metrics(folder)]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / EVENTS_FOLDER))
    accumulator.Reload()
    return accumulator


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = [row(1), row(2, val={"ap": 0.25, "per_class": {"cat": None}})]
    record(tmp_path, *rows)
    assert read_metrics(tmp_path) == rows


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    record(tmp_path, row(1, train={"loss": math.nan, "l1": [math.inf, 1.0]}))
    text = (tmp_path / METRICS_FILE).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["train"] == {
        "loss": None,
        "l1": [None, 1.0],
    }


def test_tensorboard_has_the_parts_of_an_epoch(tmp_path: Path) -> None:
    val = {"ap": 0.25, "ap_small": None, "num_images": 5, "per_class": {"cat": 0.1}}
    val["others"] = {"ap30": 0.5}
    costs = {"cost_class": -0.5, "cost_l1": 0.3, "cost_giou": -0.2, "loss": 2.0}
    record(tmp_path, row(1, val=val, train=costs))
    shown = {tag: points(tmp_path, tag) for tag in events(tmp_path).Tags()["scalars"]}
    assert all(step == 50 for values in shown.values() for step, _ in values)
    assert {tag: values[0][1] for tag, values in shown.items()} == pytest.approx(
        {
            "lr": 1e-4,
            "rates/backbone": 1e-5,
            "rates/rest": 1e-4,
            "images_per_second": 10.5,
            "seconds_waiting": 0.25,
            "skipped_steps": 2,
            "train/loss": 2.0,
            "train/cost_share_class": 0.5,
            "train/cost_share_l1": 0.3,
            "train/cost_share_giou": 0.2,
            "matching/queries_never_matched": 7,
            "val/ap": 0.25,
            "val/ap30": 0.5,
        }
    )


def test_steps_are_written_as_means_of_what_is_finite(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    for step in range(1, 51):
        broken = step == 7
        recorder.step(step, {"loss": math.nan if broken else float(step), "skipped": float(broken)})
    recorder.close()
    first = (sum(range(1, 21)) - 7) / 19
    assert dict(points(tmp_path, "step/loss")) == pytest.approx({20: first, 40: 30.5})
    assert dict(points(tmp_path, "step/skipped")) == pytest.approx({20: 0.05, 40: 0.0})


def test_an_epoch_cut_off_at_any_byte_is_neither_lost_nor_repeated(tmp_path: Path) -> None:
    """A killed process leaves a beginning of what it appended."""
    record(tmp_path / "whole", row(1), row(2), row(3))
    content = (tmp_path / "whole" / METRICS_FILE).read_bytes()
    first_two = len(b"".join(content.splitlines(keepends=True)[:2]))
    assert read_metrics(tmp_path / "whole") == [row(1), row(2), row(3)]
    folder = tmp_path / "cut"
    folder.mkdir()
    for length in [*range(first_two, len(content), 9), len(content) - 1, len(content)]:
        (folder / METRICS_FILE).write_bytes(content[:length])
        assert epochs(folder) == ([1, 2, 3] if length == len(content) else [1, 2])
        # the checkpoint is of epoch 2: epoch 3 is trained again
        record(folder, row(3), after_epoch=2)
        assert (folder / METRICS_FILE).read_bytes() == content


def test_a_run_begun_anew_drops_an_older_record(tmp_path: Path) -> None:
    record(tmp_path, row(1), row(2))
    record(tmp_path, row(1))
    assert epochs(tmp_path) == [1]
    assert points(tmp_path, "train/loss") == [(50, 1.0)]


def test_a_run_resumed_inside_an_epoch_repeats_no_step(tmp_path: Path) -> None:
    first = Recorder(tmp_path)
    for step in range(1, 101):
        first.step(step, {"loss": 1.0})
        if step == 50:
            first.epoch(row(1))
    first.epoch(row(2))
    first.close()
    # the newest checkpoint is of step 65
    second = Recorder(tmp_path, after_epoch=1, after_step=65)
    for step in range(66, 101):
        second.step(step, {"loss": 2.0})
    second.epoch(row(2))
    second.close()
    assert epochs(tmp_path) == [1, 2]
    assert points(tmp_path, "step/loss") == [(20, 1), (40, 1), (60, 1), (80, 2), (100, 2)]
    assert points(tmp_path, "train/loss") == [(50, 1.0), (100, 0.5)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text('{"epoch": 1}\nnonsense\n'), "line 2 is no json"),
        (lambda path: path.write_text('{"epoch": 1}\n[1]\n'), "line 2 is not the record"),
        (lambda path: path.write_text('{"epoch": null}\n'), "line 1 is not the record"),
        (lambda path: path.write_bytes(b"\xff\xfe\n"), "line 1 is no json"),
    ],
)
def test_a_broken_record_is_one_line(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(tmp_path / METRICS_FILE)
    with pytest.raises(DetrKitError, match=f"{METRICS_FILE}: {message}"):
        read_metrics(tmp_path)


def test_pictures_show_objects_and_what_was_found(tmp_path: Path) -> None:
    write_sample(tmp_path / "data", "easy", seed=3, train=1, val=6)
    truth = load_ground_truth(tmp_path / "data/annotations/val.json")
    (tmp_path / "data/val" / truth.file_names[0]).unlink()
    category = np.full(1, truth.categories.ids[0])
    found = ResultColumns(
        "test", truth.image_ids[1:2], category, np.array([[5.0, 5.0, 40.0, 30.0]]), np.array([0.9])
    )
    recorder = Recorder(tmp_path)
    for results in (found, ResultColumns("none", *(part[:0] for part in _columns(found)))):
        recorder.pictures(50, results, truth, tmp_path / "data/val")
    recorder.close()
    shown = events(tmp_path)
    # the first four with objects, save for the one that is gone
    assert shown.Tags()["images"] == ["validation/1", "validation/2", "validation/3"]
    with_box, without = (_pixels(event) for event in shown.Images("validation/1"))
    height, width = truth.sizes_hw[1].tolist()
    assert with_box.shape == (height, 2 * width + 8, 3)
    differs = np.abs(with_box.astype(int) - without).max(axis=(0, 2)) > 40
    assert not differs[:width].any()
    assert differs[width + 8 :].any()
    assert shown.Images("validation/1")[0].step == 50


def _columns(found: ResultColumns) -> tuple[np.ndarray, ...]:
    return found.image_ids, found.category_ids, found.boxes_xywh, found.scores


def _pixels(event: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
