"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol

from torch.utils.data import DataLoader

from detr_kit.checkpoints.listing import listed
from detr_kit.config import EvaluationConfig
from detr_kit.data.samplers import AspectBatchSampler
from detr_kit.evaluation.coco import CocoMetrics
from detr_kit.losses import StepCounts
from detr_kit.training.display import TrainingDisplay
from detr_kit.training.processes import Processes
from detr_kit.training.schedule import Schedule
from detr_kit.training.signals import Stopped, StopSignals
from detr_kit.training.state import EpochRecord, Progress
from detr_kit.training.step import Batch, StepFigures, TrainingStep
from detr_kit.training.watchdog import Watchdog

Doing = Literal["training", "evaluating"]


class Owner(Protocol):
    """What the loop asks of whoever set it up; every process calls all of it."""

    def evaluate(self, progress: Progress) -> CocoMetrics | None:
        """Score the epoch that was trained; None where it is not its turn."""

    def finish_epoch(self, row: dict[str, Any], progress: Progress, *, is_best: bool) -> None:
        """Record a finished epoch and save its state."""

    def save_due(self, step: int) -> bool:
        """Whether the state is to be saved before `step`; the first process is asked."""

    def save(self, progress: Progress, record: EpochRecord) -> None:
        """Save the state in the middle of an epoch."""

    def matching_figures(self) -> dict[str, float | int | None]:
        """Return what came of the epoch's matching, and begin the next."""

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Record what a step logged."""

    def explain_failure(self, figures: StepFigures) -> Exception:
        """Return what ends a run after a step whose loss or gradient was not finite."""

    def explain_error(
        self, error: Exception, batches: list[Batch], doing: Doing
    ) -> Exception | None:
        """Return what to say of an error; None: nothing better than the error itself."""


@dataclass(frozen=True)
class _Agreement:
    """What the processes tell each other before a step: its counts over all, and wishes."""

    counts: StepCounts
    stop: bool
    save: bool


class Trainer:
    """Trains a detector epoch by epoch, on one process or several.

    `loader` yields the batches of this process, as `AspectBatchSampler` groups them into steps.
    """

    def __init__(
        self,
        step: TrainingStep,
        schedule: Schedule,
        loader: DataLoader[Batch],
        processes: Processes,
        owner: Owner,
        *,
        display: TrainingDisplay,
        signals: StopSignals,
        watchdog: Watchdog,
    ) -> None:
        self.step = step
        self.schedule = schedule
        self.loader = loader
        self.processes = processes
        self.owner = owner
        self.display = display
        self.signals = signals
        self.watchdog = watchdog

    def fit(
        self,
        progress: Progress,
        record: EpochRecord,
        *,
        until_epoch: int,
        evaluation: EvaluationConfig,
    ) -> None:
        """Train from `progress` to `until_epoch`, or until patience is at its end.

        Raises Stopped, with the state saved, where a process was asked to stop.
        """
        while not progress.is_over(until_epoch, evaluation.patience):
            self._train_epoch(progress, record)
            started = time.monotonic()
            self.watchdog.at(progress.step, "evaluating")
            try:
                metrics = self.owner.evaluate(progress)
            except Stopped:
                self.owner.save(progress, record)
                raise
            except Exception as error:
                self._explain(error, [], doing="evaluating")
                raise
            progress.epoch += 1
            progress.step_in_epoch = 0
            row = self._row(progress, record)
            is_best = False
            if metrics is not None:
                scores = metrics.to_dict()
                row |= {"val": scores, "eval_seconds": time.monotonic() - started}
                is_best = progress.judge(
                    scores[evaluation.metric] or 0.0,  # None where there is no true object at all
                    min_gain=evaluation.min_gain,
                )
            record = EpochRecord()
            self.watchdog.at(progress.step, "saving")
            self.owner.finish_epoch(row, progress, is_best=is_best)
            self.display.epoch(progress.step, _epoch_line(row))

    def _train_epoch(self, progress: Progress, record: EpochRecord) -> None:
        """Take the steps that are left of an epoch."""
        sampler: Any = self.loader.batch_sampler
        sampler.set_epoch(progress.epoch, progress.step_in_epoch)
        self.step.model.train()
        began = time.monotonic() - record.seconds
        groups = self._groups(sampler)
        while progress.step_in_epoch < sampler.num_steps:
            batches = self._next(groups, progress, record)
            record.seconds = time.monotonic() - began
            agreed = self._agree(batches, progress.step)
            if agreed.save or agreed.stop:
                self._save(progress, record)
                if agreed.stop:
                    raise Stopped
            self.watchdog.at(progress.step, "training")
            self._count(batches, record)
            self.schedule.apply(progress.step)
            try:
                figures = self.step(
                    batches,
                    progress.step,
                    agreed.counts,
                    forwards=sampler.most_batches(progress.step_in_epoch),
                )
            except Exception as error:
                self._explain(error, batches)
                raise
            self._take(figures, progress, record)
            progress.step += 1
            progress.step_in_epoch += 1
        self._take(self.step.flush(), progress, record)
        record.seconds = time.monotonic() - began

    def _groups(self, sampler: AspectBatchSampler) -> Iterator[list[Batch]]:
        batches = iter(self.loader)
        while group := list(islice(batches, sampler.batches_a_step)):
            yield group

    def _next(
        self, groups: Iterator[list[Batch]], progress: Progress, record: EpochRecord
    ) -> list[Batch]:
        self.watchdog.at(progress.step, "waiting for data")
        waited_from = time.monotonic()
        try:
            batches = next(groups)
        except Exception as error:
            self._explain(error, [])
            raise
        record.seconds_waiting += time.monotonic() - waited_from
        return batches

    def _explain(self, error: Exception, batches: list[Batch], doing: Doing = "training") -> None:
        """Raise what tells more than an error does, if there is anything to tell."""
        explained = self.owner.explain_error(error, batches, doing)
        if explained is not None:
            raise explained from error

    def _agree(self, batches: list[Batch], step: int) -> _Agreement:
        """Sum up the step's counts over the processes; one wish is everybody's."""
        self.watchdog.at(step, "waiting for the other processes")
        own = StepCounts.of([targets for _, targets in batches], self.step.num_queries)
        wishes = (
            self.signals.received is not None,
            self.processes.is_main and self.owner.save_due(step),
        )
        summed = self.processes.sum([own.images, own.objects, own.pairs, *wishes])
        images, objects, pairs, stop, save = (int(value) for value in summed)
        return _Agreement(StepCounts(images, objects, pairs), bool(stop), bool(save))

    def _count(self, batches: list[Batch], record: EpochRecord) -> None:
        own = StepCounts.of([targets for _, targets in batches], self.step.num_queries)
        record.images += own.images
        record.objects_cut += own.objects - own.pairs
        record.skipped_files += [reason for images, _ in batches for reason in images.skipped]

    def _save(self, progress: Progress, record: EpochRecord) -> None:
        self.watchdog.at(progress.step, "saving")
        self._take(self.step.flush(), progress, record)
        self.owner.save(progress, record)

    def _take(self, figures: StepFigures | None, progress: Progress, record: EpochRecord) -> None:
        """Note what a step came to, once that is known on the host."""
        if figures is None:
            return
        if figures.failed:
            raise self.owner.explain_failure(figures)
        if figures.gated:
            record.skipped_steps += 1
            if self.step.accelerator.scaler is None:  # which overflows on purpose, now and then
                ids = [image_id for images, _ in figures.batches for image_id in images.image_ids]
                self.display.message(
                    f"warning: step {figures.step} changed nothing, as its loss or gradients are "
                    f"not finite; its pictures have the ids {listed([str(one) for one in ids], 8)}"
                )
        else:
            record.add(figures.values)
            self.owner.log_step(figures.step, figures.values)
        shown = {name: figures.values[name] for name in ("loss", "class", "l1", "giou")}
        rate = record.images * self.processes.count / max(record.seconds, 1e-9)
        self.display.step(
            figures.step + 1, f"epoch {progress.epoch + 1}", shown | {"images/s": rate}
        )

    def _row(self, progress: Progress, record: EpochRecord) -> dict[str, Any]:
        """Return the epoch's row of `metrics.jsonl`, over all processes."""
        names = sorted(set(record.skipped_files))
        skipped = sorted({name for names in self.processes.gather(names) for name in names})
        if skipped:
            self.display.message(
                f"warning: others were trained on in the place of {len(skipped)} unreadable "
                f"{'picture' if len(skipped) == 1 else 'pictures'}: {listed(skipped, 3)}"
            )
        images, objects_cut, waiting, *sums = self.processes.sum(
            [record.images, record.objects_cut, record.seconds_waiting, *record.sums.values()]
        )
        shares = max(record.steps, 1) * self.processes.count
        rates = self.schedule.rates()
        return {
            "epoch": progress.epoch,
            "step": progress.step,
            "lr": list(rates.values())[-1],
            "rates": rates,
            "seconds": record.seconds,
            "seconds_waiting": waiting / self.processes.count,
            "images_per_second": images / record.seconds,
            "skipped_images": len(skipped),
            "skipped_steps": record.skipped_steps,
            "objects_cut": int(objects_cut),
            "matching": self.owner.matching_figures(),
            "train": {name: value / shares for name, value in zip(record.sums, sums, strict=True)},
        }


def _epoch_line(row: dict[str, Any]) -> str:
    parts = [f"epoch {row['epoch']}"]
    parts += [
        f"{name} {row['train'][name]:.3f}"
        for name in ("loss", "class", "l1", "giou")
        if name in row["train"]
    ]
    if "val" in row:
        parts += [
            f"{name} {row['val'][key]:.3f}"
            for name, key in (("AP", "ap"), ("AP50", "ap50"))
            if row["val"][key] is not None
        ]
    parts.append(f"{row['images_per_second']:.1f} images/s")
    return "  ".join(parts)
