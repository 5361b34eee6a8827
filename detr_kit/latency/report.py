"""What a benchmark found, as tables and as json."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from detr_kit.latency.backends import Backend
from detr_kit.latency.benchmark import BenchmarkReport
from detr_kit.latency.machine import machine_text
from detr_kit.latency.measuring import STAGES, Latency

if TYPE_CHECKING:
    from rich.table import Table

# Beyond this, the slowest call to the median, a machine is not quiet.
_STEADY = 2.0
_HEADINGS = ("batch", "median", "p99", "min", "max", "images/s", "pre", "model", "post", "MiB")


def to_json(report: BenchmarkReport) -> dict[str, Any]:
    """Return plain values; times are milliseconds a call."""
    return {
        "machine": report.machine,
        "measured": [
            {"backend": backend, **asdict(latency), "images_per_second": latency.images_per_second}
            for backend, latency in report.measured
        ],
        "skipped": [{"backend": backend, "reason": reason} for backend, reason in report.skipped],
    }


def tables(report: BenchmarkReport) -> list[Table]:
    """Return a table of milliseconds a call for each size of pictures."""
    sizes = dict.fromkeys(latency.size_hw for _, latency in report.measured)
    return [
        _table([row for row in report.measured if row[1].size_hw == size_hw]) for size_hw in sizes
    ]


def lines(report: BenchmarkReport) -> list[str]:
    """Return what is to be said beside the table: the machine, what was skipped, unrest."""
    found = [machine_text(report.machine)]
    found += [f"skipped {backend}: {reason}" for backend, reason in report.skipped]
    unrest = max(row.total_ms.max / row.total_ms.median for _, row in report.measured)
    if unrest > _STEADY:
        found.append(
            f"a call took up to {unrest:.1f} times the median of its row: other programs may be "
            "using this machine"
        )
    return found


def _table(rows: list[tuple[Backend, Latency]]) -> Table:
    from rich import box
    from rich.table import Table

    (height, width), (seen_height, seen_width) = rows[0][1].size_hw, rows[0][1].resized_hw
    table = Table(
        "backend",
        title=f"{height}x{width}, which the model sees as {seen_height}x{seen_width}; ms a call",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for backend, latency in rows:
        table.add_row(*_cells(backend, latency))
    return table


def _cells(backend: Backend, latency: Latency) -> list[str]:
    total = latency.total_ms
    times = [total.median, total.p99, total.min, total.max]
    stages = [latency.stage_ms.get(stage) for stage in STAGES]
    peak = latency.peak_bytes
    return [
        backend,
        str(latency.batch_size),
        *map(_digits, times),
        _digits(latency.images_per_second),
        *("" if stage is None else _digits(stage) for stage in stages),
        "" if peak is None else f"{peak / 2**20:.0f}",
    ]


def _digits(value: float) -> str:
    """Write three digits or more, as times of a machine that does other things too bear no more."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
