"""Saving the whole state of a run, and taking it up again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from detr_kit.checkpoints.detector import MODEL_FILE, DetectorSpec, read_spec, save_detector
from detr_kit.checkpoints.reading import read_tensors
from detr_kit.config import CheckpointConfig
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_folder
from detr_kit.training.average import WeightAverage
from detr_kit.training.matching_record import MatchingRecord
from detr_kit.training.processes import Processes
from detr_kit.training.run_files import CONFIG_FILE, EPOCHS_FOLDER
from detr_kit.training.sharding import part_of_optimizer, part_of_weights, whole_state
from detr_kit.training.state import (
    EpochRecord,
    Progress,
    TrainingState,
    save_training_state,
)


class Checkpoints:
    """The checkpoints in a run's folder: `last`, `best` and those of single epochs.

    `last` is replaced as a whole by a newer one, so that a process or machine that ends at any
    moment, or a disk that is full, leaves the one before. `data_digest` and `step_images` are kept
    in the state, see `TrainingState`.
    """

    def __init__(
        self,
        folder: Path,
        policy: CheckpointConfig,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
        average: WeightAverage | None,
        spec: DetectorSpec,
        processes: Processes,
        data_digest: int,
        step_images: int,
    ) -> None:
        self.folder = folder
        self.policy = policy
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.average = average
        self.spec = spec
        self.processes = processes
        self.data_digest = data_digest
        self.step_images = step_images
        self._saved_at = time.monotonic()
        self._saved_step = 0

    @property
    def last(self) -> Path:
        return self.folder / "last"

    def due(self, step: int) -> bool:
        """Whether the state should be saved before the given step, by the policy."""
        if step == self._saved_step:
            return False
        minutes, steps = self.policy.minutes, self.policy.steps
        late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return late or (steps is not None and step % steps == 0)

    def save(
        self,
        progress: Progress,
        record: EpochRecord,
        matching: MatchingRecord,
        *,
        gated_in_a_row: int,
    ) -> None:
        """Replace `last`; every process calls it, the first one writes.

        Raises DetrKitError in all of them where it cannot be written; the old one is then intact.
        """
        records = self.processes.gather(record)
        matchings = self.processes.gather(matching.state())
        weights = self._whole(self.model.state_dict())
        optimizer = self._whole(self.optimizer.state_dict())
        average = None if self.average is None else self._whole(self.average.state_dict())
        state = TrainingState(
            progress,
            self.data_digest,
            self.step_images,
            optimizer,
            None if self.scaler is None else self.scaler.state_dict(),
            average,
            gated_in_a_row,
            records,
            matchings,
        )
        failure = None
        if self.processes.is_main:
            try:
                with _intact(self.last, progress.step), atomic_folder(self.last) as checkpoint:
                    save_detector(checkpoint, weights, self.spec)
                    save_training_state(checkpoint, state)
            except DetrKitError as error:
                failure = error
        for told in self.processes.gather(failure):
            if told is not None:
                raise told
        self._saved_at, self._saved_step = time.monotonic(), progress.step

    def save_best(self, progress: Progress) -> None:
        """Replace `best` by the weights that the model holds.

        Every process calls it, the first one writes.
        """
        weights = self._whole(self.model.state_dict())
        if not self.processes.is_main:
            return
        best = self.folder / "best"
        with _intact(best, progress.step), atomic_folder(best) as checkpoint:
            save_detector(checkpoint, weights, self.spec)

    def keep(self, epoch: int, step: int) -> None:
        """Keep `last` as the checkpoint of an epoch, and delete those that the policy lets go.

        For the first process. The files are shared with `last`, so that they take no new room.
        """
        newest, every = self.policy.keep, self.policy.keep_every
        kept = self._of_epoch(epoch)
        if not kept.exists() and (newest or (every and epoch % every == 0)):
            with _intact(kept, step), atomic_folder(kept) as copy:
                shutil.copytree(self.last, copy, copy_function=_link, dirs_exist_ok=True)
        for old in range(1, epoch - newest + 1):
            if not (every and old % every == 0):
                shutil.rmtree(self._of_epoch(old), ignore_errors=True)

    def restore(self, state: TrainingState, matching: MatchingRecord) -> EpochRecord:
        """Load weights, optimiser, scaler, average and records; return the record of the epoch."""
        if read_spec(self.last) != self.spec:
            raise DetrKitError(
                f"{self.last}: its categories or preprocessing are not those of "
                f"{self.folder / CONFIG_FILE} and its data: it cannot be continued"
            )
        if state.data_digest != self.data_digest:
            raise DetrKitError(
                f"{self.last}: was trained on other pictures or objects than data.train now has: "
                f"it cannot be continued; start a new run from it with model.init_from={self.last}"
            )
        weights = read_tensors(self.last / MODEL_FILE)
        self.model.load_state_dict(part_of_weights(weights, self.model))
        try:
            self.optimizer.load_state_dict(part_of_optimizer(state.optimizer, self.optimizer))
        except ValueError as error:  # what is frozen now is in none
            raise DetrKitError(
                f"{self.last}: its optimiser's groups are not those of "
                f"{self.folder / CONFIG_FILE}: {error}"
            ) from error
        if self.scaler is not None and state.scaler is not None:
            self.scaler.load_state_dict(state.scaler)
        if self.average is not None and state.average is not None:
            self.average.load_state_dict(state.average)
        rank, count = self.processes.rank, self.processes.count
        matching.restore(MatchingRecord.shared(state.matching, rank=rank, world_size=count))
        self._saved_step = state.progress.step
        return EpochRecord.shared(state.records, rank=rank, world_size=count)

    def _whole(self, state: Any) -> Any:
        return whole_state(state, keep=self.processes.is_main)

    def _of_epoch(self, epoch: int) -> Path:
        return self.folder / EPOCHS_FOLDER / f"{epoch:04}"


@contextmanager
def _intact(checkpoint: Path, step: int) -> Iterator[None]:
    """Say of a failed write that nothing is lost."""
    try:
        yield
    # A full disk comes as any of these, depending on who writes.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        first_line = reason.partition("\n")[0] or type(error).__name__
        folder = checkpoint.parent
        free = shutil.disk_usage(folder).free >> 20
        go_on = "make room and start again"
        if (folder / "last").exists():
            go_on = (
                f"what was saved before is intact: make room, then go on with: detr-kit resume "
                f"{folder}"
            )
        raise DetrKitError(
            f"{checkpoint}: step {step} cannot be saved ({first_line}; {free} MiB are free there); "
            f"{go_on}"
        ) from error


def _link(source: str, target: str) -> Any:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
