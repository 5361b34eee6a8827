"""How far a benchmark is, and how long it will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from detr_kit.latency.measuring import num_calls
from detr_kit.sizes import SizeHW


class BenchmarkProgress:
    """A line with the time that is left, on a terminal only.

    A call counts for as much as it has pixels: that is roughly how long it takes.
    """

    def __init__(
        self, num_backends: int, cases: Sequence[tuple[SizeHW, int]], repeats: int
    ) -> None:
        console = Console(stderr=True)
        self._line = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        pixels = sum(size_hw[0] * size_hw[1] * batch_size for size_hw, batch_size in cases)
        self._task = self._line.add_task(
            "loading", total=pixels * num_calls(repeats) * num_backends
        )

    def case(self, backend: str, size_hw: SizeHW, batch_size: int) -> Callable[[], None]:
        """Say what is measured now; return what is to be called after each call."""
        height, width = size_hw
        self._line.update(self._task, description=f"{backend}, {batch_size} x {height}x{width}")
        return lambda: self._line.advance(self._task, height * width * batch_size)

    def __enter__(self) -> BenchmarkProgress:
        self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.stop()
