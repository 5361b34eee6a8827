"""How soon does a detector learn from few pictures? detr_kit's beside transformers' RT-DETRv2.

    python tools/benchmark/small_data.py --side transformers [--minutes 30] [--seed 0]
    python tools/benchmark/small_data.py --side detr_kit CONFIG [key=value ...]
    python tools/benchmark/small_data.py --plot FILE.jsonl ... [--picture FILE.png]

Each side learns from bccd's 205 pictures for so many minutes of training, from the same ImageNet
weights of an EfficientNet-Lite0. detr_kit's loader gives both the same pixels: size, crops, flips
and their order depend on the seed alone. Both rates warm up over steps and then follow the clock:
a cosine ends with the minutes, however fast the machine is. Every few minutes detr_kit's COCO
evaluation scores the validation pictures; its time is written down and not counted. Let each side
have the machine to itself, one after the other; where others use it too, `--clock cpu` counts the
time that the side's threads worked.

- `detr_kit` trains what CONFIG (of `detr-kit train`) and its overrides say of the model, the loss,
  the rates and the average; what is an option here is the same for both sides.
- `transformers` has its own model, loss and post-processing. Its backbone is wrapped, as
  transformers' frozen batch norms would drop the activations; that features are timm's is checked.
  `--initial pytorch` draws its layers as PyTorch does and RT-DETR's own code has it.

A row of the record is an evaluation, see small_data_records.py; a table of all that the file holds
follows, and a plot beside it. `--test` adds the test split at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
from small_data_peer import PEER_STRIDE, PeerLearner, PeerSettings
from small_data_records import Records, Row, draw, table
from small_data_sides import OurLearner, run_config
from small_data_trial import AUGMENTATIONS, CLOCKS, EvaluationSplit, Learner, Run, Trial

from detr_kit.errors import DetrKitError

SHARED = Path(__file__).resolve().parents[3] / "shared"
SIDES = ("transformers", "detr_kit")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="learning from few pictures, side by side")
    parser.add_argument("config", nargs="?", type=Path, help="of the side detr_kit")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--plot", nargs="+", type=Path, metavar="FILE", help="draw records only")
    add_trial_options(parser)
    parser.add_argument("--name", help="of the training in table and plot; else its side")
    parser.add_argument("--test", action="store_true", help="score the test split at the end too")
    parser.add_argument("--record", type=Path, default=Path("runs/small_data.jsonl"))
    parser.add_argument("--picture", type=Path, help="the plot; else the record's name with .png")
    peer = parser.add_argument_group("of the side transformers")
    peer.add_argument("--hidden-dim", type=int, default=128)
    peer.add_argument("--feedforward-dim", type=int, default=512)
    peer.add_argument("--decoder-layers", type=int, default=3)
    peer.add_argument("--queries", type=int, default=60)
    peer.add_argument("--denoising", type=int, default=50, help="queries; 0: none")
    peer.add_argument("--frozen-stages", type=int, default=0, help="of the backbone")
    peer.add_argument("--lr", type=float, default=2e-4)
    peer.add_argument("--lr-backbone", type=float, default=2e-5)
    peer.add_argument("--weight-decay", type=float, default=1e-4)
    peer.add_argument("--clip", type=float, default=0.1)
    peer.add_argument("--average", type=float, default=0.0, help="decay; 0: no average")
    peer.add_argument("--average-warm-up", type=int, default=0, help="steps")
    peer.add_argument("--initial", choices=("transformers", "pytorch"), default="transformers")
    arguments = parser.parse_intermixed_args()
    if (arguments.side is None) == (arguments.plot is None):
        parser.error("give --side or --plot")
    if (arguments.config is not None) != (arguments.side == "detr_kit"):
        parser.error("a CONFIG belongs to --side detr_kit")
    return arguments


def add_trial_options(parser: argparse.ArgumentParser) -> None:
    """Add what is the same for all that is compared."""
    parser.add_argument("--minutes", type=float, default=30.0, help="of training")
    parser.add_argument("--every", type=float, default=3.0, help="minutes between evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="256x320", help="height x width of all pictures")
    parser.add_argument("--augmentation", choices=AUGMENTATIONS, default="flip")
    parser.add_argument("--schedule", choices=("cosine", "constant"), default="cosine")
    parser.add_argument("--warm-up", type=int, default=50, help="steps")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="of the minutes")
    parser.add_argument("--threads", type=int, help="of the CPU; else what PyTorch takes")
    parser.add_argument("--data", type=Path, default=SHARED / "data/bccd")
    parser.add_argument(
        "--weights", type=Path, default=SHARED / "weights/tf_efficientnet_lite0.safetensors"
    )


def trial_of(arguments: argparse.Namespace) -> Trial:
    height, _, width = arguments.size.partition("x")
    return Trial(
        data=arguments.data,
        weights=arguments.weights,
        minutes=arguments.minutes,
        every=arguments.every,
        seed=arguments.seed,
        batch_size=arguments.batch,
        size_hw=(int(height), int(width)),
        augmentation=arguments.augmentation,
        schedule=arguments.schedule,
        warmup_steps=arguments.warm_up,
        clock=arguments.clock,
    )


def build_learner(arguments: argparse.Namespace, trial: Trial, scratch: Path) -> Learner:
    if arguments.side == "detr_kit":
        config = run_config(arguments.config, arguments.overrides, trial, scratch / "run")
        return OurLearner(config, trial, arguments.overrides)
    if any(side % PEER_STRIDE for side in trial.size_hw):
        raise SystemExit(f"--size: RT-DETR of transformers takes multiples of {PEER_STRIDE} alone")
    names = PeerSettings.__dataclass_fields__
    settings = PeerSettings(**{name: getattr(arguments, name) for name in names})
    device = torch.accelerator.current_accelerator(check_available=True)
    return PeerLearner(trial, settings, device or torch.device("cpu"))


def train(arguments: argparse.Namespace, records: Records) -> None:
    trial = trial_of(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name = arguments.name or arguments.side
    with tempfile.TemporaryDirectory() as scratch:
        learner = build_learner(arguments, trial, Path(scratch))
        head: Row = {
            "name": name,
            "side": arguments.side,
            "config": arguments.config.name if arguments.config else None,
            "seed": trial.seed,
            "budget": trial.minutes,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "trial": trial.described(),
            **learner.settings,
        }
        print(
            f"{name}: {learner.settings['parameters'] / 1e6:.2f}M parameters, "
            f"{trial.minutes:g} minutes, seed {trial.seed}, {torch.get_num_threads()} threads",
            flush=True,
        )

        def write(row: Row) -> None:
            records.write(head | row)
            print_evaluation(row)

        splits = [EvaluationSplit(trial, part) for part in ("val", "test")[: 1 + arguments.test]]
        run = Run(learner, trial, write, splits)
        started = time.perf_counter()
        run.train()
    print(
        f"{name}: {time.perf_counter() - started:.0f} s in all, {run.evaluating:.0f} s of it "
        f"evaluation; {run.seconds / run.epoch:.1f} s an epoch"
    )


def print_evaluation(row: Row) -> None:
    figures = {"AP": "ap", "AP50": "ap50", "small": "ap_small", "medium": "ap_medium"}
    figures["large"] = "ap_large"
    shown = (
        f"{title} {'-' if row[key] is None else format(row[key], '.3f')}"
        for title, key in figures.items()
    )
    loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
    start = "\r" if sys.stdout.isatty() else ""
    print(
        f"{start}{row['split']:4} after {row['minutes']:.1f} min, epoch {row['epoch']:.1f}: "
        f"{'  '.join(shown)}  loss {loss}  (scored in {row['evaluation_seconds']:.0f} s)",
        flush=True,
    )


def show(rows: list[Row], picture: Path) -> None:
    print(table(rows))
    draw(rows, picture)
    print(f"plot: {picture}")


def main() -> None:
    arguments = parse_arguments()
    if arguments.plot:
        rows = [row for path in arguments.plot for row in Records(path).rows()]
        if not rows:
            raise SystemExit("nothing is recorded in these files")
        show(rows, arguments.picture or arguments.plot[0].with_suffix(".png"))
        return
    # Models are built from files that are here: no hub is asked about them.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    records = Records(arguments.record)
    try:
        train(arguments, records)
    except DetrKitError as error:
        raise SystemExit(f"small_data: {error}") from error
    show(records.rows(), arguments.picture or arguments.record.with_suffix(".png"))


if __name__ == "__main__":
    main()
