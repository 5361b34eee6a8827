"""Being asked to stop: by a scheduler (SIGTERM) or by a person (Ctrl-C, SIGINT)."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# sysexits.h: a temporary failure, the user is invited to try again.
STOPPED_EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While it is entered, the first signal is noted, for the run to save and stop by itself.

    The second one does what it always does. Outside of the main thread, where Python lets nobody
    handle signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class Stopped(Exception):
    """A run was asked to stop, and has come to a place where it can."""
