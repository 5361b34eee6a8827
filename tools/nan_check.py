"""What does a user get to read when a training meets nan?

    python tools/nan_check.py

Trains a tiny detector on generated pictures and plants nan before its third step: in a picture (a
float one, as a data set of one's own may give), in a target and in a weight. Prints the line that
ends each run, the file that is kept with it, and the step that the checkpoint is of. Exits with
status 1 where a run does not end so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from detr_kit import DetrKitError, train
from detr_kit.config import RunConfig, parse_config
from detr_kit.data.sample import write_sample
from detr_kit.training.state import load_training_state
from detr_kit.training.step import Batch, StepFigures, TrainingStep

PLANTED_BEFORE = 2  # counted from 0
Planter = Callable[[nn.Module, Sequence[Batch]], None]


def in_picture(model: nn.Module, batches: Sequence[Batch]) -> None:
    images, _ = batches[0]
    floats = images.pixels.float()
    floats[1, 5, 7, 0] = torch.nan
    object.__setattr__(images, "pixels", floats)


def in_target(model: nn.Module, batches: Sequence[Batch]) -> None:
    batches[0][1].boxes_cxcywh[0, 2] = torch.nan


def in_weight(model: nn.Module, batches: Sequence[Batch]) -> None:
    with torch.no_grad():
        model.get_parameter("decoder.layers.1.mlp.fc1.weight")[3, 4] = torch.nan


def config_of(data: Path, output: Path) -> RunConfig:
    splits = {
        split: {"annotations": data / f"annotations/{split}.json", "images": data / split}
        for split in ("train", "val")
    }
    values = {
        "output": output,
        "epochs": 2,
        "batch_size": 2,
        "model": {"name": "detr_small", "backbone": "plain"},
        "data": {**splits, "num_workers": 0, "augmentation": "none"},
        "image_size": {"rule": "square", "short_side": 64},
        "checkpoint": {"steps": 1},
    }
    return parse_config(values, source="nan_check")


def ends(config: RunConfig, plant: Planter) -> bool:
    """Train with nan planted; print what ends the run; return whether it is what should."""
    take = TrainingStep.__call__

    def planted(
        self: TrainingStep, batches: Sequence[Batch], step: int, *rest: Any, **more: Any
    ) -> StepFigures | None:
        if step == PLANTED_BEFORE:
            plant(self.model, batches)
        return take(self, batches, step, *rest, **more)

    with (
        mock.patch.object(TrainingStep, "__call__", planted),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            train(config)
        except DetrKitError as error:
            line = str(error)
        else:
            line = ""
    saved = config.output / "nonfinite_batch.pt"
    step = load_training_state(config.output / "last").progress.step
    print(f"  {line or 'the run did not end'}")
    if saved.exists():
        kept = sorted(torch.load(saved, weights_only=True))
        print(f"  {saved.name} holds {', '.join(kept)}; last/ is of step {step}")
    return bool(line) and "\n" not in line and saved.exists() and step == PLANTED_BEFORE


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_sample(data, "easy", train=8, val=2)
        for name, plant in (("picture", in_picture), ("target", in_target), ("weight", in_weight)):
            print(f"nan in a {name}:")
            good &= ends(config_of(data, Path(folder) / name), plant)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
