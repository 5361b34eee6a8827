"""The benchmark of learning from few pictures: its steps, its rates, and what it has recorded."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from detr_kit.config import load_config
from detr_kit.models.zoo import resolve

BENCHMARK = Path(__file__).resolve().parents[1] / "tools/benchmark"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARK)
    return importlib.import_module


def row(name: str, started: str, *, minutes: float = 1.0, final: bool = False) -> dict[str, Any]:
    common = {"seed": 0, "budget": 2.0, "split": "val", "ap50": 0.1}
    return common | {"name": name, "started": started, "minutes": minutes, "final": final}


def test_every_step_has_settings_that_go_together(load: Any) -> None:
    ladder: ModuleType = load("ladder")
    steps = ladder.ladder([])
    numbers = [resolve(load_config(ladder.CONFIG, overrides).model) for overrides in steps.values()]
    # The last steps add a loss, which is no number of the model.
    assert numbers[0]["family"] == "detr"
    assert numbers[-1]["denoising_queries"] == 50
    assert numbers[-1]["groups"] == 3


def test_a_step_keeps_the_parts_before_and_what_is_given_comes_last(load: Any) -> None:
    steps = list(load("ladder").ladder(["model.levels=2"]).values())
    assert all(overrides[-1] == "model.levels=2" for overrides in steps)
    assert all(set(steps[0]) <= set(overrides) for overrides in steps)


def test_a_training_that_came_to_its_end_counts_before_a_newer_one_that_did_not(load: Any) -> None:
    records = load("small_data_records")
    rows = [row("a", "1"), row("a", "2"), row("a", "2", minutes=2.0, final=True), row("a", "3")]
    [(name, own)] = records.trainings(rows).items()
    assert name == "a"
    assert [one["minutes"] for one in own] == [1.0, 2.0]


def test_only_a_training_of_the_same_settings_that_came_to_its_end_is_done(load: Any) -> None:
    records = load("small_data_records")
    rows = [row("a", "1", final=True), row("b", "2")]
    assert records.is_done(rows, {"name": "a", "seed": 0})
    assert not records.is_done(rows, {"name": "a", "seed": 1})
    assert not records.is_done(rows, {"name": "a", "trial": {}})
    assert not records.is_done(rows, {"name": "b"})


def test_a_line_that_was_cut_off_is_left_out_and_written_over(load: Any, tmp_path: Path) -> None:
    records = load("small_data_records").Records(tmp_path / "new/record.jsonl")
    assert records.rows() == []
    records.write(row("a", "1"))
    with records.path.open("a") as file:
        file.write('{"name": "b", "sta')
    assert records.rows() == [row("a", "1")]
    records.write(row("c", "2"))
    assert records.rows() == [row("a", "1"), row("c", "2")]


def test_a_training_is_known_by_its_data_and_weights(load: Any) -> None:
    here = {"data": Path("/here/bccd"), "weights": Path("/here/lite0.safetensors")}
    described = trial(load, **here).described()
    there = {"data": Path("/there/bccd"), "weights": Path("/there/lite0.safetensors")}
    assert trial(load, **there).described() == described
    assert trial(load, **here | {"data": Path("/here/other")}).described() != described
    assert trial(load, **here | {"weights": Path("/here/other")}).described() != described


def trial(load: Any, **given: Any) -> Any:
    numbers: dict[str, Any] = {
        "data": Path(),
        "weights": Path(),
        "minutes": 2.0,
        "every": 1.0,
        "seed": 0,
        "batch_size": 8,
        "size_hw": (256, 320),
        "augmentation": "flip",
        "schedule": "cosine",
        "warmup_steps": 9,
    }
    return load("small_data_trial").Trial(**numbers | given)


def test_pictures_are_in_one_folder_or_in_one_a_split_as_the_sample_data_has(
    load: Any, tmp_path: Path
) -> None:
    own = trial(load, data=tmp_path)
    assert own.split("val")["images"] == str(tmp_path / "val")
    (tmp_path / "images").mkdir()
    assert own.split("val")["images"] == str(tmp_path / "images")
    assert own.split("val")["annotations"] == str(tmp_path / "annotations/val.json")


def test_costs_are_compared_turn_by_turn(load: Any) -> None:
    rungs = [SimpleNamespace(name=name, parameters=size) for name, size in (("a", 1e6), ("b", 2e6))]
    turns = [[(0.1, 0.01), (0.3, 0.01)], [(0.2, 0.02), (0.2, 0.01)], [(0.1, 0.01), (0.2, 0.03)]]
    table = load("ladder_costs").table(rungs, turns, ["5", "7"])
    _, first, second = (" ".join(line.split()) for line in table.splitlines())
    assert first == "a 1.00M 100 (100-200) 1.00 (1.00-1.00) 10 (10-20) 1.00 (1.00-1.00) 5"
    assert second == "b 2.00M 200 (200-300) 2.00 (1.00-3.00) 10 (10-30) 1.00 (0.50-3.00) 7"


@pytest.mark.parametrize(("schedule", "end"), [("cosine", 0.0), ("constant", 1.0)])
def test_rates_warm_up_over_steps_and_follow_the_clock(
    load: Any, schedule: str, end: float
) -> None:
    own = trial(load, schedule=schedule)
    assert own.rate_factor(0, 0.0) == pytest.approx(0.1)
    assert own.rate_factor(9, 0.0) == pytest.approx(1.0)
    assert own.rate_factor(500, 60.0) == pytest.approx((1 + end) / 2)
    assert own.rate_factor(1000, 130.0) == pytest.approx(end)
