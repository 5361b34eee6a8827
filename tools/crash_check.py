"""Does a run that is struck down and resumed, again and again, end as if nothing had happened?

    python tools/crash_check.py                        # kill -9 at 20 random moments
    python tools/crash_check.py --signal TERM          # asked to stop: saves and exits with 75
    python tools/crash_check.py --processes 2          # under torchrun
    mount -t tmpfs -o size=32m tmpfs DIR
    python tools/crash_check.py --disk-full DIR        # the disk is filled and freed again

Trains a tiny detector on generated pictures, with whatever a run can have of its own to remember:
dropout, batch norm, augmentation, accumulation, averaged weights, a worker. Moments lie while the
run starts, between saves and in the middle of them. In the end weights, averages, optimiser,
metrics and detections must be bit-equal to those of a run that nobody disturbed, and nothing may
be left over. Exits with status 1 where they are not.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from same_runs import differences
from struck_job import PATIENCE, Job, SaveWatch

from detr_kit.data.sample import write_sample

CONFIG = """
epochs: 8
batch_size: 2
accumulate: 2
model: {name: detr_small, backbone_norm: batch, backbone_stages: 1, frozen_stages: 0,
        hidden_dim: 32, num_heads: 2, feedforward_dim: 32, encoder_layers: 1, decoder_layers: 2,
        num_queries: 6, dropout: 0.1}
data: {num_workers: 1, augmentation: small_data}
image_size: {rule: square, short_side: 64}
optimizer: {lr: 1.0e-3, lr_backbone: 1.0e-3}
schedule: {kind: cosine, per: step, warmup_steps: 10}
average: {decay: 0.99, warmup_steps: 20}
checkpoint: {minutes: null, steps: 3, keep: 2, keep_every: 3}
"""
PICTURES = 44  # the last step of an epoch is a small one
STOPPED = 75


@dataclass(frozen=True)
class Pace:
    """Of the undisturbed run: seconds to its first save, of a save, between two; its length."""

    start: float
    save: float
    gap: float
    saves: int
    steps: int


@dataclass(frozen=True)
class Moment:
    """`seconds` after the start, after a number of saves, or into the save after these."""

    kind: str
    saves: int
    seconds: float

    @classmethod
    def draw(cls, rng: random.Random, pace: Pace, budget: float, *, saves: int = 0) -> Moment:
        """Draw one that leaves enough of the run for the others: `budget` saves, on average.

        `saves` are those that the process has been seen to make before.
        """
        kind = rng.choices(["starting", "training", "saving"], [1, 2, 2])[0]
        more = int(rng.uniform(0, 1.5 * budget))
        if kind == "starting" and not saves:
            return cls(kind, 0, rng.uniform(0, pace.start))
        if kind == "saving":
            return cls(kind, saves + more, rng.uniform(0, 1.2 * pace.save))
        return cls("training", saves + max(more, 1), rng.uniform(0, pace.gap))

    def wait(self, process: subprocess.Popen[bytes], watch: SaveWatch) -> bool:
        """Return at the moment; False where the process has ended before."""
        if self.kind == "saving":
            if not watch.follow(process, lambda: watch.saves >= self.saves and watch.began):
                return False
        elif not watch.follow(process, lambda: watch.saves >= self.saves):
            return False
        end = time.monotonic() + self.seconds
        is_starting = self.kind == "starting"  # which may be faster than it was
        return watch.follow(
            process, lambda: time.monotonic() >= end or (is_starting and watch.saves > 0)
        )


@dataclass
class Table:
    """What happened, line by line as it does."""

    faults: list[str] = field(default_factory=list)
    number: int = 0

    def head(self, *names: str) -> None:
        self.widths = [max(len(name), 10) for name in names]
        self.row(*names)

    def row(self, *cells: object) -> None:
        padded = [f"{cell!s:<{w}}" for cell, w in zip(cells, self.widths, strict=True)]
        print("  ".join(padded).rstrip(), flush=True)

    def fault(self, text: str) -> None:
        self.faults.append(text)
        print(f"  {text}", flush=True)


def train_undisturbed(job: Job) -> Pace:
    watch = SaveWatch(job.folder)
    process = job.start()
    watch.follow(process, lambda: False)
    if process.returncode:
        raise SystemExit(f"crash_check: the undisturbed run failed: {job.said()}")
    watch.look()
    if len(watch.lengths) < 2:
        raise SystemExit("crash_check: saves are too fast to be seen from outside")
    first = watch.last_save - sum(watch.gaps) - watch.started
    mean = sum(watch.lengths) / len(watch.lengths)
    steps = job.saved_step()
    assert steps is not None
    pace = Pace(first, mean, sum(watch.gaps) / len(watch.gaps), watch.saves, steps)
    print(
        f"undisturbed: {steps} steps, first save after {pace.start:.1f} s, "
        f"{pace.saves} saves of {1000 * pace.save:.0f} ms every {pace.gap:.2f} s\n",
        flush=True,
    )
    return pace


def strike(
    process: subprocess.Popen[bytes], number: signal.Signals, rng: random.Random, processes: int
) -> str:
    """Send a signal as it comes in life; return to whom."""
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in children if "detr_kit.cli" in child.cmdline()]
    if number == signal.SIGKILL and ranks and rng.random() < 0.5:
        # Of several, one goes; the launcher ends the others.
        rng.choice(ranks).send_signal(number)
        return "one rank"
    process.send_signal(number)
    # The launcher alone would leave its ranks behind: they are in sessions of their own.
    if processes == 1 and rng.random() < 0.5:
        return "main"
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.send_signal(number)
    return "all"


def end_of(process: subprocess.Popen[bytes], children: list[psutil.Process], table: Table) -> int:
    """Wait for a process and whatever it started; return its exit status."""
    try:
        code = process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        table.fault(f"it has not ended {PATIENCE} s after the signal")
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    alive = [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    if alive:
        table.fault(f"{len(alive)} of its processes live on: {alive[0].cmdline()}")
    for child in alive:
        child.kill()
    return code


def train_with_signals(job: Job, args: argparse.Namespace, pace: Pace, table: Table) -> None:
    number = signal.Signals[f"SIG{args.signal}"]
    rng = random.Random(args.seed)
    table.head("moment", "after", "to", "exit", "saved step", "lost")
    for kill in range(args.kills):
        before = job.saved_step()
        left = pace.saves * (1 - (before or 0) / pace.steps)
        moment = Moment.draw(rng, pace, left / (args.kills - kill + 1))
        watch = SaveWatch(job.folder)
        process = job.start()
        if not moment.wait(process, watch):
            if process.returncode:
                table.fault(f"it ended by itself with {process.returncode}: {job.said()}")
                return
            print("it ended before the next moment came")
            break
        children = psutil.Process(process.pid).children(recursive=True)
        struck = time.monotonic()
        to = strike(process, number, rng, job.processes)
        code = end_of(process, children, table)
        after, reached = f"{struck - watch.started:.2f} s", job.saved_step()
        since = watch.last_save if watch.saves else watch.started
        is_lossless = number != signal.SIGKILL and code in (0, STOPPED)
        lost = "nothing" if is_lossless else f"{struck - since:.2f} s"
        table.row(moment.kind, after, to, code, reached, lost)
        table.number += 1
        if (reached or 0) < (before or 0):
            table.fault(f"step {before} was saved before, and {reached} is now")
        if job.processes == 1 and code not in expected_codes(number, watch.saves > 0):
            table.fault(f"exit status {code}: {job.said()}")
    finish(job, table)


def expected_codes(number: signal.Signals, is_training: bool) -> tuple[int, ...]:
    if number == signal.SIGKILL:
        return (-signal.SIGKILL,)
    # Until it trains there is nothing to save; at its end, nothing to stop.
    return (STOPPED, 0) if is_training else (STOPPED, -number)


def finish(job: Job, table: Table) -> None:
    process = job.start()
    if process.wait(timeout=PATIENCE):
        table.fault(f"the last process ended with {process.returncode}: {job.said()}")


def train_on_full_disk(job: Job, args: argparse.Namespace, pace: Pace, table: Table) -> None:
    rng = random.Random(args.seed)
    table.head("moment", "after", "full for", "exit", "saved step", "said")
    process = job.start()
    watch = SaveWatch(job.folder)
    for kill in range(args.kills):
        left = pace.saves * (1 - (job.saved_step() or 0) / pace.steps)
        moment = Moment.draw(rng, pace, left / (args.kills - kill + 1), saves=watch.saves)
        if not moment.wait(process, watch):
            if process.returncode == 0:
                print("it ended before the next moment came")
                break
            table.row("since then", "", "", process.returncode, job.saved_step(), job.said())
            process, watch = job.start(), SaveWatch(job.folder)
            continue
        after = time.monotonic() - watch.started
        with disk_filled(args.disk_full):
            filled = time.monotonic()
            until = filled + rng.uniform(0, 2 * pace.gap)
            is_alive = watch.follow(process, lambda until=until: time.monotonic() >= until)
            full_for = time.monotonic() - filled
        reached = job.saved_step()
        told = ("runs on", reached, "") if is_alive else (process.returncode, reached, job.said())
        table.row(moment.kind, f"{after:.2f} s", f"{full_for:.2f} s", *told)
        table.number += 1
        if not is_alive:
            process, watch = job.start(), SaveWatch(job.folder)
    # A save may have failed after its moment had passed.
    if process.wait(timeout=PATIENCE):
        finish(job, table)


@contextmanager
def disk_filled(folder: Path) -> Iterator[None]:
    """Leave no room on a file system for a while."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 12))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        yield
    finally:
        filler.unlink(missing_ok=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="times it is struck (or disk full)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--processes", type=int, default=1, help="more than 1: under torchrun")
    parser.add_argument("--disk-full", type=Path, metavar="DIR", help="a small file system")
    parser.add_argument("--gpu", action="store_true", help="use it; bits may differ there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="new folder, left for a look")
    args = parser.parse_args()
    if args.disk_full is not None and shutil.disk_usage(args.disk_full).total > 1 << 28:
        parser.error(f"{args.disk_full} is no small file system: mount -t tmpfs -o size=32m ...")
    return args


def check(folder: Path, args: argparse.Namespace) -> int:
    write_sample(folder / "sample", "easy", train=PICTURES, val=6)
    config = folder / "run.yaml"
    config.write_text(CONFIG)
    whole = Job(folder / "whole", config, args.processes, args.gpu)
    struck = Job((args.disk_full or folder) / "struck", config, args.processes, args.gpu)
    table = Table()
    pace = train_undisturbed(whole)
    if args.disk_full is None:
        train_with_signals(struck, args, pace, table)
    else:
        train_on_full_disk(struck, args, pace, table)
    lines = differences(whole.folder, struck.folder)
    for line in lines[:20]:
        print(line)
    print(
        f"struck {table.number} times, {len(table.faults)} other faults; "
        f"bit-equal: {'no' if lines else 'yes'}"
    )
    return int(bool(lines or table.faults))


def main() -> int:
    args = arguments()
    if args.keep is not None:
        args.keep.mkdir(parents=True)
        return check(args.keep.resolve(), args)
    with tempfile.TemporaryDirectory() as folder:
        return check(Path(folder), args)


if __name__ == "__main__":
    sys.exit(main())
