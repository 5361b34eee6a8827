"""What happens around the steps of a run: evaluating, recording, saving, explaining its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from detr_kit.config import dump_config
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.coco import CocoMetrics
from detr_kit.evaluation.results import write_results
from detr_kit.files import atomic_write
from detr_kit.losses import LossValues
from detr_kit.structures import CollatedImages, TargetBatch
from detr_kit.training.alarms import StillnessAlarm
from detr_kit.training.display import TrainingDisplay
from detr_kit.training.memory import out_of_memory
from detr_kit.training.nonfinite import nonfinite_report
from detr_kit.training.recorder import Recorder
from detr_kit.training.run_files import CONFIG_FILE, RESULTS_FILE
from detr_kit.training.session import Session
from detr_kit.training.sharding import gathered
from detr_kit.training.signals import StopSignals
from detr_kit.training.state import EpochRecord, Progress
from detr_kit.training.step import Batch, StepFigures
from detr_kit.training.tracking import Trackers
from detr_kit.training.trainer import Doing
from detr_kit.training.watchdog import Watchdog


class Keeper:
    """Keeps a run's folder for the training loop, and answers what `Owner` asks.

    Every process holds one; the first alone writes.
    """

    def __init__(
        self,
        session: Session,
        *,
        display: TrainingDisplay,
        signals: StopSignals,
        watchdog: Watchdog,
    ) -> None:
        self.session = session
        self.config = session.config
        self.display = display
        self.signals = signals
        self.watchdog = watchdog
        self._alarm = StillnessAlarm(session.truth)
        self._recorder: Recorder | None = None

    def open_folder(self, progress: Progress) -> None:
        """Begin to write, or go on with what was written up to `progress`."""
        if not self.session.processes.is_main:
            return
        folder = self.config.output
        for left in folder.glob("nonfinite_batch*.pt"):  # of an earlier start
            left.unlink()
        with atomic_write(folder / CONFIG_FILE) as path:
            path.write_text(dump_config(self.config), encoding="utf-8")
        trackers = Trackers.start(self.config, continued=progress.step > 0)
        with self._writing():
            self._recorder = Recorder(
                folder,
                after_epoch=progress.epoch,
                after_step=progress.step,
                trackers=trackers,
            )
        if progress.epoch and not progress.step_in_epoch:  # it may have ended just before
            self.session.checkpoints.keep(progress.epoch, progress.step)

    def evaluate(self, progress: Progress) -> CocoMetrics | None:
        epoch = progress.epoch + 1
        every = self.config.evaluation.every
        if epoch % every and epoch != self.config.epochs:
            return None
        validation = self.session.validation
        metrics = validation.evaluate(
            self.signals, lambda: self.watchdog.at(progress.step, "evaluating")
        )
        assert validation.found is not None
        still = self._alarm.after_evaluation(validation.found, evaluations=-(-epoch // every))
        if still is not None:
            self.display.message(still)
        if self._recorder is not None:
            images = self.session.val_split.images
            with self._writing():
                self._recorder.pictures(progress.step, validation.found, self.session.truth, images)
        return metrics

    def finish_epoch(self, row: dict[str, Any], progress: Progress, *, is_best: bool) -> None:
        # `last` comes last: if the process ends before it, what is left of the epoch is done again
        # and gives the same row and the same `best`.
        if self._recorder is not None:
            with self._writing():
                self._recorder.epoch(row)
        if is_best:
            self._keep_best(progress)
        self.save(progress, EpochRecord())
        if self._recorder is not None:
            self.session.checkpoints.keep(progress.epoch, progress.step)

    def _keep_best(self, progress: Progress) -> None:
        validation = self.session.validation
        assert validation.found is not None
        with validation.weights():
            self.session.checkpoints.save_best(progress)
        if self._recorder is not None:
            write_results(self.config.output / RESULTS_FILE, validation.found)

    def save_due(self, step: int) -> bool:
        return self.session.checkpoints.due(step)

    def save(self, progress: Progress, record: EpochRecord) -> None:
        if self._recorder is not None:
            with self._writing():
                self._recorder.flush()
        self.session.checkpoints.save(
            progress,
            record,
            self.session.matching,
            gated_in_a_row=self.session.step.gated_in_a_row,
        )

    def matching_figures(self) -> dict[str, float | int | None]:
        return self.session.matching.finish_epoch(self.session.processes.gather)

    def log_step(self, step: int, values: dict[str, float]) -> None:
        if self._recorder is not None:
            with self._writing():
                self._recorder.step(step + 1, values)

    def explain_failure(self, figures: StepFigures) -> Exception:
        session = self.session
        scaler = session.accelerator.scaler
        session.schedule.apply(figures.step)
        session.step.seed_streams(figures.step)

        def forward(images: CollatedImages, targets: TargetBatch) -> LossValues:
            return session.step.forward(session.bare_model, images, targets)

        # Uncompiled, so that every module can be watched.
        with gathered(session.bare_model), torch.compiler.set_stance("force_eager"):
            return nonfinite_report(
                session.bare_model,
                session.step.criterion,
                figures.batches,
                preprocessing=session.spec.preprocessing,
                step=figures.step,
                rates=session.schedule.rates(),
                precision=self.config.precision,
                forward=forward,
                folder=self.config.output,
                name_of=self._file_name,
                loss_scale=1.0 if scaler is None else scaler.get_scale(),
                rank=session.processes.rank,
                gather=session.processes.gather,
            )

    def explain_error(
        self, error: Exception, batches: list[Batch], doing: Doing
    ) -> Exception | None:
        return out_of_memory(error, batches, self.config, doing=doing)

    def _file_name(self, image_id: int) -> str:
        train_set = self.session.train_set
        [rows] = (train_set.image_ids == image_id).nonzero()
        return train_set.file_names[int(rows[0])] if len(rows) else ""

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say of records that cannot be written, as on a full disk, what to do about it."""
        try:
            yield
        except OSError as error:
            folder = self.config.output
            raise DetrKitError(
                f"{folder}: its records cannot be written ({error.strerror or error}); what was "
                f"saved is intact: make room, then go on with: detr-kit resume {folder}"
            ) from error

    def close(self) -> None:
        if self._recorder is not None:
            try:
                self._recorder.close()
            except OSError as error:  # of TensorBoard's events, after all else is said
                self.display.message(f"warning: {self.config.output}: {error.strerror or error}")
