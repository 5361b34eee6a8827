"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from detr_kit.config import ScheduleConfig


def learning_rate(
    step: int, base_lr: float, config: ScheduleConfig, *, steps_per_epoch: int, epochs: int
) -> float:
    """Return the rate of optimiser step `step`, counted from 0.

    `step`: times gamma at each milestone epoch (official DETR). `cosine`: from `base_lr` at the
    start to `min_lr` at the end, moving once an epoch (official YOLOS) or every step, and staying
    there. A linear warm-up multiplies whichever it is.
    """
    epoch = step / steps_per_epoch
    if config.per == "epoch":
        epoch = math.floor(epoch)
    if config.kind == "step":
        passed = sum(epoch >= milestone for milestone in config.milestones)
        lr = base_lr * config.gamma**passed
    elif config.kind == "cosine":
        lowest = min(config.min_lr, base_lr)
        angle = math.pi * min(epoch, epochs) / epochs
        lr = lowest + (base_lr - lowest) * (1 + math.cos(angle)) / 2
    else:
        lr = base_lr
    return lr * min(1.0, (step + 1) / (config.warmup_steps + 1))


class Schedule:
    """Sets the rates of an optimiser before each step; its only state is the step's number."""

    def __init__(
        self, optimizer: Optimizer, config: ScheduleConfig, *, steps_per_epoch: int, epochs: int
    ) -> None:
        self.optimizer = optimizer
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        groups = optimizer.param_groups
        # Kept here, as a loaded optimiser state brings groups of its own with their last rates,
        # and without names where it is an old one.
        self.base_lrs = [float(group["lr"]) for group in groups]
        self.names = [group.get("name", f"group {index}") for index, group in enumerate(groups)]

    def apply(self, step: int) -> None:
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self._rate(step, base_lr, self.epochs)

    def rates(self) -> dict[str, float]:
        """Return the rates that are set now, by the groups' names."""
        groups = self.optimizer.param_groups
        return {name: float(group["lr"]) for name, group in zip(self.names, groups, strict=True)}

    def describe_change(self, step: int, old_epochs: int) -> str:
        """Say how the rate goes on from `step`, the next one, where a run's length is changed.

        The rate is that of the group with the highest. The run was to have `old_epochs`; it has
        `self.epochs` now.
        """
        highest = max(self.base_lrs)
        before = self._rate(max(step - 1, 0), highest, old_epochs)
        planned = self._rate(step, highest, old_epochs)
        now = self._rate(step, highest, self.epochs)
        sentence = f"{self.epochs} epochs instead of {old_epochs}: the learning rate "
        if now == planned:
            return f"{sentence}goes on at {now:.3g} as it would have, after {before:.3g}"
        return (
            f"{sentence}goes on at {now:.3g} after {before:.3g} "
            f"(with {old_epochs} epochs: {planned:.3g}), as the cosine now ends with epoch "
            f"{self.epochs}"
        )

    def _rate(self, step: int, base_lr: float, epochs: int) -> float:
        return learning_rate(
            step, base_lr, self.config, steps_per_epoch=self.steps_per_epoch, epochs=epochs
        )
