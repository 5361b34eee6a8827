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

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
# What the best checkpoint finds in the validation split.
RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"


def read_metrics(run_folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; none where it does not exist yet."""
    path = Path(run_folder) / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A line without its end was being written when the process ended.
    return [json.loads(line) for line in lines if line.endswith("\n")]
