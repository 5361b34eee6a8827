"""A training of so many minutes, whoever's it is: what both sides of small_data.py are given."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

import torch
from small_data_records import FIGURES, Row
from torch.utils.data import DataLoader

from detr_kit.config import ImageSizeConfig
from detr_kit.data.annotations import load_annotations
from detr_kit.data.augmentation import train_pipeline
from detr_kit.data.loading import eval_loader
from detr_kit.data.pipelines import ViewPipeline
from detr_kit.data.views import whole_view
from detr_kit.evaluation.coco import CocoMetrics, evaluate_results
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth, load_ground_truth
from detr_kit.latency.memory import PeakMemory, settled_bytes
from detr_kit.preprocess import Preprocessing, preprocessing_from
from detr_kit.sizes import SizeHW
from detr_kit.structures import CollatedImages, TargetBatch

AUGMENTATIONS = ("flip", "small_data")
NORMALISED = (0.5, 0.5, 0.5)  # mean and standard deviation that tf_efficientnet_lite0 learned with
# Of a CPU that others use too, the time that its threads worked for a side, added up.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_SECONDS_BETWEEN_LINES = 20.0


@dataclass(frozen=True)
class FixedSize:
    """A size rule that gives every picture one size, as RT-DETR's recipe does."""

    size_hw: SizeHW

    def target_hw(self, size_hw: SizeHW) -> SizeHW:
        return self.size_hw


@dataclass(frozen=True)
class Trial:
    """What a side is given. `every` is the minutes of training between two evaluations."""

    data: Path
    weights: Path
    minutes: float
    every: float
    seed: int
    batch_size: int
    size_hw: SizeHW
    augmentation: str
    schedule: Literal["cosine", "constant"]
    warmup_steps: int
    clock: str = "wall"

    def described(self) -> dict[str, Any]:
        """Return what decides a training besides its side, as json gives it back.

        Data and weights by name: a record may be read on another machine.
        """
        return {
            "data": self.data.name,
            "weights": self.weights.name,
            "size_hw": list(self.size_hw),
            "batch": self.batch_size,
            "augmentation": self.augmentation,
            "schedule": self.schedule,
            "warm_up": self.warmup_steps,
            "clock": self.clock,
        }

    @property
    def preprocessing(self) -> Preprocessing:
        rule: Any = FixedSize(self.size_hw)
        plain = preprocessing_from(ImageSizeConfig(mean=NORMALISED, std=NORMALISED))
        return replace(plain, size_rule=rule)

    def split(self, name: str) -> dict[str, str]:
        """Return a split as a run's config names it."""
        annotations = self.data / "annotations" / f"{name}.json"
        images = self.data / "images"
        if not images.is_dir():  # as `detr-kit sample` writes it
            images = self.data / name
        return {"annotations": str(annotations), "images": str(images)}

    def use_pipelines(self, loader: DataLoader[Any]) -> None:
        """Let a training loader show the trial's views of its pictures.

        They depend on seed, epoch and picture alone, so that both sides see the same pixels.
        """
        rules = (FixedSize(self.size_hw),)
        if self.augmentation == "flip":
            pipeline: Any = ViewPipeline(partial(whole_view, rules=rules))
        else:
            pipeline = train_pipeline(self.augmentation, ImageSizeConfig())
            pipeline.draw = partial(pipeline.draw, rules=rules)
        dataset: Any = loader.dataset
        dataset.pipeline = pipeline

    def rate_factor(self, step: int, seconds: float) -> float:
        """Return what rates are multiplied by; the cosine follows the clock and ends with it."""
        warm_up = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.schedule == "constant":
            return warm_up
        share = min(seconds / (60 * self.minutes), 1.0)
        return warm_up * (1 + math.cos(math.pi * share)) / 2


class EvaluationSplit:
    """A split that detections are scored on, resized only."""

    def __init__(self, trial: Trial, name: str) -> None:
        self.name = name
        places = trial.split(name)
        self.truth: GroundTruth = load_ground_truth(places["annotations"])
        self.loader = eval_loader(
            load_annotations(places["annotations"]),
            places["images"],
            trial.preprocessing,
            batch_size=trial.batch_size,
        )

    def score(self, found: ResultColumns) -> CocoMetrics:
        return evaluate_results(found, self.truth, warn=False)


class Learner(Protocol):
    """A detector that learns, with an optimiser whose rates the trial sets.

    `loader` gives the batches of an epoch; `loss` is that of the last step that is known of.
    """

    loader: DataLoader[Any]
    device: torch.device
    optimizer: Any
    loss: float
    settings: dict[str, Any]

    def step(self, images: CollatedImages, targets: TargetBatch, number: int) -> None: ...

    def find(self, split: EvaluationSplit) -> ResultColumns:
        """Return what the detector finds in a split."""


class Memory:
    """The most memory that training takes, evaluations left out.

    On a CPU it is what steps add to the weights, on an accelerator all that PyTorch allocates.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = settled_bytes()
        self._peaks: list[int] = []
        self._watch = PeakMemory(device, self._before)

    def pause(self) -> None:
        peak = self._watch.bytes()
        self._peaks += [] if peak is None else [peak]

    def go_on(self) -> None:
        self._watch = PeakMemory(self._device, self._before)

    @property
    def mebibytes(self) -> float | None:
        return round(max(self._peaks) / 2**20, 1) if self._peaks else None


class Run:
    """Trains a learner for the trial's minutes; `write` is called with a row an evaluation.

    Time spent on evaluation is no part of the minutes, and is written beside them.
    """

    def __init__(
        self,
        learner: Learner,
        trial: Trial,
        write: Callable[[Row], None],
        splits: list[EvaluationSplit],
    ) -> None:
        self.learner = learner
        self.trial = trial
        self.write = write
        self.val, self.others = splits[0], splits[1:]
        self.base_rates = [float(group["lr"]) for group in learner.optimizer.param_groups]
        self.now = CLOCKS[trial.clock]
        self.memory = Memory(learner.device)
        self.seconds = 0.0
        self.evaluating = 0.0
        self.steps = 0
        self.images = 0
        self.step_seconds: list[float] = []
        self.losses: list[float] = []
        self.epoch = 0.0
        self._spoke = time.perf_counter()

    def train(self) -> None:
        sampler: Any = self.learner.loader.batch_sampler
        due = 60 * self.trial.every
        for epoch in count():
            sampler.set_epoch(epoch)
            batches, left = iter(self.learner.loader), len(sampler)
            while self._step(batches):
                left -= 1
                self.epoch = epoch + 1 - left / len(sampler)
                if self.seconds >= 60 * self.trial.minutes:
                    self._evaluate([self.val, *self.others], final=True)
                    return
                if self.seconds >= due:
                    due += 60 * self.trial.every
                    self._evaluate([self.val], final=False)

    def _step(self, batches: Any) -> bool:
        """Take a step and count its time; False at the end of the epoch."""
        started = self.now()
        batch = next(batches, None)
        if batch is None:
            self.seconds += self.now() - started
            return False
        factor = self.trial.rate_factor(self.steps, self.seconds)
        for group, rate in zip(self.learner.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        self.learner.step(*batch, self.steps)
        took = self.now() - started
        self.seconds += took
        self.step_seconds.append(took)
        self.steps += 1
        self.images += len(batch[0])
        if math.isfinite(self.learner.loss):
            self.losses.append(self.learner.loss)
        self._speak()
        return True

    def _evaluate(self, splits: list[EvaluationSplit], *, final: bool) -> None:
        self.memory.pause()
        for split in splits:
            started = time.perf_counter()
            metrics = split.score(self.learner.find(split))
            took = time.perf_counter() - started
            self.evaluating += took
            self.write(self._row(split, metrics, took, final=final))
        self.losses = []
        self.memory.go_on()

    def _row(
        self, split: EvaluationSplit, metrics: CocoMetrics, took: float, *, final: bool
    ) -> Row:
        figures = metrics.to_dict()
        return {
            "split": split.name,
            "minutes": round(self.seconds / 60, 4),
            "epoch": round(self.epoch, 3),
            "steps": self.steps,
            **{name: figures[name] for name in FIGURES},
            "per_class": metrics.per_class_ap50,
            "loss": sum(self.losses) / len(self.losses) if self.losses else None,
            "step_seconds": round(median(self.step_seconds), 4),
            "images_per_second": round(self.images / self.seconds, 3),
            "memory_mib": self.memory.mebibytes,
            "evaluation_seconds": round(took, 2),
            "final": final,
        }

    def _speak(self) -> None:
        """Say now and then how far the training is."""
        now = time.perf_counter()
        terminal = sys.stdout.isatty()
        if now - self._spoke < (1.0 if terminal else _SECONDS_BETWEEN_LINES):
            return
        self._spoke = now
        left = self.trial.minutes - self.seconds / 60
        text = (
            f"  {self.seconds / 60:.1f} of {self.trial.minutes:g} min, epoch {self.epoch:.1f}, "
            f"loss {self.learner.loss:.2f}, left {left:.1f} min and evaluations"
        )
        print(f"\r{text:78}" if terminal else text, end="" if terminal else "\n", flush=True)
