"""One optimiser step: forward, matching, losses, backward, a guarded update; one host read a batch.

What a step logs stays on the device until the next step's matching, whose transfer to the host
takes it along. Until then nobody knows whether its gradients were finite, so that the update itself
is gated on the device: AdamW's fused kernel leaves parameters, moments and counts alone where
`found_inf` is set, as it does for gradient scaling.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _BatchNorm

from detr_kit.losses import DENOISING_NAMES, LossValues, Normalizer, SetCriterion, StepCounts
from detr_kit.preprocess import Preprocessing
from detr_kit.structures import CollatedImages, TargetBatch
from detr_kit.training.average import WeightAverage
from detr_kit.training.forward import run_model, wants_targets
from detr_kit.training.matching_record import MatchingRecord
from detr_kit.training.sharding import whole

Batch = tuple[CollatedImages, TargetBatch]

# fp16's scaler looks for a scale by overflowing on purpose; so many overflows in a row are none.
_OVERFLOWS_OF_SCALER = 20


@dataclass(frozen=True)
class StepFigures:
    """What a finished step came to, on the host.

    `gated`: its gradients were not finite and nothing was updated; `failed`: too many such steps
    in a row. `values` are the logged ones by name, `batches` what it trained on.
    """

    step: int
    gated: bool
    failed: bool
    values: dict[str, float]
    batches: Sequence[Batch]


@dataclass(frozen=True)
class _Pending:
    """A step's figures while they are on the device: gated, failed, then the named values."""

    step: int
    names: tuple[str, ...]
    figures: Tensor
    batches: Sequence[Batch]

    def read(self, figures: Sequence[float] | np.ndarray) -> StepFigures:
        gated, failed, *values = (float(value) for value in figures)
        named = dict(zip(self.names, values, strict=True))
        return StepFigures(self.step, bool(gated), bool(failed), named, self.batches)


class TrainingStep:
    """Trains a model step by step; `model`, `optimizer` and `accelerator` come prepared.

    The optimiser is a fused one. A step whose gradients are not finite changes no weight; from
    `tolerated` such steps in a row on, `StepFigures.failed` says so. With `clip` 0 gradients are
    not clipped.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: SetCriterion,
        optimizer: Any,
        accelerator: Accelerator,
        preprocessing: Preprocessing,
        *,
        num_queries: int,
        seed: int = 0,
        clip: float = 0.1,
        official_normalizer: bool = False,
        tolerated: int = 1,
        average: WeightAverage | None = None,
        matching: MatchingRecord | None = None,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.preprocessing = preprocessing
        self.num_queries = num_queries
        self.seed = seed
        self.clip = clip
        self.official_normalizer = official_normalizer
        self.tolerated = tolerated
        if accelerator.scaler is not None:
            self.tolerated = max(tolerated, _OVERFLOWS_OF_SCALER)
        self.average = average
        self.matching = matching
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._gated_in_a_row = torch.zeros((), device=accelerator.device)
        self._pending: _Pending | None = None

    def __call__(
        self, batches: Sequence[Batch], step: int, counts: StepCounts, *, forwards: int = 1
    ) -> StepFigures | None:
        """Take step `step`; return the figures of the one before, if they were not read yet.

        `counts` are those of the step over all processes, `forwards` the most batches that one of
        them has: a sharded model runs as often in all of them.
        """
        self.seed_streams(step)
        kept = [(buffer, buffer.clone()) for buffer in self._running_statistics()]
        before, self._pending = self._pending, None
        figures: StepFigures | None = None
        logged: dict[str, Tensor] = {}
        normalizers = self.normalizers([targets for _, targets in batches], counts)
        for index, ((images, targets), normalizer) in enumerate(
            zip(batches, normalizers, strict=True)
        ):
            is_last = index == len(batches) - 1
            aside = before.figures if before is not None and index == 0 else None
            # Gradients cross the network once a step, with the last batch. Sharded ones do with
            # every batch (such a model has no `no_sync`): no process has room for all of them.
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                losses = self.forward(self.model, images, targets, normalizer, aside)
                if before is not None and index == 0:
                    assert losses.assignment.aside is not None
                    figures = before.read(losses.assignment.aside)
                    if figures.failed:  # the weights are still those that it met
                        self.optimizer.zero_grad()
                        return figures
                self.accelerator.backward(losses.total)
            if self.matching is not None:
                self.matching.add(losses.assignment.pairs, targets)
            self._add(logged, losses, len(batches))
        if wants_targets(self.model):  # without objects in a step there was nothing to denoise
            for name in DENOISING_NAMES:
                logged.setdefault(name, torch.zeros_like(logged["loss"]))
        if isinstance(self.model, FSDPModule):
            for _ in range(forwards - len(batches)):  # to keep pace; it counts for nothing
                losses = self.forward(self.model, *batches[-1])
                self.accelerator.backward(losses.total * 0.0)
        self._update(logged, kept, step, batches)
        return figures

    @property
    def gated_in_a_row(self) -> int:
        """How many of the last steps changed nothing; reading it waits for the device."""
        return int(self._gated_in_a_row.item())

    @gated_in_a_row.setter
    def gated_in_a_row(self, count: int) -> None:
        self._gated_in_a_row.fill_(count)

    def flush(self) -> StepFigures | None:
        """Return the figures of the last step, if they were not read yet; waits for the device."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.read(pending.figures.tolist())

    def forward(
        self,
        model: nn.Module,
        images: CollatedImages,
        targets: TargetBatch,
        normalizer: Normalizer | None = None,
        aside: Tensor | None = None,
    ) -> LossValues:
        """Return the losses of a batch that is on the host; see `SetCriterion`."""
        device = self.accelerator.device
        batch = images.to(device).normalized(self.preprocessing.mean, self.preprocessing.std)
        targets = targets.to(device)
        with self.accelerator.autocast():
            output = run_model(model, batch, targets)
        return self.criterion(output, targets, normalizer, aside)

    def seed_streams(self, step: int) -> None:
        """Key the random streams (dropout, drop path, ...) by (seed, step, process)."""
        sequence = np.random.SeedSequence((self.seed, step, self.accelerator.process_index))
        for_torch, for_numpy, for_python = (int(word) for word in sequence.generate_state(3))
        torch.manual_seed(for_torch)
        np.random.seed(for_numpy)
        random.seed(for_python)

    def normalizers(self, targets: Sequence[TargetBatch], step: StepCounts) -> list[Normalizer]:
        """Return what each batch's losses are divided by."""
        world_size = self.accelerator.num_processes
        if not self.official_normalizer:
            shared = self.criterion.normalizer(step, self.num_queries, world_size=world_size)
            return [shared] * len(targets)
        return [
            self.criterion.official_normalizer(
                StepCounts.of([batch], self.num_queries),
                step,
                self.num_queries,
                world_size=world_size,
                batches=len(targets),
            )
            for batch in targets
        ]

    def _add(self, logged: dict[str, Tensor], losses: LossValues, batches: int) -> None:
        """Add a batch's figures: losses are shares of the step's sum, others means."""
        for name, value in {"loss": losses.total.detach(), **losses.logged}.items():
            is_mean = name.endswith("_error") or name.startswith("cost_")
            share = value / batches if is_mean else value
            logged[name] = logged[name] + share if name in logged else share

    def _update(
        self,
        logged: dict[str, Tensor],
        kept: Sequence[tuple[Tensor, Tensor]],
        step: int,
        batches: Sequence[Batch],
    ) -> None:
        """Step the optimiser, or change nothing where the gradients are not finite."""
        self.accelerator.unscale_gradients(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
        if self.clip > 0:
            nn.utils.clip_grads_with_norm_(self._parameters, self.clip, norm)
        gated = (~norm.isfinite()).float()
        if self.accelerator.scaler is None:  # which would see to it by itself
            getattr(self.optimizer, "optimizer", self.optimizer).found_inf = gated
        self.optimizer.step()
        self.optimizer.zero_grad()
        for buffer, old in kept:
            buffer.copy_(torch.where(gated.bool(), old, buffer))
        if self.average is not None:
            self.average.update(step)
        self._gated_in_a_row = (self._gated_in_a_row + 1) * gated
        failed = (self._gated_in_a_row >= self.tolerated).float()
        values = [gated, failed, norm, *logged.values()]
        figures = torch.stack([value.float() for value in values])
        self._pending = _Pending(step, ("grad_norm", *logged), figures, batches)

    def _running_statistics(self) -> list[Tensor]:
        """Return the buffers that a forward pass changes."""
        return [
            buffer
            for module in self.model.modules()
            if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
            for buffer in module.buffers(recurse=False)
        ]
