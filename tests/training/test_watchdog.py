"""A training that stands still is reported: who, where, since when, and who waits for whom."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from detr_kit.training.watchdog import Watchdog

REPOSITORY = Path(__file__).parents[2]
LIMIT = 0.6  # seconds
# A process of a run: goes to its place, then stays there until it is told to go on.
PROCESS = """
import sys, time
from pathlib import Path
from detr_kit.training.watchdog import Watchdog

folder, rank, limit, turns = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]

def wait_for_a_line_that_never_comes():
    sys.stdin.readline()

with Watchdog(
    folder, rank=rank, world_size=2, minutes=limit / 60, say=lambda text: print(text, flush=True)
) as watchdog:
    for turn in turns:
        step, doing = turn.split(":")
        watchdog.at(int(step), doing)
    wait_for_a_line_that_never_comes()
"""


def eventually(holds: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


class Said(list[str]):
    """What a watchdog of the only process, in this one, says."""

    def watchdog(self, folder: Path, *, limit: float | None = LIMIT, world_size: int = 1):  # type: ignore[no-untyped-def]
        minutes = None if limit is None else limit / 60
        return Watchdog(
            folder,
            rank=0,
            world_size=world_size,
            minutes=minutes,
            say=lambda text: self.append(text),
        )


@pytest.fixture
def said() -> Said:
    return Said()


def test_a_hang_is_told_once_then_when_its_time_has_doubled(
    said: Said, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with said.watchdog(tmp_path) as watchdog:
        watchdog.at(7, "forward")
        time.sleep(1.5 * LIMIT)
        assert len(said) == 1
        time.sleep(1.5 * LIMIT)
        assert len(said) == 2
    assert said[0].startswith("warning: process 0 has done nothing for ")
    assert "at step 7 (forward)" in said[0]
    err = capfd.readouterr().err
    assert err.count("process 0 hangs at step 7 (forward), in:") == 2
    assert "time.sleep(1.5 * LIMIT)" in err
    assert not list(tmp_path.iterdir())


def test_long_work_that_shows_itself_is_no_hang(said: Said, tmp_path: Path) -> None:
    with said.watchdog(tmp_path) as watchdog:
        end = time.monotonic() + 3 * LIMIT
        while time.monotonic() < end:
            watchdog.at(7, "evaluating")
            time.sleep(LIMIT / 20)
    assert said == []


def test_going_on_is_told_and_the_next_hang_again(
    said: Said, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with said.watchdog(tmp_path) as watchdog:
        watchdog.at(1, "forward")
        assert eventually(lambda: len(said) == 1)
        watchdog.at(2, "forward")
        assert eventually(lambda: len(said) == 2)
        assert said[1].startswith("process 0 goes on after ")
        assert eventually(lambda: len(said) == 3)
    assert "step 2 (forward)" in said[2]


def test_without_a_limit_there_is_no_thread(said: Said, tmp_path: Path) -> None:
    before = threading.active_count()
    with said.watchdog(tmp_path, limit=None) as watchdog:
        watchdog.at(1, "forward")
        assert threading.active_count() == before


def test_the_thread_ends_with_the_run(said: Said, tmp_path: Path) -> None:
    before = threading.active_count()
    with said.watchdog(tmp_path, world_size=2):
        assert threading.active_count() == before + 1
        assert eventually(lambda: (tmp_path / "0.json").is_file())
    assert threading.active_count() == before
    assert not tmp_path.exists()


def test_a_folder_that_cannot_be_written_leaves_the_report_of_the_process_itself(
    said: Said, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with said.watchdog(tmp_path / "file" / "folder", world_size=2) as watchdog:
        watchdog.at(3, "forward")
        assert eventually(lambda: len(said) == 1)
    assert "at step 3 (forward)\n  where the other processes are is not known: " in said[0]


class Processes:
    """Real processes of a run of two, each in a place of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".processes"
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *turns: str) -> subprocess.Popen[str]:
        rank = len(self.started)
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(self.folder), str(rank), "2", *turns],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        self.started.append(process)
        return process

    def shows(self, rank: int) -> bool:
        try:
            return json.loads((self.folder / f"{rank}.json").read_text())["beat"] > 0
        except (OSError, ValueError):
            return False


def report_of(process: subprocess.Popen[str], lines: int) -> str:
    assert process.stdout is not None
    return "".join(process.stdout.readline() for _ in range(lines))


def ended(process: subprocess.Popen[str]) -> str:
    """Let a process go on to its end; return what it wrote to standard error."""
    _, err = process.communicate("\n", timeout=30)
    return err


@pytest.fixture
def processes(tmp_path: Path):  # type: ignore[no-untyped-def]
    both = Processes(tmp_path)
    yield both
    for process in both.started:
        process.kill()
        process.communicate()


def test_the_process_that_holds_up_the_other_is_named(processes: Processes) -> None:
    waiting = processes.start("4:reading data", "4:forward", "4:backward")
    late = processes.start("4:reading data", "4:forward")
    report = report_of(waiting, 3).splitlines()
    assert report[0].endswith("at step 4 (backward)")
    assert (
        f"process 0 ({socket.gethostname()}, pid {waiting.pid}): step 4 (backward) for" in report[1]
    )
    assert "it is behind" not in report[1]
    assert f"pid {late.pid}): step 4 (forward) for " in report[2]
    assert report[2].endswith(": it is behind, the others wait for it")
    time.sleep(1)  # the other one's limit comes at its own time
    for rank, (process, doing) in enumerate([(waiting, "backward"), (late, "forward")]):
        err = ended(process)
        assert f"process {rank} hangs at step 4 ({doing}), in:" in err
        assert "in wait_for_a_line_that_never_comes" in err
    assert not processes.folder.exists()


def test_processes_at_the_same_place_are_not_told_apart(processes: Processes) -> None:
    first = processes.start("4:forward", "5:forward")
    processes.start("5:forward")
    report = report_of(first, 4)
    assert "it is behind" not in report
    assert report.endswith(
        "none is behind: suspect what they share, connection or disk, or a device\n"
    )


def test_a_killed_process_is_told_from_one_that_waits(processes: Processes) -> None:
    first = processes.start("4:backward")
    killed = processes.start("4:forward")
    assert eventually(lambda: processes.shows(0) and processes.shows(1))
    killed.kill()
    report = report_of(first, 3)
    assert f"pid {killed.pid}): no sign of life for " in report
    assert "s, last at step 4 (forward): it ended, was killed, or its machine is gone\n" in report
    assert "behind" not in report


def test_the_next_process_speaks_where_the_first_is_lost(processes: Processes) -> None:
    lost, waiting = processes.start("4:forward"), processes.start("4:backward")
    assert eventually(lambda: processes.shows(0) and processes.shows(1))
    lost.kill()
    time.sleep(4)
    err = ended(waiting)
    assert "warning: process 1 has done nothing for" in err
    assert f"pid {lost.pid}): no sign of life for" in err


def test_what_a_killed_run_left_is_not_taken_for_a_process(processes: Processes) -> None:
    processes.folder.mkdir()
    left = {"beat": 9, "step": 3, "turn": 0, "doing": "x", "silent": 0, "host": "a", "pid": 1}
    (processes.folder / "1.json").write_text(json.dumps(left))
    assert report_of(processes.start("4:forward"), 3).endswith(
        "process 1: has not shown itself yet\n"
    )


def test_a_suspended_process_has_not_hung(processes: Processes) -> None:
    process = processes.start("4:forward")
    assert eventually(lambda: processes.shows(0))
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    time.sleep(1)
    assert "hangs" not in ended(process)
