"""The files of a run's folder, besides its checkpoints.

One line of `metrics.jsonl` an epoch, with the keys `epoch` (from 1), `step`, `lr`, `seconds`
(training of the epoch), `images_per_second`, `skipped_images` (unreadable ones, which others
replaced), `train` (mean of each logged loss) and, where the epoch was evaluated, `val` (the keys of
`CocoMetrics.to_dict()`) and `eval_seconds`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detr_kit.errors import DetrKitError

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
# What the best checkpoint finds in the validation split.
RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"


def read_metrics(run_folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; none where it does not exist yet.

    Raises DetrKitError naming the line that is not what `Recorder` writes.
    """
    path = Path(run_folder) / METRICS_FILE
    if not path.exists():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):  # it was being written when the process ended
            break
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DetrKitError(f"{path}: line {number} is no json: {error}") from error
        if not isinstance(row, dict) or "epoch" not in row:
            raise DetrKitError(f"{path}: line {number} is not the record of an epoch")
        rows.append(row)
    return rows
