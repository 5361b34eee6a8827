"""What a run needs beside its weights to go on as if it had never stopped.

Data order, augmentation and the random streams of the model are keyed by (seed, epoch, rank), so
the number of finished epochs stands for all of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write

_STATE_FILE = Path("training_state") / "state.pt"


@dataclass
class Progress:
    """How far a run has come: finished epochs, optimiser steps, the best AP and its epoch."""

    epoch: int = 0
    step: int = 0
    best_ap: float | None = None
    best_epoch: int | None = None


def save_training_state(
    checkpoint: Path, progress: Progress, optimizer: dict[str, Any], scaler: dict[str, Any] | None
) -> None:
    """Write `training_state/` into a checkpoint folder."""
    state = {"progress": asdict(progress), "optimizer": optimizer, "scaler": scaler}
    with atomic_write(checkpoint / _STATE_FILE) as path:
        torch.save(state, path)


def load_training_state(
    checkpoint: Path,
) -> tuple[Progress, dict[str, Any], dict[str, Any] | None]:
    """Read it back; raises DetrKitError where the folder holds none."""
    path = checkpoint / _STATE_FILE
    if not path.is_file():
        raise DetrKitError(f"{checkpoint}: holds no training state to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return Progress(**state["progress"]), state["optimizer"], state["scaler"]
    except Exception as error:  # torch.load raises whatever its reader met
        raise DetrKitError(f"{path}: cannot be read ({type(error).__name__})") from error
