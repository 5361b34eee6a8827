"""What a run leaves behind for reading: `metrics.jsonl` and TensorBoard events.

One line of `metrics.jsonl` an epoch, with the keys `epoch` (from 1), `step`, `lr`, `seconds`
(training of the epoch), `images_per_second`, `skipped_images` (unreadable ones, which others
replaced), `train` (mean of each logged loss) and, where the epoch was evaluated, `val` (the keys of
`CocoMetrics.to_dict()`) and `eval_seconds`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from detr_kit.files import atomic_write

METRICS_FILE = "metrics.jsonl"


def read_metrics(run_folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; none where it does not exist yet."""
    path = Path(run_folder) / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A line without its end was being written when the process ended.
    return [json.loads(line) for line in lines if line.endswith("\n")]


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
