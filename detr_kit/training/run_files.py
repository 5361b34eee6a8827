"""The files of a run's folder, besides its checkpoints.

One line of `metrics.jsonl` an epoch, a json object; null stands for what has no finite value:

- `epoch` (from 1), `step`: finished epochs and optimiser steps;
- `lr`: the rate of the last parameter group at the end of the epoch; `rates`: of each, by name;
- `seconds`, `images_per_second`: of training, without evaluation; `seconds_waiting`: how long of
  it the training waited for data;
- `skipped_images`: unreadable ones, which others replaced; `skipped_steps`: those without an
  update, as something was not finite; `objects_cut`: objects beyond the number of queries;
- `train`: the mean of each logged loss, see `LossValues`, of `loss`, their weighted sum, and of
  `grad_norm`, the norm of the gradient before clipping;
- `matching`: `query_changed`, null where queries are selected from the picture, and
  `queries_never_matched`, see `MatchingRecord.finish_epoch`;
- where the epoch was evaluated, `val`, the keys of `CocoMetrics.to_dict()`, and `eval_seconds`.

Runs of older versions lack some of them.
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
# Checkpoints of single epochs, by `checkpoint.keep` and `keep_every`.
EPOCHS_FOLDER = "epochs"
# Where the processes of a run tell each other that they live; gone when it ends.
PROCESSES_FOLDER = ".processes"
# TensorBoard's.
EVENTS_FOLDER = "events"
# Under which ids the run goes on in Weights & Biases or MLflow.
TRACKERS_FILE = "trackers.json"


def read_metrics(run_folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; none where it does not exist yet.

    Raises DetrKitError naming the line that is not what `Recorder` writes.
    """
    path = Path(run_folder) / METRICS_FILE
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):  # it was being written when the process ended
            break
        try:
            row = json.loads(line.decode())
        except ValueError as error:
            raise DetrKitError(f"{path}: line {number} is no json: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            raise DetrKitError(f"{path}: line {number} is not the record of an epoch")
        rows.append(row)
    return rows
