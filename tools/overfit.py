"""Check that a config can learn at all: can it find every object of a few pictures by heart?

    python tools/overfit.py configs/small_data.yaml data.train.annotations=... data.train.images=...

Takes the first 8 pictures (by id) that hold at least two objects, trains on them without
augmentation or dropout, and evaluates on the same ones. A sound set-up passes AP50 0.9; one that
does not has broken labels, sizes or rates, and will not learn from more pictures either. Exits
with status 1 below 0.9.

A config's epochs and warm-up are made for more pictures, so the check has a budget of its own:
`--steps` steps in 20 epochs, each of which shows the pictures many times and ends with an
evaluation; a warm-up of at most a twentieth of the steps; the weights as they are, not averaged.
Its folder is the config's with `_overfit` behind the name. `key=value` arguments are those of
`detr-kit train` and win over all of this; with `epochs=N`, an epoch shows each picture once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_kit import DetrKitError, train
from detr_kit.config import RunConfig, load_config, parse_overrides
from detr_kit.data.annotations import load_annotations
from detr_kit.files import atomic_write
from detr_kit.models.zoo import resolve
from detr_kit.training.run import Run

PICTURES = 8
ENOUGH = 0.9
EPOCHS = 20
# Queries that are chosen from the picture find things after tens of steps: bccd at 96 x 128 passed
# after 70 of 200. Learned ones have to leave DETR's first plateau, which may last a thousand:
# detr_small_data with random weights, on sample data at 96 x 128, passed after 600 of 2,000.
STEPS_SELECTED = 400
STEPS_LEARNED = 2000


def subset(annotations: Path) -> dict[str, Any]:
    """Return the COCO content of the first pictures with at least two objects, without crowds."""
    coco = json.loads(annotations.read_text(encoding="utf-8"))
    objects = [a for a in coco["annotations"] if not a.get("iscrowd")]
    counts = Counter(annotation["image_id"] for annotation in objects)
    images = sorted(coco["images"], key=lambda image: image["id"])
    images = [image for image in images if counts[image["id"]] >= 2][:PICTURES]
    if not images:
        raise DetrKitError(f"{annotations}: no picture holds two objects")
    kept = {image["id"] for image in images}
    return {
        **coco,
        "images": images,
        "annotations": [a for a in coco["annotations"] if a["image_id"] in kept],
    }


def repeated(coco: dict[str, Any], times: int) -> dict[str, Any]:
    """Return a split in which every picture comes so many times, each with an id of its own."""
    span = max(image["id"] for image in coco["images"]) + 1
    objects = [
        one | {"image_id": one["image_id"] + time * span}
        for time in range(times)
        for one in coco["annotations"]
    ]
    return {
        **coco,
        "images": [
            image | {"id": image["id"] + time * span}
            for time in range(times)
            for image in coco["images"]
        ],
        "annotations": [one | {"id": number} for number, one in enumerate(objects, 1)],
    }


def plain_settings(config: RunConfig, pictures: int) -> list[str]:
    """Return the settings that take away what hinders learning by heart, for the same detector."""
    batch = pictures if config.batch_size == "auto" else min(config.batch_size, pictures)
    settings = [
        f"output={config.output}_overfit",
        # a step holds no more than all pictures
        f"batch_size={batch}",
        f"accumulate={min(config.accumulate, pictures // batch)}",
        "data.augmentation=none",
        "data.repeat_threshold=0",
        "image_size.train_short_sides=[]",
        "image_size.train_long_side=null",
        "model.dropout=0",
        "average.decay=0",
        "evaluation.patience=null",
    ]
    if config.model.drop_path is not None:  # which one family has
        settings.append("model.drop_path=0")
    return settings


@dataclass(frozen=True)
class Budget:
    """How often an epoch shows each picture, how many steps there are, and settings for them."""

    pictures: int
    repeats: int
    steps: int
    settings: list[str]


def budget_of(config: RunConfig, *, pictures: int, steps: int | None, epochs: int | None) -> Budget:
    """Divide `steps` into epochs; `epochs`, where given, are passes over the pictures."""
    batch = pictures if config.batch_size == "auto" else config.batch_size
    step_images = batch * config.accumulate
    repeats = 1
    if epochs is None:
        if steps is None:
            selects = resolve(config.model).get("query_selection", "none") != "none"
            steps = STEPS_SELECTED if selects else STEPS_LEARNED
        epochs = min(EPOCHS, steps)
        repeats = -(-(steps // epochs) * step_images // pictures)
    steps = epochs * -(-repeats * pictures // step_images)
    return Budget(
        pictures,
        repeats,
        steps,
        [
            f"epochs={epochs}",
            f"schedule.warmup_steps={min(config.schedule.warmup_steps, steps // 20)}",
            f"evaluation.every={max(epochs // EPOCHS, 1)}",
        ],
    )


def train_by_heart(
    config_path: str, overrides: Sequence[str], *, steps: int | None = None
) -> tuple[Run, Budget]:
    """Train on a few pictures alone; `overrides` win over the check's own settings."""
    config = load_config(config_path, overrides)
    if config.data.train is None:
        raise DetrKitError("key 'data.train' is missing")
    load_annotations(config.data.train.annotations)  # says what is wrong with the file
    few = subset(config.data.train.annotations)
    plain = plain_settings(config, len(few["images"]))
    config = load_config(config_path, [*plain, *overrides])
    budget = budget_of(
        config,
        pictures=len(few["images"]),
        steps=steps,
        epochs=config.epochs if "epochs" in parse_overrides(overrides) else None,
    )
    once, often = config.output / "few.json", config.output / "few_repeated.json"
    for path, content in ((once, few), (often, repeated(few, budget.repeats))):
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
    run = train(
        config_path,
        [
            *plain,
            *budget.settings,
            *overrides,
            f"data.train.annotations={often}",
            f"data.val.annotations={once}",
            f"data.val.images={config.data.train.images}",
        ],
    )
    return run, budget


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument(
        "--steps",
        type=int,
        help=f"default: {STEPS_SELECTED} where queries are chosen from the picture, "
        f"else {STEPS_LEARNED}",
    )
    arguments = parser.parse_intermixed_args()
    if arguments.steps is not None and arguments.steps < 1:
        raise DetrKitError(f"--steps {arguments.steps}: must be at least 1")
    run, budget = train_by_heart(arguments.config, arguments.overrides, steps=arguments.steps)
    scored = [row for row in run.metrics if "val" in row]
    if not scored:
        print("no evaluation was made")
        return 1
    seconds = sum(row["seconds"] + row.get("eval_seconds", 0.0) for row in run.metrics)
    first = next((row["step"] for row in scored if row["val"]["ap50"] > ENOUGH), None)
    best = max(row["val"]["ap50"] for row in scored)
    reached = "never" if first is None else f"from step {first} on"
    print(
        f"AP50 {best:.3f} on {budget.pictures} pictures; above {ENOUGH}: {reached}; "
        f"{scored[-1]['step']} of {budget.steps} steps, {seconds:.0f} s"
    )
    return 0 if best > ENOUGH else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DetrKitError as error:
        sys.exit(f"overfit: {error}")
