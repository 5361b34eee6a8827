"""What a run needs beside its weights to go on as if it had never stopped.

Data order, augmentation and the random streams of the model are keyed by (seed, step or epoch,
process), so that the number of steps stands for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write

STATE_FORMAT = 3
_STATE_FILE = Path("training_state") / "state.pt"


@dataclass
class Progress:
    """How far a run has come, the same in all processes.

    `epoch` counts those that are finished, with their evaluation; `step_in_epoch` the optimiser
    steps since. `best_value` is the highest of `metric`, `gain_value` the last one that `patience`
    took for a gain, `without_gain` the evaluations since.
    """

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    metric: str = "ap"
    best_value: float | None = None
    best_epoch: int | None = None
    gain_value: float | None = None
    without_gain: int = 0

    def is_over(self, epochs: int, patience: int | None) -> bool:
        """Whether all epochs are trained, or patience is at its end."""
        return self.epoch >= epochs or (patience is not None and self.without_gain >= patience)

    def choose_by(self, metric: str) -> None:
        """Judge by another metric from now on: values of the old one compare with none of it."""
        self.metric = metric
        self.best_value = self.best_epoch = self.gain_value = None
        self.without_gain = 0

    def judge(self, value: float, *, min_gain: float) -> bool:
        """Take in the metric after the last finished epoch; return whether it is the best."""
        if self.gain_value is None or value > self.gain_value + min_gain:
            self.gain_value, self.without_gain = value, 0
        else:
            self.without_gain += 1
        is_best = self.best_value is None or value > self.best_value
        if is_best:
            self.best_value, self.best_epoch = value, self.epoch
        return is_best


@dataclass
class EpochRecord:
    """What a process has seen of the epoch so far; all of it is known on the host.

    `sums` holds the sums of logged values over `steps` steps; `skipped_steps` were left out of
    both. `objects_cut` counts objects beyond the queries, `skipped_files` says which pictures
    could not be read.
    """

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    skipped_steps: int = 0
    images: int = 0
    objects_cut: int = 0
    seconds: float = 0.0
    seconds_waiting: float = 0.0
    skipped_files: list[str] = field(default_factory=list)

    def add(self, values: Mapping[str, float]) -> None:
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    @classmethod
    def shared(cls, parts: Sequence[EpochRecord], *, rank: int, world_size: int) -> EpochRecord:
        """Return the record of a process of `world_size` from those that others have kept.

        As many as there were: each goes on with its own. Else the first takes what is counted,
        and each an equal share of the sums, so that totals and means come out the same.
        """
        if len(parts) == world_size:
            return parts[rank]
        first = parts[0]
        names = dict.fromkeys(name for part in parts for name in part.sums)
        record = cls(
            {name: sum(part.sums.get(name, 0.0) for part in parts) / len(parts) for name in names},
            steps=first.steps,
            skipped_steps=first.skipped_steps,
            seconds=first.seconds,
            seconds_waiting=first.seconds_waiting,
        )
        if rank == 0:
            record.images = sum(part.images for part in parts)
            record.objects_cut = sum(part.objects_cut for part in parts)
            record.skipped_files = [name for part in parts for name in part.skipped_files]
        return record


@dataclass
class TrainingState:
    """The content of `training_state/`.

    `data_digest` tells the training split from others, see `digest_of`; `step_images` is what a
    step holds of it: else the data would come in another order. `gated_in_a_row` counts the last
    steps that changed nothing. `records` and `matching` are lists by process.
    """

    progress: Progress
    data_digest: int
    step_images: int
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
    average: dict[str, Any] | None
    gated_in_a_row: int
    records: list[EpochRecord]
    matching: list[dict[str, Any]]


def save_training_state(checkpoint: Path, state: TrainingState) -> None:
    """Write `training_state/` into a checkpoint folder."""
    values = {"format": STATE_FORMAT} | {
        name: value for name, value in vars(state).items() if name not in ("progress", "records")
    }
    values["progress"] = asdict(state.progress)
    values["records"] = [asdict(record) for record in state.records]
    with atomic_write(checkpoint / _STATE_FILE) as path:
        torch.save(values, path)


def load_training_state(checkpoint: Path) -> TrainingState:
    """Read it back; raises DetrKitError where the folder holds none of this format."""
    path = checkpoint / _STATE_FILE
    if not path.is_file():
        raise DetrKitError(
            f"{checkpoint}: holds no training state to resume from; a run that has saved nothing "
            f"yet is to be started again"
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        version = values.pop("format", 1)
    except Exception as error:  # torch.load raises whatever its reader met
        raise DetrKitError(f"{path}: cannot be read ({type(error).__name__})") from error
    if version != STATE_FORMAT:
        raise DetrKitError(
            f"{path}: format {version}, this release reads {STATE_FORMAT}; start a new run from "
            f"its weights with model.init_from={checkpoint}"
        )
    try:
        values["progress"] = Progress(**values["progress"])
        values["records"] = [EpochRecord(**record) for record in values["records"]]
        return TrainingState(**values)
    except (KeyError, TypeError) as error:
        raise DetrKitError(f"{path}: incomplete or damaged: {error}") from error
