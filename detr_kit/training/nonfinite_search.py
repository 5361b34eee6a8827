"""The search for the first tensor of a training step that is not finite."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detr_kit.data.loading import Batch
from detr_kit.images import one_line
from detr_kit.losses import LossValues
from detr_kit.matching import NonFiniteCostError
from detr_kit.preprocess import Preprocessing
from detr_kit.structures import CollatedImages, TargetBatch
from detr_kit.training.tensor_watch import (
    TensorWatch,
    counts_of_bad,
    plain_name,
    too_large_gradient,
)

Forward = Callable[[CollatedImages, TargetBatch], LossValues]

# What can be bad, in the order in which a step computes it.
KINDS = ("weight", "preprocessing", "target", "picture", "output", "loss", "gradient")

# Boxes lie in [0, 1]; such a one was not made by rounding or cutting.
_FAR_OUT = 10.0


@dataclass(frozen=True)
class Finding:
    """The first tensor of one process's part of a step that is not finite.

    Plain values, so that processes can send it. `what` completes "the first value that is not
    finite is"; `kind` is one of KINDS; `batch` counts the batches of the step; `images` names
    pictures, each of which gives it `alone`, or else all of the batch.
    """

    kind: str
    what: str
    batch: int = 0
    rank: int = 0
    images: tuple[str, ...] = ()
    alone: bool = False

    @property
    def order(self) -> tuple[int, int, int]:
        return KINDS.index(self.kind), self.batch, self.rank


class Search:
    """Looks through the batches of one process."""

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        loss_scale: float,
        rank: int,
        name_of: Callable[[int], str],
    ) -> None:
        self.model = model
        self.forward = forward
        self.loss_scale = loss_scale
        self.rank = rank
        self.name_of = name_of

    def in_data(self, batches: Sequence[Batch], preprocessing: Preprocessing) -> Finding | None:
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        extremes = torch.stack([(0.0 - mean) / std, (1.0 - mean) / std])
        if not extremes.isfinite().all():
            what = f"a normalised pixel: mean {preprocessing.mean}, std {preprocessing.std}"
            return Finding("preprocessing", what, rank=self.rank)
        found = [self._in_targets(targets, k) for k, (_, targets) in enumerate(batches)]
        found += [self._in_pictures(images, k, mean, std) for k, (images, _) in enumerate(batches)]
        return first_of(found)

    def _in_targets(self, targets: TargetBatch, batch: int) -> Finding | None:
        bad = ~targets.boxes_cxcywh.isfinite().all(1)
        return self._of_box(targets, bad, "in the target, {box}", batch) if bad.any() else None

    def _of_box(self, targets: TargetBatch, bad: Tensor, what: str, batch: int) -> Finding:
        """Name the first box of the bad ones, (N,) bool, in the place of "{box}" in `what`."""
        row = int(bad.nonzero()[0])
        counts = torch.tensor(targets.counts)
        image = int(torch.repeat_interleave(torch.arange(len(counts)), counts)[row])
        number = row - int(counts[:image].sum()) + 1
        values = ", ".join(f"{value:g}" for value in targets.boxes_cxcywh[row].tolist())
        box = f"box {number} of {counts[image]}: [cx, cy, w, h] = [{values}]"
        what = what.replace("{box}", box)
        names = (self._named(targets.image_ids[image]),)
        return Finding("target", what, batch, self.rank, names, alone=True)

    def _in_pictures(
        self, images: CollatedImages, batch: int, mean: Tensor, std: Tensor
    ) -> Finding | None:
        if not images.pixels.is_floating_point():
            return None  # uint8 is finite, and the extremes of its normalising were looked at
        for image_id, size_hw, pixels in zip(
            images.image_ids, images.sizes_hw, images.pixels, strict=True
        ):
            own = pixels[: size_hw[0], : size_hw[1]]
            counts = counts_of_bad(own) or counts_of_bad((own.float() / 255 - mean) / std)
            if counts is not None:
                what = f"in the pixels of a picture: {counts}"
                return Finding("picture", what, batch, self.rank, (self._named(image_id),), True)
        return None

    def by_running(self, batches: Sequence[Batch]) -> Finding | None:
        """Return what the first bad batch gives, and by which pictures, running them again."""
        for index, (images, targets) in enumerate(batches):
            found = self._run(images, targets, index)
            if found is not None:
                return self._whose(self._how(found, images, targets), images, targets)
        return None

    def _run(self, images: CollatedImages, targets: TargetBatch, batch: int = 0) -> Finding | None:
        """Run forward and backward of a batch; None where all stays finite."""
        with TensorWatch(self.model) as watch:
            loss = self._forward_and_backward(watch, images, targets)
        gradient = watch.gradient or too_large_gradient(self.model)
        if loss is None and gradient is None:
            return None  # an infinity that came to nothing, as in a mask
        whats = (("output", watch.output), ("loss", loss), ("gradient", gradient))
        kind, what = next((kind, what) for kind, what in whats if what is not None)
        far_out = (targets.boxes_cxcywh.abs() > _FAR_OUT).any(1)
        if kind == "loss" and far_out.any():
            return self._of_box(targets, far_out, f"{what}, where the target has {{box}}", batch)
        names = tuple(self._named(image_id) for image_id in images.image_ids)
        return Finding(kind, what, batch, self.rank, names)

    def _forward_and_backward(
        self, watch: TensorWatch, images: CollatedImages, targets: TargetBatch
    ) -> str | None:
        """Return what is bad about the losses."""
        try:
            losses = self.forward(images, targets)
        except NonFiniteCostError as error:  # of a criterion that does not go on
            return f"in the matching costs ({error})"
        except Exception as error:
            if watch.output is None:
                raise
            return f"what led to {type(error).__name__}: {one_line(error)}"
        watch.forward_is_over()
        (losses.total * self.loss_scale).backward()
        return _bad_loss(losses)

    def _how(self, found: Finding, images: CollatedImages, targets: TargetBatch) -> Finding:
        """Name the operation that a gradient became nan in, as far as autograd tells."""
        if found.kind != "gradient":
            return found
        self.model.zero_grad(set_to_none=True)
        try:
            with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
                warnings.simplefilter("ignore")  # where in the code: what is raised says enough
                self._run(images, targets)
        except RuntimeError as error:
            function = re.search(r"Function '(\w+)Backward\d*' returned nan", str(error))
            if function is not None:
                return replace(found, what=f"{found.what}, after the backward of {function[1]}")
        return found

    def _whose(self, found: Finding, images: CollatedImages, targets: TargetBatch) -> Finding:
        """Name the pictures that give it alone, where only some of the batch do."""
        names = []
        for index, image_id in enumerate(images.image_ids):
            self.model.zero_grad(set_to_none=True)
            try:
                own = self._run(*_one_of(images, targets, index))
                if own is not None and own.kind == found.kind:
                    names.append(self._named(image_id))
            except Exception:  # some models cannot run one picture: batch norms of one value
                return found
        if not names or len(names) == len(images):
            return found
        return replace(found, images=tuple(names), alone=True)

    def _named(self, image_id: int) -> str:
        name = self.name_of(image_id)
        return f"{image_id} ({name})" if name else f"{image_id}"


def in_weights(model: nn.Module, criterion: nn.Module, rank: int) -> Finding | None:
    for part in (model, criterion):
        for name, weight in part.named_parameters():
            counts = counts_of_bad(weight)
            if counts is not None:
                what = f"in the weight {plain_name(name)}: {counts}"
                return Finding("weight", what, rank=rank)
        for module_name, module in part.named_modules():
            # A batch norm that trains does not read its statistics: if they are bad, the bad step
            # made them so.
            if module.training and getattr(module, "track_running_stats", False):
                continue
            for name, buffer in module.named_buffers(module_name, recurse=False):
                # Masks are made of minus infinity.
                counts = counts_of_bad(buffer, allow_minus_infinity=True)
                if counts is not None:
                    what = f"in the buffer {plain_name(name)}: {counts}"
                    return Finding("weight", what, rank=rank)
    return None


def _bad_loss(losses: LossValues) -> str | None:
    cost = losses.assignment.nonfinite
    why = "" if cost is None else f" ({cost})"
    for name, value in losses.logged.items():
        if not name.startswith("cost_") and not bool(value.isfinite()):
            term, _, layer = name.rpartition("_")
            place = f"{term} of decoder layer {layer}" if layer.isdigit() else name
            return f"in the losses, the term {place}: {float(value)}{why}"
    if not bool(losses.total.isfinite()):
        return f"the sum of the losses: {float(losses.total.detach())}{why}"
    return None


def _one_of(images: CollatedImages, targets: TargetBatch, index: int) -> Batch:
    """Return one picture of a batch, padded as it is there, and its objects."""
    start = sum(targets.counts[:index])
    rows = slice(start, start + targets.counts[index])
    own = slice(index, index + 1)
    return (
        replace(
            images,
            pixels=images.pixels[own],
            sizes_hw=images.sizes_hw[own],
            original_sizes_hw=images.original_sizes_hw[own],
            image_ids=images.image_ids[own],
        ),
        TargetBatch(
            targets.labels[rows],
            targets.boxes_cxcywh[rows],
            targets.counts[own],
            targets.image_ids[own],
        ),
    )


def first_of(findings: Sequence[Finding | None]) -> Finding | None:
    """Return what a step computes first; None where nothing was found."""
    return min((f for f in findings if f is not None), key=lambda f: f.order, default=None)
