"""Weights & Biases and MLflow, for runs that ask for them, through Accelerate's trackers.

Where they send to, and whether they do, is said by their own environment variables, such as
WANDB_MODE=offline and MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, WandBTracker
from PIL import Image

from detr_kit.config import RunConfig
from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.files import atomic_write
from detr_kit.images import one_line
from detr_kit.training.run_files import TRACKERS_FILE

# What runs are listed under, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise.
PROJECT = "detr_kit"


class TrackerWarning(DetrKitWarning):
    """A tracker cannot do what it should; the training goes on."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise DetrKitError, with what to install, for a tracker whose package is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise DetrKitError(
                f"trackers: {name} is not installed: pip install 'detr_kit[{name}]', or train "
                "without it: trackers=[]"
            )


class Trackers:
    """The trackers that a run reports to, besides its own folder; none unless some are started.

    One that fails in mid-run is warned of and left out from then on: a training is worth more
    than its display.
    """

    def __init__(self, started: Mapping[str, GeneralTracker] | None = None) -> None:
        self._trackers = dict(started or {})

    @classmethod
    def start(cls, config: RunConfig, *, continued: bool) -> Trackers:
        """Start those that `config` names, a run being called like its folder.

        A run that is `continued` goes on under the ids that it had, kept in its folder; where that
        is not possible, it goes on under new ones, with a warning. Raises DetrKitError for a
        tracker that does not start.
        """
        require_trackers(config.trackers)
        path = config.output / TRACKERS_FILE
        known = _read_ids(path) if continued else {}
        ids: dict[str, str] = {}
        started: dict[str, GeneralTracker] = {}
        for name in config.trackers:
            tracker, ids[name] = _started(name, config.output, known.get(name))
            started[name] = tracker
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(known | ids) + "\n", encoding="utf-8")
            if ids[name] != known.get(name):
                tracker.store_init_configuration(flat_config(config))
        return cls(started)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, tracker in self._each():
            named = _mlflow_names(values) if name == "mlflow" else dict(values)
            self._try(name, partial(tracker.log, named, step=step))

    def pictures(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        for name, tracker in self._each():
            show = _mlflow_pictures if name == "mlflow" else _wandb_pictures
            self._try(name, partial(show, tracker, step, pictures))

    def close(self) -> None:
        for name, tracker in self._each():
            self._try(name, tracker.finish)

    def _each(self) -> Iterator[tuple[str, Any]]:
        yield from tuple(self._trackers.items())

    def _try(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever a service or the way to it makes of it
            self._trackers.pop(name, None)
            warnings.warn(
                f"{name} failed and is left out from now on: {_reason(error)}",
                TrackerWarning,
                stacklevel=3,
            )


def flat_config(config: RunConfig) -> dict[str, str | int | float | bool | None]:
    """Return a config with dotted keys, lists as json texts."""
    return dict(_flat(config.model_dump(mode="json"), ""))


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value) if isinstance(value, list) else value


def _read_ids(path: Path) -> dict[str, str]:
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # never written, or by other hands
        return {}
    return ids if isinstance(ids, dict) else {}


def _started(name: str, folder: Path, known: str | None) -> tuple[GeneralTracker, str]:
    """Return a running tracker and the id of its run."""
    start = _start_wandb if name == "wandb" else _start_mlflow
    try:
        return start(folder, known)
    except Exception as error:  # of a service, a network, a setting
        if known is None:
            raise DetrKitError(
                f"trackers: {name} did not start: {_reason(error)}; trackers=[] trains without it"
            ) from error
        warnings.warn(
            f"{name} cannot continue run {known}, a new one is begun: {_reason(error)}",
            TrackerWarning,
            stacklevel=4,
        )
        return _started(name, folder, None)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _start_wandb(folder: Path, known: str | None) -> tuple[GeneralTracker, str]:
    run_id = known or secrets.token_hex(4)
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        name=folder.resolve().name,
        id=run_id,
        resume="allow",
        dir=os.environ.get("WANDB_DIR", str(folder)),
    )
    tracker.start()
    return tracker, run_id


def _start_mlflow(folder: Path, known: str | None) -> tuple[GeneralTracker, str]:
    tracker = MLflowTracker(PROJECT, run_id=known, run_name=folder.resolve().name)
    tracker.start()
    return tracker, tracker.tracker.info.run_id


def _mlflow_names(values: Mapping[str, float]) -> dict[str, float]:
    """Replace the characters that MLflow refuses in names."""
    return {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}


def _wandb_pictures(tracker: Any, step: int, pictures: Mapping[str, Image.Image]) -> None:
    tracker.log_images({name: [picture] for name, picture in pictures.items()}, step=step)


def _mlflow_pictures(tracker: Any, step: int, pictures: Mapping[str, Image.Image]) -> None:
    import mlflow

    for name, picture in pictures.items():
        mlflow.log_image(picture, key=name, step=step)
