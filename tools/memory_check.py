"""Does memory stay flat over ten cycles of training and evaluation?

    python tools/memory_check.py                                  # generated pictures, tiny model
    python tools/memory_check.py configs/detr_r50.yaml data.train.annotations=... batch_size=2

Trains in a process of its own and looks at it from outside, at the end of each cycle: one epoch
and one evaluation. Workers are counted by what is theirs alone (USS), as they share the rest. The
first cycles fill caches and start workers; growth is what comes after the third. Exits with status
1 where that is more than `--limit` megabytes a cycle.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from detr_kit.data.sample import write_sample
from detr_kit.training.run_files import read_metrics

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = """
batch_size: 4
epochs: 1
model: {name: detr_small, backbone_stages: 2, hidden_dim: 32, num_heads: 2, feedforward_dim: 32,
        encoder_layers: 1, decoder_layers: 2, num_queries: 10}
data: {num_workers: 2, augmentation: small_data}
image_size: {rule: detr, short_side: 96, long_side: 160, train_short_sides: [64, 80, 96, 112]}
average: {decay: 0.99}
"""
WARM_UP = 3  # cycles
MEGA = 1 << 20


def memory_mb(process: psutil.Process) -> tuple[float, float]:
    """Return the megabytes of a training process, and those of its workers together."""
    workers = sum(child.memory_full_info().uss for child in process.children(recursive=True))
    return process.memory_info().rss / MEGA, workers / MEGA


def follow(process: subprocess.Popen[bytes], output: Path) -> list[tuple[float, float]]:
    """Print a line for each cycle as it ends; return their figures."""
    watched = psutil.Process(process.pid)
    figures: list[tuple[float, float]] = []
    print("cycle  training MB  workers MB")
    while process.poll() is None:
        if len(read_metrics(output)) > len(figures):
            try:
                figures.append(memory_mb(watched))
            except psutil.Error:  # the last cycle and the process ended as one
                break
            main, workers = figures[-1]
            print(f"{len(figures):5}  {main:11.1f}  {workers:10.1f}", flush=True)
        time.sleep(0.05)
    return figures


def growth_mb(values: list[float]) -> float:
    """Return the slope of a line through the values (Theil and Sen, which resists outliers)."""
    slopes = [
        (later - earlier) / (j - i)
        for i, earlier in enumerate(values)
        for j, later in enumerate(values[i + 1 :], i + 1)
    ]
    return statistics.median(slopes)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="YAML file of the run; none: a generated one")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--limit", type=float, default=1.0, help="MB a cycle after the warm-up")
    parser.add_argument("--pictures", type=int, default=120, help="of the generated data set")
    args = parser.parse_args()
    if args.cycles < WARM_UP + 2:
        parser.error(f"{args.cycles} cycles show no growth: the first {WARM_UP} do not count")
    return args


def generated(folder: Path, pictures: int) -> list[str]:
    """Write a data set and its config; return the arguments that train on it."""
    sample = folder / "sample"
    write_sample(sample, "hard", train=pictures, val=pictures // 3)
    config = folder / "run.yaml"
    config.write_text(CONFIG)
    return [
        str(config),
        *(
            override
            for split in ("train", "val")
            for override in (
                f"data.{split}.annotations={sample}/annotations/{split}.json",
                f"data.{split}.images={sample}/{split}",
            )
        ),
    ]


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        run = [args.config, *args.overrides]
        if args.config is None:
            run = generated(Path(folder), args.pictures)
        # One more, as the process may end before the last one is seen.
        settings = [f"epochs={args.cycles + 1}", "evaluation.every=1", f"output={output}"]
        with (Path(folder) / "log").open("w+b") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "detr_kit.cli", "train", *run, *settings],
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )
            figures = follow(process, output)[: args.cycles]
            if process.wait() or len(figures) < args.cycles:
                log.seek(0)
                print(log.read().decode(errors="replace"), file=sys.stderr)
                return 1
    grown = [growth_mb(list(part)) for part in zip(*figures[WARM_UP:], strict=True)]
    print(
        f"growth a cycle after the first {WARM_UP}: training {grown[0]:+.2f} MB, "
        f"workers {grown[1]:+.2f} MB"
    )
    return int(max(grown) > args.limit)


if __name__ == "__main__":
    sys.exit(main())
