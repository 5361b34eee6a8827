"""What does each part of a detector bring? From plain DETR on, one part more a training.

    python tools/benchmark/ladder.py [key=value ...] [--minutes 5] [--seed 0] [--steps 7 8]
    python tools/benchmark/ladder.py --list

Every step learns from bccd for the same minutes, in a process of its own, by small_data.py: same
pictures, same schedule, same evaluation. It keeps the parts of the steps before. `key=value`
arguments hold for all steps. Steps that the record holds already, with this config, seed, data,
weights, these minutes and settings, are skipped: a ladder that was cut off goes on with the same
command. A step that fails is told of, and the next is tried; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from small_data import add_trial_options, show, trial_of
from small_data_records import Records, is_done

from detr_kit.config import load_config
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import build_model, resolve

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "configs/detr_bccd.yaml"
NUM_CLASSES = 3  # of bccd


@dataclass(frozen=True)
class Step:
    """A part that is added, and the settings that it takes."""

    name: str
    settings: dict[str, str]


STEPS = (
    Step(
        "plain DETR",
        {
            "model.num_queries": "60",
            "model.encoder_layers": "1",
            "model.decoder_layers": "3",
        },
    ),
    # The other family with the same parts: boxes are told from a point that each query learns.
    Step(
        "+ reference points",
        {
            "model.name": "deformable_detr_r50",
            "model.positions_at_input": "null",  # a setting of the plain one
            "model.hidden_dim": "128",
            "model.feedforward_dim": "512",
            "model.levels": "1",
            "model.encoder": "dense",
            "model.cross_attention": "dense",
            "model.query_positions": "learned",
            "model.scoring": "softmax",
        },
    ),
    Step(
        "+ focal loss",
        {"model.scoring": "sigmoid", "loss.class_cost": "2", "loss.class_weight": "2"},
    ),
    Step("+ refined anchors", {"model.refinement": "true", "model.query_positions": "sine"}),
    Step(
        "+ deformable attention",
        {
            "model.backbone_stages": "5",
            "model.levels": "3",
            "model.encoder": "deformable",
            "model.cross_attention": "deformable",
        },
    ),
    Step("+ hybrid encoder", {"model.encoder": "hybrid", "model.level_norm": "batch"}),
    Step(
        "+ query selection",
        {"model.query_selection": "full", "model.query_positions": "mlp"},
    ),
    Step("+ denoising", {"model.denoising_queries": "50"}),
    Step("+ varifocal loss", {"loss.classification": "varifocal", "loss.class_weight": "1"}),
    Step("+ matchability", {"loss.classification": "matchability"}),
    # The rates that these parts bear, and an average of the weights: what small_data.yaml has.
    Step(
        "+ rates and average",
        {
            "model.frozen_stages": "1",
            "optimizer.lr": "8.0e-4",
            "optimizer.lr_backbone": "1.0e-4",
            "optimizer.clip": "0.1",
            "average.decay": "0.995",
            "average.warmup_steps": "2000",
        },
    ),
    # Groups are of learned queries: their content is learned now, their boxes stay selected.
    Step("+ groups", {"model.query_selection": "mixed", "model.groups": "3"}),
)


def ladder(extra: list[str]) -> dict[str, list[str]]:
    """Return each step's overrides, with those of the steps before and `extra` ones last."""
    so_far: dict[str, str] = {}
    found = {}
    for step in STEPS:
        so_far |= step.settings
        found[step.name] = [f"{key}={value}" for key, value in so_far.items()] + extra
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="what each part of a detector brings")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    add_trial_options(parser)
    parser.set_defaults(minutes=5.0, every=1.0)
    parser.add_argument("--config", type=Path, default=CONFIG, help="what the settings change")
    parser.add_argument("--steps", nargs="+", type=int, help="their numbers; else all of them")
    parser.add_argument("--list", action="store_true", help="show the steps only")
    parser.add_argument("--record", type=Path, default=Path("runs/ladder.jsonl"))
    parser.add_argument("--picture", type=Path, help="the plot; else the record's name with .png")
    return parser.parse_intermixed_args()


def command_of(name: str, overrides: list[str], arguments: argparse.Namespace) -> list[str]:
    """Return the call of small_data.py that trains a step."""
    options = {
        "--name": name,
        "--minutes": arguments.minutes,
        "--every": arguments.every,
        "--seed": arguments.seed,
        "--batch": arguments.batch,
        "--size": arguments.size,
        "--augmentation": arguments.augmentation,
        "--schedule": arguments.schedule,
        "--warm-up": arguments.warm_up,
        "--clock": arguments.clock,
        "--data": arguments.data,
        "--weights": arguments.weights,
        "--record": arguments.record,
        "--picture": picture_of(arguments),
    }
    if arguments.threads:
        options["--threads"] = arguments.threads
    flat = [f"{key}={value}" for key, value in options.items()]
    script = str(HERE / "small_data.py")
    return [sys.executable, script, "--side=detr_kit", *flat, str(arguments.config), *overrides]


def picture_of(arguments: argparse.Namespace) -> Path:
    return arguments.picture or arguments.record.with_suffix(".png")


def chosen(arguments: argparse.Namespace) -> dict[str, list[str]]:
    steps = list(ladder(arguments.overrides).items())
    numbers = arguments.steps or range(1, len(steps) + 1)
    if not all(1 <= number <= len(steps) for number in numbers):
        raise SystemExit(f"--steps: there are {len(steps)}, see --list")
    return dict(steps[number - 1] for number in numbers)


def list_steps(arguments: argparse.Namespace) -> None:
    """Print the steps, how many parameters each has, and what each adds."""
    overrides = ladder(arguments.overrides)
    for number, step in enumerate(STEPS, 1):
        settings = shlex.join(f"{key}={value}" for key, value in step.settings.items())
        try:
            config = load_config(arguments.config, overrides[step.name])
            model = build_model(resolve(config.model), NUM_CLASSES)
            size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M"
        except DetrKitError as error:
            size = f"cannot be built: {error}"
        print(f"{number:2}  {step.name:24}{size}\n    {settings}")


def main() -> int:
    arguments = parse_arguments()
    if arguments.list:
        list_steps(arguments)
        return 0
    records = Records(arguments.record)
    rows, minutes = records.rows(), arguments.minutes
    common = {
        "config": arguments.config.name,
        "seed": arguments.seed,
        "budget": minutes,
        "trial": trial_of(arguments).described(),
    }
    steps = chosen(arguments)
    left = {
        name: overrides
        for name, overrides in steps.items()
        if not is_done(rows, common | {"name": name, "overrides": overrides})
    }
    print(f"{len(left)} of {len(steps)} steps to train, the others are in {arguments.record}")
    failed = []
    for done, (name, overrides) in enumerate(left.items()):
        rest = (len(left) - done) * minutes
        print(f"\n{name}: {rest:g} min of training left, and evaluations", flush=True)
        if subprocess.run(command_of(name, overrides, arguments), check=False).returncode:
            failed.append(name)
    if not left:
        show(rows, picture_of(arguments))
    if failed:
        print(f"\nfailed: {'; '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
