"""A thread in each process that says when training no longer moves on, and who holds it up.

Processes tell each other where they are through small files in a folder of the run, not through
the network that may be what hangs.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

# How often a process says that it lives; shorter where a hang is reported sooner.
_BEAT_SECONDS = 5.0
# The calls at the bottom of the stack start the program; the innermost ones say where it hangs.
_STACK_CALLS = 12


@dataclass(frozen=True)
class Place:
    """Where a process is: `turn` counts what it has begun in this step, `since` is monotonic."""

    step: int
    turn: int
    doing: str
    since: float

    @property
    def order(self) -> tuple[int, int]:
        return self.step, self.turn


@dataclass(frozen=True)
class _Report:
    """What a process writes of itself, `beat` upon `beat`; `silent` are seconds without a call."""

    beat: int
    step: int
    turn: int
    doing: str
    silent: float
    host: str
    pid: int

    @property
    def order(self) -> tuple[int, int]:
        return self.step, self.turn


class Watchdog:
    """Reports a process that has called `at` for none of `minutes`; None reports nothing.

    A report says for each process what it does since when, which one the others wait for, and
    which one no longer lives; the first living process gives it to `say`. Every process that hangs
    prints where it does to standard error. Both come again when the time has doubled.

    Processes take the same turns in a step: whoever has begun fewer of them is behind.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        minutes: float | None,
        say: Callable[[str], None],
    ) -> None:
        self._limit = None if minutes is None else minutes * 60
        self._beat_seconds = min(_BEAT_SECONDS, (self._limit or 0) / 10)
        self._say = say
        self._rank = rank
        self._others = _Others(folder, rank, world_size)
        self._place = Place(0, 0, "starting", time.monotonic())
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        self._watched = threading.get_ident()
        self._place = Place(0, 0, "starting", time.monotonic())
        if self._limit is not None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            # A file system that hangs must not hold up the end of the process too.
            self._thread.join(timeout=2 * _BEAT_SECONDS)

    def at(self, step: int, doing: str) -> None:
        """Note what the process is about to do in optimiser step `step`; costs no more than that.

        Long work calls again and again with the same text, an evaluation for every batch.
        """
        last = self._place
        turn = last.turn + (doing != last.doing) if step == last.step else 0
        self._place = Place(step, turn, doing, time.monotonic())

    def _watch(self) -> None:
        assert self._limit is not None
        self._others.begin()
        due = self._limit
        # `stopped`: seconds in which this thread could not run either, suspended or in a debugger
        seen, stopped, last_beat = self._place, 0.0, time.monotonic()
        try:
            while not self._ended.wait(self._beat_seconds):
                now = time.monotonic()
                stopped += _surplus(now - last_beat, self._beat_seconds)
                last_beat = now
                place = self._place
                if place != seen:
                    if due > self._limit:
                        self._tell_of_end(place, place.since - seen.since)
                    seen, stopped, due = place, 0.0, self._limit
                silent = now - place.since - stopped
                self._others.exchange(place, silent)
                if silent >= due and not self._ended.is_set():
                    due = 2 * max(due, silent)
                    self._tell(place, silent)
        finally:
            self._others.end()

    def _tell(self, place: Place, silent: float) -> None:
        assert self._limit is not None
        lost = self._others.lost(after=self._limit / 2)
        if all(rank in lost for rank in range(self._rank)):
            lines = [
                f"warning: process {self._rank} has done nothing for {_duration(silent)}, at "
                f"{_where(place)}",
                *self._others.lines(place, silent, lost),
            ]
            self._give("\n".join(lines))
        stack = "".join(_stack(self._watched))
        print(
            f"process {self._rank} hangs at {_where(place)}, in:\n{stack}", end="", file=sys.stderr
        )
        sys.stderr.flush()

    def _tell_of_end(self, place: Place, seconds: float) -> None:
        if self._rank == 0:
            self._say(f"process 0 goes on after {_duration(seconds)}, at {_where(place)}")

    def _give(self, text: str) -> None:
        if self._rank == 0:
            self._say(text)
        else:  # the others' displays are silent
            print(text, file=sys.stderr, flush=True)


class _Others:
    """What the processes of a run tell each other; nothing where a run has one process."""

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self._folder = folder
        self._rank = rank
        self._ranks = range(world_size if world_size > 1 else 0)
        self._beat = 0
        self._fault: OSError | None = None
        self._known: dict[int, _Report] = {}
        # by the clock of this process: those of other machines may differ
        self._renewed: dict[int, float] = {}

    def begin(self) -> None:
        now = time.monotonic()
        self._renewed = dict.fromkeys(self._ranks, now)
        if self._rank == 0 and self._ranks:
            # Left by a run that was killed; whoever lives writes again soon.
            with suppress(OSError):
                for path in self._folder.glob("*.json"):
                    path.unlink(missing_ok=True)

    def exchange(self, place: Place, silent: float) -> None:
        """Write where this process is; read where the others are."""
        if not self._ranks:
            return
        self._beat += 1
        own = _Report(
            self._beat,
            place.step,
            place.turn,
            place.doing,
            silent,
            socket.gethostname(),
            os.getpid(),
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Replaced as a whole, but not forced to the disk: it is of no use after the run.
            unfinished = self._file(self._rank).with_suffix(".tmp")
            unfinished.write_text(json.dumps(asdict(own)), encoding="utf-8")
            unfinished.replace(self._file(self._rank))
            self._fault = None
        except OSError as error:
            self._fault = error
        now = time.monotonic()
        for rank in self._ranks:
            report = own if rank == self._rank else self._read(rank)
            if report is not None and report != self._known.get(rank):
                self._known[rank], self._renewed[rank] = report, now

    def end(self) -> None:
        with suppress(OSError):
            if self._ranks:
                self._file(self._rank).unlink(missing_ok=True)
                self._folder.rmdir()  # the last one; the others' raises

    def lost(self, *, after: float) -> dict[int, float]:
        """Return the processes without a sign of life for `after` seconds, and for how long."""
        now = time.monotonic()
        silence = {rank: now - renewed for rank, renewed in self._renewed.items()}
        return {rank: seconds for rank, seconds in silence.items() if seconds >= after}

    def lines(self, place: Place, silent: float, lost: dict[int, float]) -> list[str]:
        """Say of each process where it is, and which ones the others wait for."""
        if not self._ranks:
            return []
        if self._fault is not None:
            return [f"  where the other processes are is not known: {self._fault}"]
        places = {rank: report.order for rank, report in self._known.items()}
        first, last = min(places.values()), max(places.values())
        lines = []
        for rank in self._ranks:
            report = self._known.get(rank)
            if report is None:
                lines.append(f"  process {rank}: has not shown itself yet")
                continue
            name = f"  process {rank} ({report.host}, pid {report.pid})"
            if rank in lost:
                lines.append(
                    f"{name}: no sign of life for {_duration(lost[rank])}, last at "
                    f"{_where(report)}: it ended, was killed, or its machine is gone"
                )
                continue
            behind = first != last and report.order == first
            lines.append(
                f"{name}: {_where(report)} for {_duration(report.silent)}"
                + (": it is behind, the others wait for it" if behind else "")
            )
        if first == last and not lost and len(places) == len(self._ranks):
            lines.append(
                "  none is behind: suspect what they share, connection or disk, or a device"
            )
        return lines

    def _file(self, rank: int) -> Path:
        return self._folder / f"{rank}.json"

    def _read(self, rank: int) -> _Report | None:
        try:
            return _Report(**json.loads(self._file(rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # not there, or of another version
            return None


def _surplus(elapsed: float, expected: float) -> float:
    """Return by how much a beat came too late, where that is more than a busy machine explains."""
    return elapsed - expected if elapsed > 3 * expected + 1 else 0.0


def _where(place: Place | _Report) -> str:
    return f"step {place.step} ({place.doing})"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _stack(thread: int) -> Sequence[str]:
    frame: Any = sys._current_frames().get(thread)
    return traceback.format_stack(frame)[-_STACK_CALLS:] if frame is not None else []
