"""What does each part of a detector cost? The ladder's steps beside plain DETR, in one run.

    python tools/benchmark/ladder_costs.py [key=value ...] [--steps 1 5 9] [--threads 1]

The detectors of ladder.py, with their optimiser and losses, take turns: each trains on the same
batches of bccd and finds the objects of one picture, of which its network and its post-processing
are timed. A ratio is a step's time divided by plain DETR's in the same turn; above 1 it is slower.
Memory is what training adds at most to the weights, a process for each. The time of a step
depends on the parts and not on how well a detector has learned, but for denoising, whose queries
grow with the objects of a batch; inference depends on neither.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from ladder import CONFIG, chosen
from rich.console import Console
from rich.progress import track
from small_data import add_trial_options, trial_of
from small_data_records import aligned
from small_data_sides import OurLearner, run_config
from small_data_trial import CLOCKS, EvaluationSplit, Memory, Trial

from detr_kit.errors import DetrKitError
from detr_kit.prediction import predict_batches

WARM_UP = 2
BATCHES = 4  # that the turns go through
MEMORY_STEPS = 4


class Rung:
    """A detector of the ladder that trains and predicts when it is told to."""

    def __init__(self, name: str, overrides: list[str], config: Path, trial: Trial) -> None:
        self.name = name
        with tempfile.TemporaryDirectory() as scratch:
            self.learner = OurLearner(
                run_config(config, overrides, trial, Path(scratch) / "run"), trial, overrides
            )
        self.batches = cycle(list(islice(self.learner.loader, BATCHES)))
        self.taken = 0

    @property
    def parameters(self) -> int:
        return self.learner.settings["parameters"]

    def train(self) -> None:
        self.learner.step(*next(self.batches), self.taken)
        self.taken += 1
        self._wait()

    def predict(self, picture: Any) -> None:
        session = self.learner.session
        found = predict_batches(
            session.bare_model,
            [picture],
            categories=session.spec.categories,
            preprocessing=session.spec.preprocessing,
            device=self.learner.device,
        )
        for _ in found:
            pass
        self._wait()

    def _wait(self) -> None:
        if self.learner.device.type != "cpu":
            torch.accelerator.synchronize(self.learner.device)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="what each part of a detector costs")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    add_trial_options(parser)
    parser.add_argument("--config", type=Path, default=CONFIG, help="what the settings change")
    parser.add_argument("--steps", nargs="+", type=int, help="their numbers; else all of them")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each step")
    parser.add_argument("--predictions", type=int, default=5, help="of one picture in a turn")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # for the processes that measure it
    return parser.parse_intermixed_args()


def seconds(work: Callable[[], None], clock: str, times: int = 1) -> float:
    now = CLOCKS[clock]
    started = now()
    for _ in range(times):
        work()
    return (now() - started) / times


def turns(rungs: Sequence[Rung], picture: Any, arguments: argparse.Namespace) -> list[Any]:
    """Return, for each turn, each rung's seconds of a training step and of a prediction."""
    found = []
    progress = track(
        range(WARM_UP + arguments.repeats), "turns", console=Console(stderr=True), transient=True
    )
    for turn in progress:
        row = []
        for rung in rungs:
            step = seconds(rung.train, arguments.clock)
            predict = partial(rung.predict, picture)
            alone = seconds(predict, arguments.clock, arguments.predictions)
            row.append((step, alone))
        if turn >= WARM_UP:
            found.append(row)
    return found


def memory_of(rung: Rung) -> float | None:
    """Return the mebibytes that a few training steps add at most."""
    memory = Memory(rung.learner.device)
    for _ in range(MEMORY_STEPS):
        rung.train()
    memory.pause()
    return memory.mebibytes


def measured_memory(name: str) -> str:
    """Start this script once more, for a step alone."""
    command = [sys.executable, *sys.argv, f"--memory-of={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.split()[-1]


def spread(values: Sequence[float], form: str) -> str:
    low, high = (format(value, form) for value in (min(values), max(values)))
    return f"{format(statistics.median(values), form)} ({low}-{high})"


def table(rungs: Sequence[Rung], found: list[Any], memory: Sequence[str]) -> str:
    head = ["", "parameters", "training step, ms", "to plain", "1 picture, ms", "to plain", "MiB"]
    lines = [head]
    for place, rung in enumerate(rungs):
        cells = [rung.name, f"{rung.parameters / 1e6:.2f}M"]
        for kind in (0, 1):
            own = [row[place][kind] for row in found]
            ratios = [row[place][kind] / row[0][kind] for row in found]
            cells += [spread([value * 1e3 for value in own], ".0f"), spread(ratios, ".2f")]
        lines.append([*cells, memory[place]])
    return aligned(lines)


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.steps:  # plain DETR is what the others are compared with
        arguments.steps = sorted({1, *arguments.steps})
    trial = trial_of(arguments)
    steps = chosen(arguments)
    if arguments.memory_of:
        name = arguments.memory_of
        print(memory_of(Rung(name, steps[name], arguments.config, trial)))
        return
    rungs = [Rung(name, own, arguments.config, trial) for name, own in steps.items()]
    picture, _ = next(iter(EvaluationSplit(replace(trial, batch_size=1), "val").loader))
    device = rungs[0].learner.device
    print(
        f"{device.type}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, batches "
        f"of {trial.batch_size}, {arguments.size}, {arguments.repeats} turns, {arguments.clock} "
        "time; median (min-max)"
    )
    found = turns(rungs, picture, arguments)
    print(table(rungs, found, [measured_memory(rung.name) for rung in rungs]))


if __name__ == "__main__":
    try:
        main()
    except DetrKitError as error:
        raise SystemExit(f"ladder_costs: {error}") from error
