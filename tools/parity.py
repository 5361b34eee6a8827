"""Compare detr_kit with the official code and with transformers, and print what was found.

    python tools/parity.py [--slow] [-k EXPRESSION]

Runs tests/parity and prints each comparison's difference in float64 and float32 beside its bound,
how far the preparation of pictures is apart, and which comparison shows each planted fault. The
exit status is not zero if anything failed. `--slow` adds the gradients and the float32 results of
the largest models.
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
WIDTH = 140  # a pipe has none of its own; rows are not to wrap


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
        pairs = [("float64", "bound"), ("float32", "float32_bound")]
        numbers = [_number(row[key]) for pair in pairs for key in pair]
        table.add_row(row["comparison"], *numbers, _verdict(row["passed"]))
    return table


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
    texts = ("comparison", "fault", "shown by", "unit")
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
        (rows.comparisons, comparison_table),
        (rows.pictures, picture_table),
        (rows.faults, fault_table),
    ):
        if found:
            console.print(table(found))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
