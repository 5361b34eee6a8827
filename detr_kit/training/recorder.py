"""Recording a run while it trains: `metrics.jsonl`, see `run_files`, and TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from detr_kit.files import atomic_write
from detr_kit.training.run_files import METRICS_FILE, read_metrics


class Recorder:
    """Appends epochs to a run's folder; one process alone holds one."""

    def __init__(self, folder: Path, *, after_epoch: int = 0) -> None:
        """Continue the record of `folder` after `after_epoch`, dropping what lies beyond it."""
        self.folder = folder
        kept = [row for row in read_metrics(folder) if row["epoch"] <= after_epoch]
        with atomic_write(folder / METRICS_FILE) as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        next_step = kept[-1]["step"] + 1 if kept else 0
        self.events = SummaryWriter(str(folder / "events"), purge_step=next_step)

    def write(self, row: dict[str, Any]) -> None:
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        scalars = {"lr": row["lr"], "images_per_second": row["images_per_second"]}
        for part in ("train", "val"):
            for name, value in row.get(part, {}).items():
                if isinstance(value, float):
                    scalars[f"{part}/{name}"] = value
        for name, value in scalars.items():
            self.events.add_scalar(name, value, row["step"])
        self.events.flush()

    def close(self) -> None:
        self.events.close()
