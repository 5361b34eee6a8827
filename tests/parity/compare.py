"""How far a run of ours is from a reference, and the bounds of that."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tests.parity.official import Reference
from tests.parity.ours import Run
from tests.parity.table import Table

# For float64, and sane ones for float32. Differences are the largest absolute ones, in the unit
# of what is compared; those of gradients are relative to the gradient's norm.
BOUNDS = {
    "logits": (1e-9, 1e-3),
    "boxes": (1e-9, 1e-3),
    "logits, earlier layers": (1e-9, 1e-3),
    "boxes, earlier layers": (1e-9, 1e-3),
    "logits, image alone": (1e-9, 1e-3),
    "boxes, image alone": (1e-9, 1e-3),
    "assignment (pairs that differ)": (0, 0),
    "class loss": (1e-9, 1e-3),
    "L1 loss": (1e-9, 1e-3),
    "GIoU loss": (1e-9, 1e-3),
    "class error (percent)": (1e-9, 1e-3),
    "cardinality error": (1e-9, 1e-3),
    "total loss": (1e-9, 1e-3),
    "scores": (1e-9, 1e-3),
    "labels (that differ)": (0, 0),
    "boxes (pixels)": (1e-9, 1e-2),
    "gradients (keys that differ)": (0, 0),
    "gradient norms (relative)": (1e-8, 1e-2),
    "gradient probes (relative)": (1e-8, 1e-2),
}
# The official name, ours, and where they are shown.
LOSSES = (
    ("loss_ce", "class", "class loss"),
    ("loss_bbox", "l1", "L1 loss"),
    ("loss_giou", "giou", "GIoU loss"),
    ("class_error", "class_error", "class error (percent)"),
    ("cardinality_error", "cardinality_error", "cardinality error"),
    ("total", "total", "total loss"),
)
# A gradient that is zero but for rounding has no relative difference: what the queries carry is
# zero before the first decoder layer, and so is the gradient of its self attention's weight.
ZERO_GRADIENT = 1e-9

Numbers = dict[str, np.ndarray]


def record(
    table: Table,
    label: str,
    reference: Reference,
    float64: Run,
    float32: Run | None = None,
    gradients: tuple[Numbers, Numbers | None] | None = None,
) -> None:
    """Add a row for each comparison of a reference with a run in float64 and one in float32.

    The rows are called `label: comparison`. `gradients` are the numbers of both runs' gradients.
    """
    exact, single = dict(differences(reference, float64)), {}
    if float32 is not None:
        single = dict(differences(reference, float32))
    if gradients is not None:
        exact.update(gradient_differences(reference, gradients[0]))
        if gradients[1] is not None:
            single.update(gradient_differences(reference, gradients[1]))
    for name, difference in exact.items():
        bound, float32_bound = BOUNDS[name]
        table.row(
            f"{label}: {name}",
            float64=difference,
            float32=single.get(name),
            bound=bound,
            float32_bound=float32_bound,
        )


def differences(reference: Reference, run: Run) -> Iterator[tuple[str, float]]:
    """Yield every comparison but those of gradients, and how far the run is from the reference."""
    theirs, queries = reference.tensors, reference.queries
    layers = range(reference.earlier_layers)
    assert len(run.output.layer_logits) == len(layers) + 1
    for name, ours, alone in (
        ("logits", run.output.layer_logits, run.alone.logits),
        ("boxes", run.output.layer_boxes_cxcywh, run.alone.boxes_cxcywh),
    ):
        yield name, _largest(ours[-1][:, queries], theirs[f"pred_{name}"])
        yield f"{name}, image alone", _largest(alone[:, queries], theirs[f"alone0.pred_{name}"])
        if layers:
            yield (
                f"{name}, earlier layers",
                np.max(
                    [
                        _largest(
                            ours[layer][:, reference.aux_queries],
                            theirs[f"aux{layer}.pred_{name}"],
                        )
                        for layer in layers
                    ]
                ),
            )
    yield "assignment (pairs that differ)", _pairs_that_differ(reference, run)
    yield from _of_losses(reference, run)
    yield from _of_detections(reference, run)


def gradient_differences(reference: Reference, ours: Numbers) -> Iterator[tuple[str, float]]:
    """Yield how far the gradients' numbers are, none left out."""
    theirs = reference.gradients
    yield "gradients (keys that differ)", len(ours.keys() ^ theirs.keys())
    relative = []
    for key in ours.keys() & theirs.keys():
        norm = theirs[key][0]
        relative.append(np.abs(ours[key] - theirs[key]) / (norm if norm > ZERO_GRADIENT else 1.0))
    norms, probes = np.max(relative, axis=0)
    yield "gradient norms (relative)", norms
    yield "gradient probes (relative)", probes


def spread_over_queries(values: Tensor) -> float:
    """Return how far the two most alike of Q queries are, for (..., Q, D) values."""
    apart = (values.unsqueeze(-2) - values.unsqueeze(-3)).abs().amax(-1)
    count = apart.shape[-1]
    off_diagonal = apart.flatten(-2)[..., :-1].unflatten(-1, (count - 1, count + 1))[..., 1:]
    return off_diagonal.min().item()


def _pairs_that_differ(reference: Reference, run: Run) -> int:
    theirs, first = set(), 0
    for image, (queries, targets) in enumerate(reference.matches):
        for query, target in zip(queries, targets, strict=True):
            theirs.add((image, query, first + target))
        first += len(reference.targets[image][0])
    pairs = run.assignment
    stacked = torch.stack([pairs.image[-1], pairs.query[-1], pairs.target[-1]], dim=1)
    return len({tuple(pair) for pair in stacked.tolist()} ^ theirs)


def _of_losses(reference: Reference, run: Run) -> Iterator[tuple[str, float]]:
    # Ours logs the cardinality error of the last layer alone.
    theirs = {
        name: value
        for name, value in reference.losses.items()
        if re.fullmatch(r"cardinality_error_\d+", name) is None
    }
    compared = set()
    for official, own, shown in LOSSES:
        found = []
        for name, value in theirs.items():
            suffix = re.fullmatch(rf"{official}((?:_\d+)?)", name)
            if suffix:
                compared |= {name}
                found.append(abs(run.losses[own + suffix[1]] - value))
        yield shown, np.max(found)
    assert compared == theirs.keys()
    assert len(run.losses) == len(theirs)


def _of_detections(reference: Reference, run: Run) -> Iterator[tuple[str, float]]:
    queries = reference.queries
    scores, labels, boxes = [], 0, []
    for image, found in enumerate(run.detections):
        theirs = {
            name: reference.tensors[f"post{image}.{name}"] for name in ("scores", "labels", "boxes")
        }
        scores.append(_largest(found.scores[queries], theirs["scores"]))
        labels += int((found.category_ids[queries] != theirs["labels"]).sum())
        boxes.append(_largest(found.boxes_xyxy[queries], theirs["boxes"]))
    yield "labels (that differ)", labels
    yield "scores", np.max(scores)
    yield "boxes (pixels)", np.max(boxes)


def _largest(ours: Tensor | np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference; a NaN of either stays one."""
    ours = np.asarray(ours, dtype=np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max())
