"""Compare detr_kit with the official code and with transformers, and print what was found.

    python tools/parity.py [--all] [--slow] [-k EXPRESSION]

Runs tests/parity and prints each comparison's difference in float64 and float32 beside its bound,
the largest over the models, how far the preparation of pictures is apart, and which comparison
shows each planted fault. `--all` prints a row for each model; `--slow` adds what is left out by
default: gradients and float32 results of the largest models, `Detector.predict` at full size. The
exit status is not zero if anything failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
WIDTH = 200  # a pipe has none of its own; rows are not to wrap

LEGEND = """
Both sides have the same random weights and get the same pictures. Differences are the largest
absolute ones, in the unit of what is compared: logits as they are, boxes in [0, 1] unless pixels
are named. Gradients: their norms, and their sums of products with random numbers (probes), both
relative to the norm. `sample` is the part of the official code's results that is kept in
tests/parity, `full` all of ../shared/fixtures, left out where that is missing.

transformers has no DINO: there is nothing to compare one with as a whole. Its RT-DETR takes sides
that are multiples of 32 and no mask, so that padded batches of it are not compared.
"""


class Rows:
    """A pytest plugin that keeps what tests recorded."""

    def __init__(self) -> None:
        self.comparisons: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == "parity":
                self.comparisons.append(value)
            elif name == "fault":
                self.faults.append(value)
            elif name == "comparison":  # its difference and unit follow
                self.pictures.append({"comparison": value, "passed": report.passed})
            elif name in ("difference", "unit") and self.pictures:
                self.pictures[-1][name] = value


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("Comparisons", "comparison", "float64", "bound", "float32", "bound", "passed")
    for row in rows:
        table.add_row(row["comparison"], *_differences(row), _verdict(row["passed"]))
    return table


def summary_table(rows: list[dict[str, Any]]) -> Table:
    """One row for each kind of comparison: the largest difference over its models."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        reference, model, what = _parts(row["comparison"])
        key = (reference, what, row["bound"], row["float32_bound"])
        groups.setdefault(key, []).append(row | {"model": model})
    table = _table(
        "Comparisons, the largest difference over all models",
        *("reference", "comparison", "models", "float64", "bound", "float32", "bound", "passed"),
    )
    for (reference, what, *_), found in groups.items():
        worst = found[0] | {
            kind: max((r[kind] for r in found if r[kind] is not None), default=None)
            for kind in ("float64", "float32")
        }
        models = str(len({row["model"] for row in found}))
        passed = _verdict(all(row["passed"] for row in found))
        table.add_row(reference, what, models, *_differences(worst), passed)
    return table


def _parts(comparison: str) -> tuple[str, str, str]:
    """Return reference, model and what is compared.

    Of "official MODEL, PART: WHAT" and "transformers, MODEL[, WHERE]: WHAT".
    """
    subject, _, what = comparison.partition(": ")
    if subject.startswith("official "):
        model, _, part = subject.removeprefix("official ").partition(", ")
        return f"official code ({part})", model, what
    reference, model, *where = subject.split(", ")
    return reference, model, ", ".join([what, *where])


def _differences(row: dict[str, Any]) -> list[str]:
    return [_number(row[key]) for key in ("float64", "bound", "float32", "float32_bound")]


def picture_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("Preparation of pictures", "comparison", "difference", "unit", "passed")
    for row in rows:
        difference = _number(row.get("difference"))
        table.add_row(row["comparison"], difference, row.get("unit"), _verdict(row["passed"]))
    return table


def fault_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("Planted faults", "fault", "shown by", "difference", "bound", "shown")
    for row in rows:
        numbers = [_number(row[key]) for key in ("difference", "bound")]
        table.add_row(row["fault"], row["comparison"], *numbers, _verdict(row["passed"]))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    texts = ("comparison", "fault", "reference", "shown by", "unit")
    for column in columns:
        table.add_column(column, no_wrap=True, justify="left" if column in texts else "right")
    return table


def _number(number: float | None) -> str:
    if number is None:
        return ""
    if float(number).is_integer() and number < 1e6:
        return f"{number:.0f}"
    return f"{number:.3g}" if 0.01 <= number < 1e6 else f"{number:.1e}"


def _verdict(passed: bool) -> str:
    return "yes" if passed else "[bold red]NO[/]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="a row for each model")
    parser.add_argument("--slow", action="store_true", help="the slow comparisons too")
    parser.add_argument("-k", metavar="EXPRESSION", help="only tests that match, as in pytest")
    chosen = parser.parse_args()
    arguments = [str(REPOSITORY / "tests" / "parity"), "--quiet", "-rs", "--tb=short"]
    if chosen.slow:
        arguments += ["-m", ""]
    if chosen.k:
        arguments += ["-k", chosen.k]
    rows = Rows()
    status = pytest.main(arguments, plugins=[rows])
    console = Console(width=WIDTH)
    for found, table in (
        (rows.comparisons, comparison_table if chosen.all else summary_table),
        (rows.pictures, picture_table),
        (rows.faults, fault_table),
    ):
        if found:
            console.print(table(found))
    console.print(LEGEND, highlight=False)
    found = [*rows.comparisons, *rows.pictures, *rows.faults]
    shown = f"{len(rows.comparisons) + len(rows.pictures)} comparisons, {len(rows.faults)} faults"
    failed = sum(not row["passed"] for row in found)
    console.print(f"{shown}: {failed} failed" if failed else f"{shown}: all passed")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
