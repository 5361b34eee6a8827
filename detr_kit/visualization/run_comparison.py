"""Runs drawn together: losses, a figure of the validation, rates and gradients."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from rich.text import Text

from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write
from detr_kit.visualization.histories import values_of
from detr_kit.visualization.page import render
from detr_kit.visualization.texts import decimal, readable

Rows = Sequence[Mapping[str, Any]]
XAxis = Literal["epoch", "step", "hours"]

FORMATS = (".png", ".svg", ".pdf", ".html")

_PER_CLASS = "per_class/"
_LOG_SCALED = ("lr", "grad_norm")
_PANELS = (
    ("training loss, all layers", ("train", "loss")),
    ("class loss, last layer", ("train", "class")),
    ("L1 loss, last layer", ("train", "l1")),
    ("GIoU loss, last layer", ("train", "giou")),
    ("", ()),  # the figure of the validation
    ("learning rate", ("lr",)),
    ("gradient norm", ("train", "grad_norm")),
)
# Colours that can be told apart; further runs repeat them in other dashes.
_COLORS = 10
_DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
_DOTTED_BELOW = 30


@dataclass(frozen=True)
class RunSummary:
    """What a run has come to; a figure that it does not have is nan, its epoch None."""

    name: str
    epoch: int
    step: int
    hours: float
    loss: float
    last: float
    best: float
    best_epoch: int | None

    def cells(self) -> list[str]:
        return [
            self.name,
            str(self.epoch),
            str(self.step),
            str(timedelta(seconds=round(3600 * self.hours))),
            _number(self.loss),
            _number(self.last),
            _number(self.best),
            "-" if self.best_epoch is None else str(self.best_epoch),
        ]


def summary_of(name: str, rows: Rows, metric: str = "ap") -> RunSummary:
    """Return what the rows of a run, at least one, come to; the best figure is the highest."""
    scores = _scores(rows, metric)
    known = np.flatnonzero(np.isfinite(scores))
    best = known[scores[known].argmax()] if len(known) else None
    last = rows[-1]
    return RunSummary(
        name,
        last["epoch"],
        int(np.nan_to_num(values_of(rows, "step")[-1])),
        _hours(rows)[-1],
        values_of(rows, "train", "loss")[-1],
        scores[known[-1]] if len(known) else math.nan,
        math.nan if best is None else scores[best],
        None if best is None else rows[best]["epoch"],
    )


def columns_of(metric: str) -> list[str]:
    """Return the names of `RunSummary.cells`."""
    metric = metric.removeprefix(_PER_CLASS)
    return [
        "run",
        "epochs",
        "steps",
        "time",
        "last loss",
        f"last {metric}",
        f"best {metric}",
        "at epoch",
    ]


def comparison_table(summaries: Sequence[RunSummary], metric: str = "ap") -> Table:
    """Return a table to print with rich."""
    table = Table()
    for place, column in enumerate(columns_of(metric)):
        table.add_column(Text(column), justify="right" if place else "left", overflow="fold")
    for summary in summaries:
        table.add_row(*map(Text, summary.cells()))
    return table


def draw_runs(
    runs: Mapping[str, Rows], out: str | Path, *, metric: str = "ap", x: XAxis = "epoch"
) -> None:
    """Draw the rows of runs, by name, into a picture or an HTML page with their table.

    `metric` is a key of `CocoMetrics.to_dict()`, one of its `others`, or `per_class/NAME`. What a
    run does not hold is not drawn. Raises DetrKitError for a metric that no evaluated run has, for
    a file of none of `FORMATS`, and without any row.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise DetrKitError(f"{out}: not the name of a file to draw into: {', '.join(FORMATS)}")
    runs = {name: rows for name, rows in runs.items() if rows}
    if not runs:
        raise DetrKitError(f"{out}: no finished epoch to draw")
    require_metric(runs, metric)
    figure = _figure(runs, metric, x)
    if out.suffix.lower() != ".html":
        with atomic_write(out) as temporary:
            figure.savefig(temporary, dpi=120)
        return
    file = io.BytesIO()
    # The same runs give the same file.
    with rc_context({"svg.hashsalt": "runs"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    page = render(
        "runs.html",
        columns=columns_of(metric),
        rows=[summary_of(name, rows, metric).cells() for name, rows in runs.items()],
        drawing=base64.b64encode(file.getvalue()).decode(),
    )
    with atomic_write(out) as temporary:
        temporary.write_bytes(page)


def require_metric(runs: Mapping[str, Rows], metric: str) -> None:
    """Raise DetrKitError for a metric that none of the evaluated runs has, naming those there are.

    A figure may be null, where there is no object that it is about.
    """
    known: dict[str, None] = {}
    for rows in runs.values():
        for row in rows:
            known |= dict.fromkeys(_metrics(row.get("val")))
    if known and metric not in known:
        shown = ", ".join(name for name in known if "/" not in name)
        raise DetrKitError(
            f"--metric {metric}: no run has it; there are {shown}, and per_class/NAME"
        )


def _metrics(val: Any) -> list[str]:
    if not isinstance(val, Mapping):
        return []
    names = [
        name
        for name, value in val.items()
        if value is None or isinstance(value, int | float)
        if name not in ("ap_interval", "options", "seconds")
    ]
    for part, prefix in (("others", ""), ("per_class", _PER_CLASS)):
        inner = val.get(part)
        names += [prefix + name for name in inner] if isinstance(inner, Mapping) else []
    return names


def _scores(rows: Rows, metric: str) -> np.ndarray:
    if metric.startswith(_PER_CLASS):
        return values_of(rows, "val", "per_class", metric.removeprefix(_PER_CLASS))
    scores = values_of(rows, "val", metric)
    return np.where(np.isfinite(scores), scores, values_of(rows, "val", "others", metric))


def _hours(rows: Rows) -> np.ndarray:
    """Return the hours of training and evaluation up to each row."""
    seconds = np.nan_to_num(values_of(rows, "seconds"))
    return np.cumsum(seconds + np.nan_to_num(values_of(rows, "eval_seconds"))) / 3600


def _figure(runs: Mapping[str, Rows], metric: str, x: XAxis) -> Figure:
    figure = Figure(figsize=(15, 6.5), layout="constrained")
    *panels, key = figure.subplots(2, 4).flat
    samples = [_sample(place) for place in range(len(runs))]
    for axes, (title, keys) in zip(panels, _PANELS, strict=True):
        for rows, sample in zip(runs.values(), samples, strict=True):
            xs = _hours(rows) if x == "hours" else values_of(rows, x)
            ys = values_of(rows, *keys) if keys else _scores(rows, metric)
            _draw(axes, xs, ys, sample)
        axes.set_title(title or _plain(f"{metric} in validation"), fontsize="medium")
        _scale(axes, can_be_log=bool(keys) and keys[-1] in _LOG_SCALED)
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=x != "hours"))
        axes.grid(alpha=0.3)
    key.set_axis_off()
    key.legend(samples, map(_plain, runs), loc="upper left", frameon=False)
    return figure


def _sample(place: int) -> Line2D:
    dashes = _DASHES[place // _COLORS % len(_DASHES)]
    return Line2D([], [], color=f"C{place % _COLORS}", linestyle=dashes)


def _draw(axes: Axes, xs: np.ndarray, ys: np.ndarray, sample: Line2D) -> None:
    """Draw what is known: not each epoch is evaluated."""
    known = np.isfinite(xs) & np.isfinite(ys)
    if known.any():
        axes.plot(
            xs[known],
            ys[known],
            color=sample.get_color(),
            linestyle=sample.get_linestyle(),
            marker="." if known.sum() < _DOTTED_BELOW else None,
        )


def _scale(axes: Axes, *, can_be_log: bool) -> None:
    """Show values from zero on, or those that span powers of ten by their logarithm."""
    if not axes.lines:
        axes.text(0.5, 0.5, "not recorded", ha="center", transform=axes.transAxes)
        return
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines])
    low, high = min(values.min(), 0.0), values.max()
    if can_be_log and (values > 0).all() and high >= 10 * values.min():
        axes.set_yscale("log")
        return
    room = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - (room if low < 0 else 0), high + room)


def _plain(text: str) -> str:
    """Return a text that matplotlib neither sets as a formula nor hides."""
    shown = readable(text, 60).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _number(value: float) -> str:
    return decimal(value) if math.isfinite(value) else "-"
