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
    start to `min_lr` at the end, moving once an epoch (official YOLOS) or every step. A linear
    warm-up multiplies whichever it is.
    """
    epoch = step / steps_per_epoch
    if config.per == "epoch":
        epoch = math.floor(epoch)
    if config.kind == "step":
        passed = sum(epoch >= milestone for milestone in config.milestones)
        lr = base_lr * config.gamma**passed
    elif config.kind == "cosine":
        lowest = min(config.min_lr, base_lr)
        lr = lowest + (base_lr - lowest) * (1 + math.cos(math.pi * epoch / epochs)) / 2
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
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]

    def apply(self, step: int) -> None:
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = learning_rate(
                step,
                base_lr,
                self.config,
                steps_per_epoch=self.steps_per_epoch,
                epochs=self.epochs,
            )
