"""After a step that ended in nan or infinity: which tensor was the first, and what to do.

The step is run again, on the same weights, while every module and gradient is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from detr_kit.checkpoints.listing import listed
from detr_kit.data.loading import Batch
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write
from detr_kit.images import one_line
from detr_kit.preprocess import Preprocessing
from detr_kit.training.nonfinite_search import Finding, Forward, Search, first_of, in_weights
from detr_kit.training.tensor_watch import largest_weight, left_as_it_was

BATCH_FILE = "nonfinite_batch.pt"

# Weights of trained detectors stay below about 10.
_GROWN_WEIGHT = 1e3


@dataclass(frozen=True)
class _Outcome:
    """What a process has to say: a finding, or why there is none, and where its batch went."""

    finding: Finding | None
    saved: str
    failure: str | None = None
    advice: str = ""


def nonfinite_report(
    model: nn.Module,
    criterion: nn.Module,
    batches: Sequence[Batch],
    *,
    preprocessing: Preprocessing,
    step: int,
    rates: Mapping[str, float],
    precision: str,
    forward: Forward,
    folder: Path,
    name_of: Callable[[int], str] | None = None,
    loss_scale: float = 1.0,
    rank: int = 0,
    gather: Callable[[object], list[object]] | None = None,
) -> DetrKitError:
    """Return the error that ends a run whose loss or gradient is nan or infinite.

    `batches` are those of the bad step, on the host, and the weights those it started from.
    `forward` repeats one of them on the device, or a part of one, through the bare `model`, which
    sends nothing over the network; the caller has seeded the random streams as the step did.
    `rates` are learning rates by group, `name_of` gives a picture's file name by its id.

    Every process may call this for its own batches; `gather` then returns the list of what all of
    them pass to it, and all return the same error.

    The batches go to `folder`, which needs not succeed. Weights, buffers and random streams are
    left as they were, gradients are gone.
    """
    saved = _save(batches, folder, rank=rank, step=step, precision=precision, rates=rates)
    finding, failure = None, None
    with left_as_it_was(model):
        try:
            search = Search(model, forward, loss_scale, rank, name_of or (lambda image_id: ""))
            finding = in_weights(model, criterion, rank)
            finding = finding or search.in_data(batches, preprocessing)
            if finding is None:
                finding = search.by_running(batches)
        except Exception as error:  # a post-mortem that fails must not hide what it is about
            failure = f"{type(error).__name__}: {one_line(error)}"
    own = _Outcome(finding, saved, failure, _advice(finding, model, precision))
    everyone = [own] if gather is None else [o for o in gather(own) if isinstance(o, _Outcome)]
    return DetrKitError(_message(everyone, step, rates, precision))


def _save(
    batches: Sequence[Batch],
    folder: Path,
    *,
    rank: int,
    step: int,
    precision: str,
    rates: Mapping[str, float],
) -> str:
    """Write tensors, numbers and texts; return a clause about how that went."""
    name = BATCH_FILE if rank == 0 else BATCH_FILE.replace(".pt", f"_{rank}.pt")
    content = {
        "step": step,
        "precision": precision,
        "rates": {group: float(rate) for group, rate in rates.items()},
        "batches": [
            {
                "pixels": images.pixels.cpu(),
                "sizes_hw": [list(size) for size in images.sizes_hw],
                "original_sizes_hw": [list(size) for size in images.original_sizes_hw],
                "image_ids": list(images.image_ids),
                "labels": targets.labels.cpu(),
                "boxes_cxcywh": targets.boxes_cxcywh.cpu(),
                "counts": list(targets.counts),
            }
            for images, targets in batches
        ],
    }
    try:
        with atomic_write(folder / name) as path:
            torch.save(content, path)
    except Exception as error:  # a full disk is an OSError to some, a RuntimeError to others
        return f"the batch could not be saved in {folder / name} ({one_line(error)})"
    return f"the batch is saved in {folder / name}"


def _message(
    outcomes: Sequence[_Outcome], step: int, rates: Mapping[str, float], precision: str
) -> str:
    setting = f"{_rates(rates)}; precision {precision}"
    first = first_of([outcome.finding for outcome in outcomes])
    if first is None:
        said = next((outcome for outcome in outcomes if outcome.failure), outcomes[0])
        again = (
            "all values are finite when it is run again"
            if said.failure is None
            else f"running it again failed ({said.failure})"
        )
        return (
            f"step {step}: the loss or a gradient is not finite, but {again}; {setting}; "
            f"{said.saved}. {said.advice}"
        )
    said = next(outcome for outcome in outcomes if outcome.finding == first)
    process = f"; in process {first.rank}" if len(outcomes) > 1 else ""
    return (
        f"step {step}: the first value that is not finite is {first.what}{_pictures(first)}"
        f"{process}; {setting}; {said.saved}. {said.advice}"
    )


def _pictures(finding: Finding) -> str:
    if not finding.images:
        return ""
    noun = "image" if len(finding.images) == 1 else "images"
    cause = "caused by " if finding.alone and finding.kind in ("output", "loss", "gradient") else ""
    return f"; {cause}{noun} {listed(finding.images)}"


def _rates(rates: Mapping[str, float]) -> str:
    if len(set(rates.values())) == 1:
        return f"learning rate {next(iter(rates.values())):g}"
    shown = [f"{group} {rate:g}" for group, rate in rates.items()]
    if len(shown) > 4:  # a rate for each layer
        ends = (min(rates, key=lambda group: rates[group]), max(rates, key=lambda g: rates[g]))
        shown = [" to ".join(f"{group} {rates[group]:g}" for group in ends)]
    return f"learning rates {', '.join(shown)}"


def _advice(finding: Finding | None, model: nn.Module, precision: str) -> str:
    if finding is None:
        return (
            "On a GPU sums differ from run to run, and broken memory does such things anywhere: "
            "resume the run; should it come again, try precision=fp32 or a lower optimizer.lr"
        )
    if finding.kind == "weight":
        return (
            "It was bad before this step: start from other weights, or from an earlier checkpoint"
        )
    if finding.kind == "preprocessing":
        return "Correct image_size.mean and image_size.std"
    if finding.kind == "target":
        return "Find all broken labels with: detr-kit check"
    if finding.kind == "picture":
        return "Look at where the pixels of this picture come from"
    if precision == "fp16":
        return "fp16 ends at 65504: train with precision=bf16, which ends where fp32 does"
    name, size = largest_weight(model)
    if size > _GROWN_WEIGHT:
        return (
            f"Weights have grown, {name} to {size:.2g}: lower optimizer.lr, raise "
            f"schedule.warmup_steps, or clip with optimizer.clip=0.1, and start again"
        )
    return (
        "A lower optimizer.lr, schedule.warmup_steps and optimizer.clip=0.1 keep values small; "
        "guard.on_nonfinite=skip leaves such steps out"
    )
