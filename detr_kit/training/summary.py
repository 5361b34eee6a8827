"""What a person should see of a run before its first step: what was set up, and what looks wrong.

Only what differs from the defaults is told of the rarer settings.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from detr_kit.checkpoints.listing import listed
from detr_kit.config import AverageConfig, CheckpointConfig, EvaluationConfig, RunConfig
from detr_kit.data.annotations import CocoAnnotations
from detr_kit.data.loading import images_a_step
from detr_kit.data.samplers import epoch_length, repeat_factors
from detr_kit.training.average import decay_at
from detr_kit.training.optimizer import parameter_groups, rate_factor

if TYPE_CHECKING:
    from detr_kit.training.startup import InitialModel

# Below this many pictures a detector trained from scratch learns little: DETR and YOLOS both
# need far more to find good features (YOLOS paper, table 3: 19.7 against 28.7 AP on full COCO).
_FEW_IMAGES = 10_000


def setup_rows(
    config: RunConfig,
    start: InitialModel,
    train_set: CocoAnnotations,
    val_set: CocoAnnotations,
    *,
    world_size: int,
    device: torch.device,
    step_images: int | None = None,
) -> dict[str, str]:
    """Return texts by heading; those that begin with "warning" name what to change.

    `step_images` is what a step holds over all processes, by default what the config asks for.
    What a rate of 0 freezes is frozen in `start.model` already.
    """
    if step_images is None:
        step_images = images_a_step(config, world_size)
    repeats = repeat_factors(train_set, config.data.repeat_threshold)
    rows = {
        "run": _run(config, device, world_size),
        "model": _model(config, start.model),
        "weights": "\n".join(start.weights),
        "train": _split(train_set),
        "val": _split(val_set),
        "batch": _batch(config, step_images, world_size),
        "rates": _rates(config, start.model, step_images),
        "repeats": "" if repeats is None else _repeats(repeats),
        "average": _average(config),
        "evaluation": _evaluation(config.evaluation),
        "checkpoints": _checkpoints(config.checkpoint),
        "warning: classes": _unlearnable(train_set),
        "warning: AP": _unmeasured(val_set),
        "warning: queries": _overflow(train_set, val_set, start.architecture["num_queries"]),
        "warning: scratch": _scratch(start, train_set),
        "warning: warm-up": _warm_up(config, len(train_set), step_images),
    }
    return {heading: text for heading, text in rows.items() if text}


def _run(config: RunConfig, device: torch.device, world_size: int) -> str:
    sharded = config.sharding != "none" and world_size > 1
    return (
        f"{config.output}, {config.epochs} epochs on {device}, {config.precision}"
        + (", compiled" if config.compile else "")
        + (", weights sharded over processes" if sharded else "")
    )


def _model(config: RunConfig, model: nn.Module) -> str:
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f", {(total - trained) / 1e6:.3f}M frozen" if trained < total else ""
    return (
        f"{config.model.name}, {total / 1e6:.3f}M parameters, {trained / 1e6:.3f}M trained{frozen}"
    )


def _split(annotations: CocoAnnotations) -> str:
    return (
        f"{len(annotations)} images ({annotations.num_empty} without objects), "
        f"{annotations.num_objects} objects of {len(annotations.categories)} categories, "
        f"at most {annotations.max_objects} an image"
        + (f", {annotations.num_clipped} boxes clipped" if annotations.num_clipped else "")
        + (f", {annotations.num_skipped} boxes skipped" if annotations.num_skipped else "")
    )


def _batch(config: RunConfig, step_images: int, world_size: int) -> str:
    share = -(-step_images // world_size)
    batch = min(config.pictures_a_batch, share)
    return (
        f"{step_images} images a step: {_count(world_size, 'process', 'es')} with "
        f"{_count(-(-share // batch), 'batch', 'es')} of up to {batch}"
    )


def _rates(config: RunConfig, model: nn.Module, step_images: int) -> str:
    """Say each part's rate, lowest and highest where its layers have their own."""
    optimizer = config.optimizer
    factor = rate_factor(optimizer, step_images)
    of_part: dict[str, list[float]] = {}
    for group in parameter_groups(model, optimizer, rate_factor=factor):
        part = group["name"].removesuffix(" without decay").split(" layer ")[0]
        of_part.setdefault(part, []).append(group["lr"])
    parts = [
        f"{part} {min(rates):g}" + (f" to {max(rates):g}" if min(rates) < max(rates) else "")
        for part, rates in of_part.items()
    ]
    stated = (
        f" (stated for {optimizer.recipe_batch} images a step, scaled by "
        f"{ {'linear': 'proportion', 'sqrt': 'square root'}[optimizer.scale_lr] } to {step_images})"
        if optimizer.scale_lr != "none"
        else ""
    )
    return ", ".join(parts) + stated


def _repeats(repeats: np.ndarray) -> str:
    return (
        f"{epoch_length(repeats)} pictures an epoch, as those of rare categories come up to "
        f"{repeats.max(initial=1):.1f} times"
    )


def _average(config: RunConfig) -> str:
    average = config.average
    if not average.decay:
        return ""
    warmup = f", reached over {average.warmup_steps} steps" if average.warmup_steps else ""
    return f"weights averaged with decay {average.decay:g}{warmup}: they are evaluated and kept"


def _evaluation(config: EvaluationConfig) -> str:
    parts = []
    if config.metric != "ap":
        parts.append(f"the best checkpoint is that of the highest {config.metric}")
    if config.patience is not None:
        gain = f" of more than {config.min_gain:g}" if config.min_gain else ""
        parts.append(
            f"training ends after {config.patience} evaluations without a gain{gain} in "
            f"{config.metric}"
        )
    return "; ".join(parts)


def _checkpoints(config: CheckpointConfig) -> str:
    if config == CheckpointConfig():
        return ""
    times = ["each epoch"]
    times += [f"every {config.steps} steps"] if config.steps is not None else []
    times += [f"every {config.minutes:g} minutes"] if config.minutes is not None else []
    kept = [f"the newest {config.keep} epochs"] if config.keep else []
    kept += [f"one epoch in {config.keep_every}"] if config.keep_every is not None else []
    return f"saved after {', '.join(times)}" + (f"; kept: {', '.join(kept)}" if kept else "")


def _unlearnable(train_set: CocoAnnotations) -> str:
    missing = _without_objects(train_set)
    if not missing:
        return ""
    return (
        f"{_of(missing, train_set)} no object in the training split and can never be learned: "
        f"{listed(missing)}"
    )


def _unmeasured(val_set: CocoAnnotations) -> str:
    missing = _without_objects(val_set)
    if not missing:
        return ""
    return (
        f"{_of(missing, val_set)} no object in the validation split, so that AP says nothing of: "
        f"{listed(missing)}"
    )


def _without_objects(annotations: CocoAnnotations) -> list[str]:
    counts = np.bincount(annotations.labels, minlength=len(annotations.categories))
    return [annotations.categories.names[column] for column in np.flatnonzero(counts == 0)]


def _of(missing: list[str], annotations: CocoAnnotations) -> str:
    verb = "has" if len(missing) == 1 else "have"
    return f"{len(missing)} of {len(annotations.categories)} categories {verb}"


def _overflow(train_set: CocoAnnotations, val_set: CocoAnnotations, queries: int) -> str:
    """Count the objects that there are no queries for."""
    beyond = []
    for name, split in (("training", train_set), ("validation", val_set)):
        excess = np.diff(split.offsets) - queries
        if (excess > 0).any():
            beyond.append(
                f"{_count(excess.clip(min=0).sum(), 'object')} in "
                f"{_count((excess > 0).sum(), name + ' picture')}"
            )
    if not beyond:
        return ""
    most = max(train_set.max_objects, val_set.max_objects)
    return (
        f"an image holds up to {most} objects and the model has {queries} queries: "
        f"{' and '.join(beyond)} can never be found; raise model.num_queries"
    )


def _warm_up(config: RunConfig, images: int, step_images: int) -> str:
    """Warn of rates and averages that a short run never gets to."""
    steps = config.epochs * -(-images // step_images)
    if config.schedule.warmup_steps >= steps:
        return (
            f"schedule.warmup_steps={config.schedule.warmup_steps}, but the run has {steps} steps: "
            f"it never gets to its learning rate"
        )
    if _stays_at_the_start(config.average, steps):
        return (
            f"average.decay={config.average.decay:g} averages over some "
            f"{1 / (1 - config.average.decay):.0f} steps, but the run has {steps}: what is "
            f"evaluated stays close to the initial weights"
        )
    return ""


def _stays_at_the_start(average: AverageConfig, steps: int) -> bool:
    """Whether more than 1/e of the average is still from the first step or before it, at the end.

    With warm-up steps the initial weights themselves drop out at the first step.
    """
    if not average.decay or steps >= 1 / (1 - average.decay):
        return False
    return math.prod(decay_at(step, average) for step in range(1, steps)) > math.exp(-1)


def _count(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}" + ("" if number == 1 else ending)


def _scratch(start: InitialModel, train_set: CocoAnnotations) -> str:
    if not start.from_scratch or len(train_set) >= _FEW_IMAGES:
        return ""
    cures = "model.backbone_weights or model.init_from"
    if start.architecture.get("patch_supervision") is False:
        cures = f"model.patch_supervision, {cures}"
    return f"random initialisation with {len(train_set)} images learns slowly: set {cures}"
