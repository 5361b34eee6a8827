"""detr_kit's side of small_data.py: what `detr-kit train` trains, stopped by the clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from small_data_trial import EvaluationSplit, Trial

from detr_kit.config import RunConfig, load_config
from detr_kit.data.loading import noting_skipped
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.results import result_columns
from detr_kit.losses import StepCounts
from detr_kit.prediction import predict_batches
from detr_kit.structures import CollatedImages, TargetBatch
from detr_kit.training.session import Session

# What the trial decides, the same for both sides.
_DECIDED = ("output", "epochs", "batch_size", "accumulate", "seed", "data.", "image_size.")
_DECIDED += ("schedule.", "evaluation.", "checkpoint.")


def run_config(path: Path, overrides: Sequence[str], trial: Trial, output: Path) -> RunConfig:
    """Return the config of a file with the trial's pictures, batches and seed.

    Raises DetrKitError for overrides of what the trial decides, and as `load_config` does.
    """
    for override in overrides:
        if override.startswith(_DECIDED):
            key = override.split("=")[0]
            raise DetrKitError(f"{key} is the same for both sides: it is an option of this script")
    given = [
        f"data.{split}.{key}={place}"
        for split in ("train", "val")
        for key, place in trial.split(split).items()
    ]
    given += [
        f"output={output}",
        "data.num_workers=0",  # what is measured is one process, and memory that it knows of
        f"batch_size={trial.batch_size}",
        "accumulate=1",
        f"seed={trial.seed}",
        f"image_size.mean={list(trial.preprocessing.mean)}",
        f"image_size.std={list(trial.preprocessing.std)}",
    ]
    weights = f"model.backbone_weights={trial.weights}"
    return load_config(path, [weights, *overrides, *given])


class OurLearner:
    """The parts of a training run, without its folder."""

    def __init__(self, config: RunConfig, trial: Trial, overrides: Sequence[str]) -> None:
        self.session = Session(config)
        self.loader = self.session.loader
        trial.use_pipelines(self.loader)
        self.optimizer = self.session.optimizer
        self.device = self.session.accelerator.device
        self.loss = float("nan")
        parameters = sum(p.numel() for p in self.session.bare_model.parameters())
        self.settings: dict[str, Any] = {
            "overrides": list(overrides),
            "model": self.session.spec.architecture | {"backbone_weights": trial.weights.name},
            "optimizer": config.optimizer.model_dump(mode="json"),
            "loss_config": config.loss.model_dump(mode="json"),
            "average": config.average.decay,
            "parameters": parameters,
        }

    def step(self, images: CollatedImages, targets: TargetBatch, number: int) -> None:
        step = self.session.step
        step.model.train()
        counts = StepCounts.of([targets], step.num_queries)
        figures = step([(images, targets)], number, counts)  # those of the step before
        if figures is None:
            return
        self.loss = figures.values["loss"]
        if figures.failed:
            raise DetrKitError(f"step {figures.step}: loss or gradients are not finite")

    def find(self, split: EvaluationSplit) -> ResultColumns:
        session = self.session
        skipped: list[str] = []
        with session.validation.weights():
            found = predict_batches(
                session.bare_model,
                noting_skipped(split.loader, skipped),
                categories=session.spec.categories,
                preprocessing=session.spec.preprocessing,
                device=self.device,
            )
            return result_columns(dict(found))
