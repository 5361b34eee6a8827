"""The terminal's view of a run: what was set up, a live line of progress, a line an epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_LOG_WIDTH = 200


class TrainingDisplay:
    """Shows losses, throughput and the time left of the whole run.

    The live line appears on a terminal only; the line an epoch is printed everywhere. A display
    that is not `enabled` (every process but the first) prints nothing.
    """

    def __init__(self, *, total_steps: int, done_steps: int, enabled: bool = True) -> None:
        self.console = Console(quiet=not enabled)
        if not self.console.is_terminal:  # logs keep lines whole; only a terminal has a width
            self.console = Console(quiet=not enabled, width=_LOG_WIDTH)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("left"),
            # A rate over the last minutes: an evaluation in between must not blur the estimate.
            TimeRemainingColumn(compact=True),
            console=self.console,
            speed_estimate_period=120,
            disable=not (enabled and self.console.is_terminal),
        )
        self._task = self._progress.add_task(
            "starting", total=total_steps, completed=done_steps, figures=""
        )
        self._started = time.monotonic()
        self._done_at_start = done_steps
        self._total_steps = total_steps

    def __enter__(self) -> TrainingDisplay:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def step(self, step: int, description: str, figures: Mapping[str, float]) -> None:
        """Move the live line to `step`; `figures` are shown as name and number."""
        text = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        self._progress.update(self._task, completed=step, description=description, figures=text)

    def epoch(self, step: int, text: str) -> None:
        """Print what an epoch came to, with the time left."""
        elapsed = time.monotonic() - self._started
        per_step = elapsed / max(step - self._done_at_start, 1)
        left = per_step * (self._total_steps - step)
        self.console.print(f"{text}  left {format_seconds(left)}", highlight=False, soft_wrap=True)

    def message(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def setup(self, rows: Mapping[str, str]) -> None:
        """Print what the run was set up with, before its first step."""
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, value)
        self.console.print(table, highlight=False, markup=False)


def format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
