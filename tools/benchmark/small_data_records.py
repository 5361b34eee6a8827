"""What small_data.py and ladder.py record: JSON lines, the table and the plot made of them.

A line is an evaluation of a training: `name`, `side`, `config`, `seed`, `budget` (the minutes it
was given), `started`, `split`, `minutes` and `epoch` trained, the figures, `loss` since the
evaluation before, `step_seconds` (the median), `memory_mib`, `threads`, and what it was set to
learn with. The last one of a training is `final`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
USABLE = 0.5  # of AP50; the table tells when a detector came to it
# Okabe & Ito's colours, told apart by the colour-blind too; then dashes tell them apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")


class Records:
    """A file of rows; what is written is on the disk on return."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():  # what was cut off would spoil the line that comes after it
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """Return the rows; a last line that was cut off in writing is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


def trainings(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the validation rows of each training by its name, in the order of the file.

    Of several with the same name, seed and budget the newest that came to its end counts, or the
    newest of all. Names tell seeds and budgets where these differ.
    """
    attempts: dict[tuple[str, int, float], dict[str, list[Row]]] = {}
    for row in rows:
        if row["split"] == "val":
            key = (row["name"], row["seed"], row["budget"])
            attempts.setdefault(key, {}).setdefault(row["started"], []).append(row)
    many_seeds = len({seed for _, seed, _ in attempts}) > 1
    many_budgets = len({budget for _, _, budget in attempts}) > 1
    found = {}
    for (name, seed, budget), by_start in attempts.items():
        label = name + (f", {budget:g} min" if many_budgets else "")
        label += f", seed {seed}" if many_seeds else ""
        found[label] = max(by_start.values(), key=_finality)
    return found


def _finality(training: list[Row]) -> tuple[bool, str]:
    return training[-1]["final"], training[-1]["started"]


def is_done(rows: Sequence[Row], wanted: Row) -> bool:
    """Whether a training came to its end whose rows say all that `wanted` says."""
    return any(
        row["final"] and all(row.get(key) == value for key, value in wanted.items()) for row in rows
    )


def table(rows: Sequence[Row]) -> str:
    """Return the last evaluation of each training, and the test split's figures where there are."""
    head = ("", "min", "epochs", "AP", "AP50", "AP75", "small", "medium", "large")
    head += (f"AP50>{USABLE:g}", "s/step", "img/s", "MiB")
    lines = [head]
    for name, own in trainings(rows).items():
        last = own[-1]
        reached = next((f"{r['minutes']:.1f}" for r in own if (r["ap50"] or 0) > USABLE), "-")
        name += "" if last["final"] else " (unfinished)"
        lines.append(_cells(name, last, reached))
        tested = [r for r in rows if r["split"] == "test" and r["started"] == last["started"]]
        lines += [_cells("  on the test split", r, "") for r in tested if r["name"] == last["name"]]
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def _cells(name: str, row: Row, reached: str) -> tuple[str, ...]:
    figures = ("-" if row[key] is None else f"{row[key]:.3f}" for key in FIGURES)
    memory = "-" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}"
    return (
        name,
        f"{row['minutes']:.1f}",
        f"{row['epoch']:.1f}",
        *figures,
        reached,
        f"{row['step_seconds']:.3f}",
        f"{row['images_per_second']:.1f}",
        memory,
    )


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draw AP50 and AP against minutes of training; the ending of `out` decides the format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    own = trainings(rows)
    for panel, key, title in zip(panels, ("ap50", "ap"), ("AP50", "AP"), strict=True):
        for place, (name, evaluations) in enumerate(own.items()):
            panel.plot(
                [0.0, *(row["minutes"] for row in evaluations)],
                [0.0, *(row[key] or 0.0 for row in evaluations)],
                label=name,
                color=_COLOURS[place % len(_COLOURS)],
                linestyle=_DASHES[place // len(_COLOURS) % len(_DASHES)],
                marker="o",
                markersize=3,
                linewidth=1.5,
            )
        panel.set_title(title, loc="left")
        panel.set_xlabel("minutes of training")
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    if own:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
