"""Weights & Biases and MLflow: what reaches them, under which run, and what their faults do.

The packages are stand-ins; the trackers in between are Accelerate's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState
from PIL import Image

from detr_kit.config import RunConfig
from detr_kit.errors import DetrKitError
from detr_kit.training.tracking import Trackers, TrackerWarning, flat_config, require_trackers

PICTURE = Image.new("RGB", (4, 3))
Config = Callable[..., RunConfig]


class Wandb(ModuleType):
    """Keeps what it is given, by the id of the run."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.started: list[dict[str, Any]] = []
        self.logged: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.config = SimpleNamespace(values={}, update=self._update)
        self.finished = 0
        self.fault: Exception | None = None

    def init(self, **options: Any) -> Any:
        self.started.append(options)
        self.run_id = options["id"]
        return self

    def _update(self, values: dict[str, Any], *, allow_val_change: bool) -> None:
        self.config.values |= values

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.fault is not None:
            raise self.fault
        self.logged.setdefault(self.run_id, []).append((step, values))

    def Image(self, picture: Image.Image) -> tuple[str, Image.Image]:
        return "shown", picture

    def finish(self) -> None:
        self.finished += 1


class Mlflow(ModuleType):
    """Keeps what it is given, by the id of the run; refuses what the real one refuses."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = ModuleSpec("mlflow", None)
        limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
        self.utils = SimpleNamespace(validation=limits)
        self.runs: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.params: dict[str, str] = {}
        self.pictures: list[tuple[str, int]] = []
        self.names: list[str] = []

    def search_experiments(self, filter_string: str) -> list[Any]:
        return []

    def create_experiment(self, **options: Any) -> str:
        self.names.append(options["name"])
        return "1"

    def start_run(self, run_id: str | None, run_name: str, **options: Any) -> Any:
        if run_id is not None and run_id not in self.runs:
            raise LookupError(f"Run {run_id} not found")
        self.active = run_id or f"run{len(self.runs)}"
        self.runs.setdefault(self.active, [])
        self.names.append(run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=self.active))

    def log_params(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if self.params.setdefault(name, str(value)) != str(value):
                raise ValueError(f"{name} cannot be changed")

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        if any(sign in name for name in values for sign in "()"):
            raise ValueError("Invalid metric name")
        self.runs[self.active].append((step, values))

    def log_image(self, picture: Image.Image, key: str, step: int) -> None:
        self.pictures.append((key, step))

    def end_run(self) -> None:
        del self.active


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    for name in ("WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return _installed(Wandb(), monkeypatch)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    for name in ("EXPERIMENT_NAME", "RUN_ID", "TAGS", "NESTED_RUN"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    return _installed(Mlflow(), monkeypatch)


def _installed(module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    PartialState(cpu=True)  # as in a training
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def config(tiny_config, tmp_path: Path) -> Config:
    (tmp_path / "some_run").mkdir()

    def make(*trackers: str, **changes: Any) -> RunConfig:
        return tiny_config(tmp_path, tmp_path / "some_run", trackers=trackers, **changes)

    return make


def test_a_missing_package_is_named_with_what_to_install(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_trackers(())
    with pytest.raises(DetrKitError, match=r"wandb is not installed: pip install 'detr_kit\[wandb"):
        require_trackers(("wandb",))
    with pytest.raises(DetrKitError, match=r"mlflow is not installed: pip install 'detr_kit\[mlfl"):
        Trackers.start(config("mlflow"), continued=False)


def test_a_run_without_trackers_reports_to_none(config: Config) -> None:
    trackers = Trackers.start(config(), continued=False)
    trackers.log(1, {"loss": 1.0})
    trackers.pictures(1, {"validation/1": PICTURE})
    trackers.close()
    assert list(config().output.iterdir()) == []


def test_wandb_gets_config_numbers_and_pictures(config: Config, wandb: Wandb) -> None:
    trackers = Trackers.start(config("wandb"), continued=False)
    [started] = wandb.started
    assert (started["project"], started["name"]) == ("detr_kit", "some_run")
    assert Path(started["dir"]) == config().output
    assert wandb.config.values["optimizer.lr"] == 1e-3
    trackers.log(20, {"train/loss": 0.5})
    trackers.pictures(20, {"validation/1": PICTURE})
    trackers.close()
    assert wandb.logged[started["id"]] == [
        (20, {"train/loss": 0.5}),
        (20, {"validation/1": [("shown", PICTURE)]}),
    ]
    assert wandb.finished == 1


def test_the_project_of_the_environment_is_taken(
    config: Config, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    Trackers.start(config("wandb"), continued=False)
    assert wandb.started[0]["project"] == "mine"


def test_mlflow_gets_config_numbers_and_pictures(config: Config, mlflow: Mlflow) -> None:
    trackers = Trackers.start(config("mlflow"), continued=False)
    assert mlflow.names == ["detr_kit", "some_run"]
    assert mlflow.params["optimizer.lr"] == "0.001"
    trackers.log(20, {"rates/backbone (no decay)": 0.5})
    trackers.pictures(20, {"validation/1": PICTURE})
    trackers.close()
    assert mlflow.runs == {"run0": [(20, {"rates/backbone _no decay_": 0.5})]}
    assert mlflow.pictures == [("validation/1", 20)]


def test_a_resumed_run_goes_on_as_the_same_run(
    config: Config, wandb: Wandb, mlflow: Mlflow
) -> None:
    Trackers.start(config("wandb", "mlflow"), continued=False).close()
    # what cannot be changed in MLflow stays as it was
    trackers = Trackers.start(config("wandb", "mlflow", epochs=9), continued=True)
    trackers.log(40, {"loss": 1.0})
    first, second = wandb.started
    assert second["id"] == first["id"]
    assert second["resume"] == "allow"
    assert mlflow.runs == {"run0": [(40, {"loss": 1.0})]}
    assert mlflow.params["epochs"] == "4"


def test_a_run_begun_anew_is_another_run(config: Config, wandb: Wandb, mlflow: Mlflow) -> None:
    for _ in range(2):
        Trackers.start(config("wandb", "mlflow"), continued=False).close()
    assert wandb.started[0]["id"] != wandb.started[1]["id"]
    assert list(mlflow.runs) == ["run0", "run1"]


@pytest.mark.parametrize("content", ["", "nonsense", "[1]", '{"mlflow": "gone"}'])
def test_a_run_that_cannot_be_continued_is_begun_anew(
    config: Config, mlflow: Mlflow, content: str, recwarn: pytest.WarningsRecorder
) -> None:
    path = config().output / "trackers.json"
    path.write_text(content)
    Trackers.start(config("mlflow"), continued=True).close()
    assert json.loads(path.read_text()) == {"mlflow": "run0"}
    told = [str(warning.message) for warning in recwarn]
    assert len(told) == ("gone" in content)
    assert all("cannot continue run gone, a new one is begun" in text for text in told)


def test_a_tracker_that_does_not_start_is_one_line(
    config: Config, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(DetrKitError, match=r"^trackers: wandb did not start: .*no route to host;"):
        Trackers.start(config("wandb"), continued=False)


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(
    config: Config, wandb: Wandb, mlflow: Mlflow
) -> None:
    trackers = Trackers.start(config("wandb", "mlflow"), continued=False)
    wandb.fault = ConnectionError("no route")
    with pytest.warns(TrackerWarning, match="wandb failed and is left out from now on: Conn"):
        trackers.log(1, {"loss": 1.0})
    trackers.log(2, {"loss": 2.0})
    trackers.close()
    assert mlflow.runs["run0"] == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]
    assert wandb.finished == 0


def test_a_config_is_flat(config: Config) -> None:
    values = flat_config(config("wandb"))
    assert values["trackers"] == '["wandb"]'
    assert values["model.name"] == "detr_small"
    assert values["data.train.images"].endswith("train")
    assert values["model.drop_path"] is None
    assert all(isinstance(value, str | int | float | None) for value in values.values())
