"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detr_kit.checkpoints.listing import listed
from detr_kit.evaluation.coco import CocoMetrics
from detr_kit.losses import LossValues, Normalizer, SetCriterion, StepCounts
from detr_kit.matching import NonFiniteCostError
from detr_kit.preprocess import Preprocessing
from detr_kit.structures import CollatedImages, TargetBatch
from detr_kit.training.display import TrainingDisplay
from detr_kit.training.schedule import Schedule
from detr_kit.training.state import Progress

# The live line reads the losses of every tenth step: each read waits for the device.
_SHOW_EVERY = 10

Batch = tuple[CollatedImages, TargetBatch]


class Checkpointer(Protocol):
    """Where finished epochs go."""

    def __call__(self, row: dict[str, Any], progress: Progress, *, is_best: bool) -> None: ...


class Trainer:
    """Trains a detector epoch by epoch, on one process or several.

    `model`, `optimizer` and `accelerator` come prepared by the caller; `loader` yields the batches
    of this process, the same number on each. A step is `accumulate` batches.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: SetCriterion,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        loader: DataLoader[Batch],
        accelerator: Accelerator,
        preprocessing: Preprocessing,
        *,
        num_queries: int,
        seed: int,
        accumulate: int = 1,
        clip: float = 0.1,
        official_normalizer: bool = False,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.loader = loader
        self.accelerator = accelerator
        self.preprocessing = preprocessing
        self.num_queries = num_queries
        self.seed = seed
        self.accumulate = accumulate
        self.clip = clip
        self.official_normalizer = official_normalizer

    def fit(
        self,
        progress: Progress,
        *,
        until_epoch: int,
        display: TrainingDisplay,
        evaluate: Callable[[int], CocoMetrics | None],
        finish_epoch: Checkpointer,
    ) -> None:
        """Train from `progress` to `until_epoch`, calling back after every epoch.

        `evaluate` gets the number of finished epochs and returns None where it does not evaluate.
        """
        while progress.epoch < until_epoch:
            row = self._train_epoch(progress, display)
            started = time.monotonic()
            metrics = evaluate(progress.epoch)
            is_best = False
            if metrics is not None:
                row |= {"val": metrics.to_dict(), "eval_seconds": time.monotonic() - started}
                ap = metrics.ap or 0.0  # None without any true object: every epoch is as good
                is_best = progress.best_ap is None or ap > progress.best_ap
                if is_best:
                    progress.best_ap, progress.best_epoch = ap, progress.epoch
            finish_epoch(row, progress, is_best=is_best)
            display.epoch(progress.step, _epoch_line(row))

    def _train_epoch(self, progress: Progress, display: TrainingDisplay) -> dict[str, Any]:
        self._seed_epoch(progress.epoch)
        self.model.train()
        sums: dict[str, Tensor] = {}
        skipped: list[str] = []
        steps = images = 0
        started = time.monotonic()
        for batches in _in_groups(self.loader, self.accumulate):
            self.schedule.apply(progress.step)
            try:
                logged = self._step(batches)
            except NonFiniteCostError as error:
                lr = self.optimizer.param_groups[-1]["lr"]
                raise NonFiniteCostError(
                    f"{error}; step {progress.step}, learning rate {lr:.3g}, "
                    f"precision {self.accelerator.mixed_precision}"
                ) from error
            for name, value in logged.items():
                sums[name] = sums[name] + value if name in sums else value
            skipped += [reason for batch, _ in batches for reason in batch.skipped]
            progress.step += 1
            steps += 1
            images += sum(len(batch) for batch, _ in batches) * self.accelerator.num_processes
            if steps % _SHOW_EVERY == 0:
                rate = images / (time.monotonic() - started)
                terms = ("loss", "class", "l1", "giou")
                shown = {name: float(logged[name]) for name in terms} | {"images/s": rate}
                display.step(progress.step, f"epoch {progress.epoch + 1}", shown)
        progress.epoch += 1
        seconds = time.monotonic() - started
        if self.accelerator.num_processes > 1:
            skipped = gather_object(skipped)
        if skipped:
            files = sorted(set(skipped))
            display.message(
                f"warning: others were trained on in the place of {len(files)} unreadable "
                f"{'picture' if len(files) == 1 else 'pictures'}: {listed(files, 3)}"
            )
        return {
            "epoch": progress.epoch,
            "step": progress.step,
            "lr": float(self.optimizer.param_groups[-1]["lr"]),
            "seconds": seconds,
            "images_per_second": images / seconds,
            "skipped_images": len(set(skipped)),
            "train": self._mean_over_processes(sums, steps),
        }

    def _step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One optimiser step over `batches`; returns detached sums for the log."""
        logged: dict[str, Tensor] = {}
        normalizers = self._normalizers([targets for _, targets in batches])
        for index, (images, targets) in enumerate(batches):
            is_last = index == len(batches) - 1
            # Gradients cross the network once a step, with the last batch.
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                losses = self._forward(images, targets, normalizers[index])
                self.accelerator.backward(losses.total)
            for name, value in {"loss": losses.total.detach(), **losses.logged}.items():
                # Losses are shares of the step's sum; errors are means of their own batch.
                share = value / len(batches) if name.endswith("_error") else value
                logged[name] = logged[name] + share if name in logged else share
        if self.clip > 0:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return logged

    def _forward(
        self, images: CollatedImages, targets: TargetBatch, normalizer: Normalizer
    ) -> LossValues:
        device = self.accelerator.device
        batch = images.to(device).normalized(self.preprocessing.mean, self.preprocessing.std)
        with self.accelerator.autocast():
            output = self.model(batch)
        return self.criterion(output, targets.to(device), normalizer)

    def _normalizers(self, targets: list[TargetBatch]) -> list[Normalizer]:
        """Normalisers for each batch of a step, from counts known on the host."""
        own = [StepCounts.of([batch], self.num_queries) for batch in targets]
        step = StepCounts(0, 0, 0)
        for counts in own:
            step = step + counts
        world_size = self.accelerator.num_processes
        if world_size > 1:
            step = _sum_over_processes(step, self.accelerator.device)
        if self.official_normalizer:
            return [
                self.criterion.official_normalizer(
                    counts,
                    step,
                    self.num_queries,
                    world_size=world_size,
                    batches=len(own),
                )
                for counts in own
            ]
        shared = self.criterion.normalizer(step, self.num_queries, world_size=world_size)
        return [shared] * len(own)

    def _seed_epoch(self, epoch: int) -> None:
        """Key the model's random streams (dropout, drop path) by (seed, epoch, rank)."""
        rank = self.accelerator.process_index
        torch.manual_seed(hash((self.seed, epoch, rank)) % 2**63)
        sampler: Any = self.loader.batch_sampler
        sampler.set_epoch(epoch)

    def _mean_over_processes(self, sums: dict[str, Tensor], steps: int) -> dict[str, float]:
        stacked = torch.stack(list(sums.values())) / steps
        means = self.accelerator.reduce(stacked, reduction="mean").tolist()
        return dict(zip(sums, means, strict=True))


def _in_groups(loader: DataLoader[Batch], size: int) -> Iterator[list[Batch]]:
    batches = iter(loader)
    while group := list(islice(batches, size)):
        yield group


def _sum_over_processes(counts: StepCounts, device: torch.device) -> StepCounts:
    values = torch.tensor([counts.images, counts.objects, counts.pairs], device=device)
    torch.distributed.all_reduce(values)
    return StepCounts(*values.tolist())


def _epoch_line(row: dict[str, Any]) -> str:
    parts = [f"epoch {row['epoch']}"]
    parts += [f"{name} {row['train'][name]:.3f}" for name in ("loss", "class", "l1", "giou")]
    if "val" in row:
        parts += [
            f"{name} {row['val'][key]:.3f}"
            for name, key in (("AP", "ap"), ("AP50", "ap50"))
            if row["val"][key] is not None
        ]
    parts.append(f"{row['images_per_second']:.1f} images/s")
    return "  ".join(parts)
