"""Recording a run while it trains: `metrics.jsonl`, see `run_files`, TensorBoard and trackers.

The names in TensorBoard are those of `metrics.jsonl`, with a slash between a part and its key:
`train/loss`, `val/ap`, `rates/backbone`. The costs of matched pairs are there as shares:
`train/cost_share_class`. What every step reports stands under `step/`.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.files import atomic_write
from detr_kit.training.run_files import EVENTS_FOLDER, METRICS_FILE, read_metrics
from detr_kit.training.tracking import Trackers
from detr_kit.visualization.validation_pictures import draw_validation

# Each such step writes a point: the mean since the last one.
STEPS_A_POINT = 20

_COSTS = ("cost_class", "cost_l1", "cost_giou")


class Recorder:
    """Writes down what a run reports, in its folder and to `trackers`; one process holds one."""

    def __init__(
        self,
        folder: Path,
        *,
        after_epoch: int = 0,
        after_step: int = 0,
        trackers: Trackers | None = None,
    ) -> None:
        """Continue the record of `folder`, without what lies beyond `after_epoch` and `after_step`.

        A run that was stopped inside an epoch has made more steps than its last whole epoch; the
        step of that epoch holds where it is the larger one.
        """
        self.folder = folder
        kept = [row for row in read_metrics(folder) if row["epoch"] <= after_epoch]
        with atomic_write(folder / METRICS_FILE) as path:
            path.write_text("".join(map(_as_line, kept)), encoding="utf-8")
        next_step = max([after_step, *(row.get("step", 0) for row in kept)]) + 1
        self.events = SummaryWriter(
            str(folder / EVENTS_FOLDER), purge_step=next_step if next_step > 1 else 0, flush_secs=30
        )
        self.trackers = trackers or Trackers()
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Take in what a step reports; every 20th step, write the means of what was finite."""
        for name, value in values.items():
            if math.isfinite(value):
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1
        if step % STEPS_A_POINT == 0:
            means = {name: total / self._counts[name] for name, total in self._sums.items()}
            shown = {f"step/{name}": mean for name, mean in _with_cost_shares(means).items()}
            self._write(step, shown)
            self._sums, self._counts = {}, {}

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Append an epoch to `metrics.jsonl`; on return it is on the disk."""
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(_as_line(row))
            file.flush()
            os.fsync(file.fileno())
        self._write(row["step"], _scalars(row))
        self.events.flush()

    def pictures(self, step: int, found: ResultColumns, truth: GroundTruth, images: Path) -> None:
        """Show the first validation pictures with their objects and with what was found."""
        drawings = {
            f"validation/{place}": drawing
            for place, drawing in enumerate(draw_validation(found, truth, images), 1)
        }
        for name, drawing in drawings.items():
            summary = Summary(value=[Summary.Value(tag=name, image=_jpeg(drawing))])
            writer: Any = self.events.file_writer
            writer.add_summary(summary, step)
        self.events.flush()
        self.trackers.pictures(step, drawings)

    def flush(self) -> None:
        """Bring the events so far to the disk."""
        self.events.flush()

    def close(self) -> None:
        self.trackers.close()
        self.events.close()

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.events.add_scalar(name, value, step)
        self.trackers.log(step, scalars)


def _as_line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return json's own values: nan and infinity have none."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what can be drawn of a row: finite numbers, by part and key.

    Of an evaluation, these are the figures and no more: there may be a thousand classes.
    """
    val = row.get("val", {})
    figures = {name: value for name, value in val.items() if isinstance(value, float)}
    parts = {
        "": {name: value for name, value in row.items() if name not in ("epoch", "step")},
        "rates/": row.get("rates", {}),
        "train/": _with_cost_shares(row.get("train", {})),
        "matching/": row.get("matching", {}),
        "val/": figures | val.get("others", {}),
    }
    return {
        prefix + name: float(value)
        for prefix, values in parts.items()
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _with_cost_shares(values: Mapping[str, float]) -> dict[str, float]:
    """Put the share that each term has in the size of the matched cost in the place of its cost.

    A term is negative where a pair is good: the cost of a class is minus its probability.
    """
    shares = {name: value for name, value in values.items() if name not in _COSTS}
    sizes = {name: abs(values[name]) for name in _COSTS if name in values}
    total = sum(sizes.values())
    if total > 0:
        for name, size in sizes.items():
            shares[name.replace("cost_", "cost_share_")] = size / total
    return shares


def _jpeg(drawing: Image.Image) -> Summary.Image:
    """A long run would write gigabytes of the PNGs that TensorBoard's own writer makes."""
    file = io.BytesIO()
    drawing.save(file, "JPEG", quality=85)
    width, height = drawing.size
    return Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=file.getvalue()
    )
