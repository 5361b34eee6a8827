"""The check of whether a config can learn a few pictures: its budget, and what wins over it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from detr_kit.config import RunConfig, load_config
from detr_kit.data.sample import write_sample
from detr_kit.errors import DetrKitError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def overfit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("overfit")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough pictures for eight of them to have two objects."""
    folder = tmp_path_factory.mktemp("data") / "sample"
    write_sample(folder, "easy", seed=3, train=30, val=1)
    return folder


def single_objects(sample: Path, folder: Path, *, but: int) -> Path:
    """Write a json in which all pictures but the first so many have one object."""
    coco = json.loads((sample / "annotations/train.json").read_text())
    kept, seen = [], set[int]()
    for one in coco["annotations"]:
        if one["image_id"] <= but or one["image_id"] not in seen:
            kept.append(one)
        seen.add(one["image_id"])
    path = folder / f"single_but_{but}.json"
    path.write_text(json.dumps(coco | {"annotations": kept}))
    return path


@pytest.fixture
def settled(overfit: Any, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the config that the check trains for a config's name, and its budget."""

    def fake(path: str, overrides: list[str]) -> Any:
        return SimpleNamespace(config=load_config(path, overrides))

    monkeypatch.setattr(overfit, "train", fake)
    monkeypatch.chdir(tmp_path)

    def settle(name: str, *overrides: str, steps: int | None = None) -> tuple[RunConfig, Any]:
        given = [
            f"data.train.annotations={sample}/annotations/train.json",
            f"data.train.images={sample}/train",
            *overrides,
        ]
        run, budget = overfit.train_by_heart(str(ROOT / f"configs/{name}.yaml"), given, steps=steps)
        return run.config, budget

    return settle


def pictures(config: RunConfig) -> int:
    assert config.data.train is not None
    return len(json.loads(config.data.train.annotations.read_text())["images"])


@pytest.mark.parametrize(
    ("name", "steps"),
    [("small_data", 400), ("bccd", 400), ("dino_r50_12ep", 400), ("detr_small_data", 2000),
     ("detr_r50", 2000), ("yolos_ti", 2000)],
)  # fmt: skip
def test_the_budget_is_made_for_eight_pictures(settled: Any, name: str, steps: int) -> None:
    config, budget = settled(name)
    step_images = config.batch_size * config.accumulate
    assert config.epochs == 20
    assert 20 * -(-pictures(config) // step_images) == budget.steps == steps
    assert config.schedule.warmup_steps <= steps / 20
    assert config.average.decay == 0
    assert (config.evaluation.every, config.evaluation.patience) == (1, None)
    assert config.output.name == f"{load_config(ROOT / f'configs/{name}.yaml').output.name}_overfit"
    # What is trained on is what is evaluated.
    assert (config.data.augmentation, config.image_size.train_short_sides) == ("none", ())
    assert config.model.dropout == 0


def test_what_is_given_wins(settled: Any) -> None:
    config, budget = settled(
        "small_data", "epochs=60", "schedule.warmup_steps=50", "average.decay=0.9",
        "evaluation.every=7", "model.dropout=0.1", "output=here", "batch_size=4",
    )  # fmt: skip
    assert (config.epochs, pictures(config), budget.steps) == (60, 8, 120)
    assert (config.schedule.warmup_steps, config.average.decay) == (50, 0.9)
    assert (config.evaluation.every, config.model.dropout) == (7, 0.1)
    assert config.output == Path("here")


def test_epochs_and_steps_can_be_asked_for(settled: Any) -> None:
    config, budget = settled("small_data", "epochs=60", "output=epochs")
    assert (budget.steps, config.schedule.warmup_steps, config.evaluation.every) == (60, 3, 3)
    config, budget = settled("small_data", "batch_size=auto", "output=auto", steps=100)
    assert (config.epochs, pictures(config), budget.steps) == (20, 40, 100)
    config, budget = settled("small_data", "output=few", steps=3)
    assert (config.epochs, pictures(config), budget.steps) == (3, 8, 3)


def test_a_step_holds_no_more_than_all_pictures(settled: Any) -> None:
    config, _ = settled("small_data", "output=given", "batch_size=16")
    assert config.batch_size == 16
    config, _ = settled("quickstart")  # 16 a batch
    assert config.batch_size == 8
    config, _ = settled("detr_small_data", "accumulate=8")
    assert (config.batch_size, config.accumulate) == (4, 8)


def test_fewer_pictures_are_no_more_work(settled: Any, sample: Path, tmp_path: Path) -> None:
    few = single_objects(sample, tmp_path, but=7)
    config, budget = settled("small_data", f"data.train.annotations={few}", steps=40)
    assert config.batch_size == budget.pictures < 8
    assert (pictures(config), budget.steps) == (2 * budget.pictures, 40)
    none = single_objects(sample, tmp_path, but=0)
    with pytest.raises(DetrKitError, match=r"single_but_0\.json: no picture holds two objects"):
        settled("small_data", f"data.train.annotations={none}", "output=none")


def test_pictures_are_repeated_whole(overfit: Any, sample: Path) -> None:
    few = overfit.subset(sample / "annotations/train.json")
    often = overfit.repeated(few, 3)
    assert len({image["id"] for image in often["images"]}) == 3 * len(few["images"]) == 24
    assert len({one["id"] for one in often["annotations"]}) == 3 * len(few["annotations"])
    files = {image["id"]: image["file_name"] for image in often["images"]}
    shown = sorted((files[one["image_id"]], one["bbox"]) for one in often["annotations"])
    once = {image["id"]: image["file_name"] for image in few["images"]}
    assert shown == sorted(
        (once[one["image_id"]], one["bbox"]) for one in few["annotations"] for _ in range(3)
    )


def test_the_verdict_of_a_run(
    overfit: Any, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments = [
        str(ROOT / "configs/quickstart.yaml"),
        f"data.train.annotations={sample}/annotations/train.json",
        f"data.train.images={sample}/train",
        f"output={tmp_path}/run",
        "image_size.short_side=64",
        "data.num_workers=0",
    ]
    monkeypatch.setattr(sys, "argv", ["overfit.py", "--steps", "4", *arguments])
    assert overfit.main() == 1
    assert "on 8 pictures; above 0.9: never; 4 of 4 steps, " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["overfit.py", *arguments, "--steps", "0"])
    with pytest.raises(DetrKitError, match=r"--steps 0: must be at least 1"):
        overfit.main()
