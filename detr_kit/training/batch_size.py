"""`batch_size: auto`: the largest batch of the largest pictures that fits into memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detr_kit.config import RunConfig
from detr_kit.data.annotations import CocoAnnotations
from detr_kit.data.augmentation import train_rules
from detr_kit.errors import DetrKitError
from detr_kit.losses import SetCriterion
from detr_kit.preprocess import Preprocessing, preprocessing_from
from detr_kit.sizes import SizeHW
from detr_kit.structures import CollatedImages, TargetBatch
from detr_kit.training.forward import run_model
from detr_kit.training.memory import available_host_bytes, memory_that_ran_out
from detr_kit.training.tensor_watch import left_as_it_was

# What is chosen from. Powers of two alone would leave up to half of the memory unused, and every
# number would let a few free megabytes more or less change what a run computes.
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

# Shares of the memory that is free: allocators cut it into pieces, and a host has others to serve.
_DEVICE_SHARE = 0.9
_HOST_SHARE = 0.5

# Crops of the official recipes have sides of 384 to 600 pixels before they are resized.
_OFFICIAL_CROPS = ((384, 600), (600, 384))
_MOSAIC = 4


@dataclass(frozen=True)
class BatchChoice:
    """Pictures a process and batch, and in words what they were chosen for."""

    batch_size: int
    reason: str


def worst_case(config: RunConfig, annotations: CocoAnnotations) -> tuple[SizeHW, int]:
    """Return the size that a training batch is padded to at most, and the objects of a picture.

    Upright and wide pictures do meet in a batch, at the seams of the sampler's order and where
    crops are drawn: the size is the greatest height by the greatest width.
    """
    augmentation = config.data.augmentation
    sizes = {(int(height), int(width)) for height, width in np.unique(annotations.sizes_hw, axis=0)}
    objects = annotations.max_objects
    rules = train_rules(config.image_size, augmentation if isinstance(augmentation, str) else "")
    if augmentation in ("detr", "yolos"):
        sizes.update(_OFFICIAL_CROPS)
    elif augmentation == "strong":
        objects *= _MOSAIC
    elif augmentation == "none":
        rules = (preprocessing_from(config.image_size).size_rule,)
    elif isinstance(augmentation, Mapping):  # it may turn pictures
        sizes.update([(width, height) for height, width in sizes])
    targets = [rule.target_hw(size) for rule in rules for size in sizes]
    return (max(height for height, _ in targets), max(width for _, width in targets)), objects


def largest_batch(
    model: nn.Module,
    criterion: SetCriterion,
    *,
    image_hw: SizeHW,
    objects: int,
    preprocessing: Preprocessing,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    limit: int,
    extra_bytes: int = 0,
    processes: int = 1,
) -> BatchChoice:
    """Try out which of BATCH_SIZES fits, with made-up pictures of `image_hw`, `objects` in each.

    `model` is on the device and bare; `autocast` is what its forward runs in. `limit` is the
    number of training pictures of a process. Counted besides what a step takes are gradients that
    are kept from batch to batch, AdamW's two values a weight, and `extra_bytes` (an average of the
    weights, the buckets of gradients that cross processes). On a host, `processes` share memory.

    On CUDA the batch that is chosen has been run; on the CPU it is extrapolated from batches of
    one and two. Everything is as before afterwards, gradients are None. Raises DetrKitError where
    not even one picture fits.
    """
    step = _Step(model, criterion, image_hw, objects, preprocessing, device, autocast)
    trained = sum(w.numel() * w.element_size() for w in model.parameters() if w.requires_grad)
    if device.type not in ("cpu", "cuda"):
        raise DetrKitError(f"batch_size: auto knows CPU and CUDA only, not {device}: give a number")
    with left_as_it_was(model):
        model.train()
        held = None
        if device.type == "cuda":
            budget = _free_device_bytes(device) * _DEVICE_SHARE
            used: Callable[[int], int] = _OnDevice(step, 2 * trained + extra_bytes)
        else:
            budget = available_host_bytes() * _HOST_SHARE / processes
            held = 3 * trained + extra_bytes
            used = _OnHost(step, held)
        sizes = [size for size in BATCH_SIZES if size <= limit] or [1]
        chosen, needed = choose(used, budget, sizes, fixed=held)
    height, width = image_hw
    return BatchChoice(
        chosen,
        f"{chosen} {'picture' if chosen == 1 else 'pictures'} of {height} x {width} with {objects} "
        f"objects take {needed / 2**30:.2f} GiB, {budget / 2**30:.2f} GiB may be used"
        f"{_ended_by(chosen, sizes, needed, budget)}",
    )


def choose(
    used: Callable[[int], int],
    budget: float,
    sizes: Sequence[int],
    *,
    fixed: int | None = None,
) -> tuple[int, int]:
    """Return the largest of ascending `sizes` that stays within `budget`, and what it takes.

    `used` runs a batch and returns the bytes it took; it may raise what tells of memory that ran
    out. Memory grows by nearly the same amount with each picture: batches of 1 and 2 foretell the
    others. What is chosen is run too, unless it is known how much is `fixed`, whatever the batch:
    then all the rest is put down to the pictures, which errs on the safe side. A single picture is
    chosen if it runs at all.
    """
    one = _bytes_or_none(used, 1)
    if one is None:
        raise DetrKitError(
            "batch_size: auto: there is not memory enough for a batch of one picture: try "
            "precision=bf16, model.activation_checkpointing=true, or a smaller image_size"
        )
    two = _bytes_or_none(used, 2) if len(sizes) > 1 else None
    if two is None:
        return 1, one
    a_picture = max(two - one, 1)
    if fixed is not None:  # the smallest batches may hide behind gradients that come and go
        a_picture = max(a_picture, (two - fixed) // 2)
    for size in reversed(sizes):
        expected = two + (size - 2) * a_picture
        if size == 1 or expected > budget:
            continue
        needed = _bytes_or_none(used, size) if fixed is None and size > 2 else expected
        if needed is not None and needed <= budget:
            return size, needed
    return 1, one


def _ended_by(chosen: int, sizes: Sequence[int], needed: int, budget: float) -> str:
    if needed > budget:
        return ": memory is short"
    if chosen < sizes[-1]:
        return ""
    return "; more is not tried" if chosen == BATCH_SIZES[-1] else "; there are no more pictures"


def _bytes_or_none(used: Callable[[int], int], pictures: int) -> int | None:
    try:
        return used(pictures)
    except (RuntimeError, MemoryError) as error:
        if memory_that_ran_out(error) is None:
            raise
        return None


@dataclass
class _Step:
    """Forward, losses and backward of a batch of made-up pictures."""

    model: nn.Module
    criterion: SetCriterion
    image_hw: SizeHW
    objects: int
    preprocessing: Preprocessing
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]

    def __call__(self, pictures: int) -> None:
        images, targets = self._made_up(pictures)
        batch = images.to(self.device).normalized(self.preprocessing.mean, self.preprocessing.std)
        targets = targets.to(self.device)
        with self.autocast():
            output = run_model(self.model, batch, targets)
        self.criterion(output, targets).total.backward()

    def _made_up(self, pictures: int) -> tuple[CollatedImages, TargetBatch]:
        height, width = self.image_hw
        pixels = torch.randint(0, 256, (pictures, height, width, 3), dtype=torch.uint8)
        # One is smaller by a pixel: masks take memory too.
        own = ((max(height - 1, 1), max(width - 1, 1)), *[self.image_hw] * (pictures - 1))
        ids, total = tuple(range(pictures)), pictures * self.objects
        boxes = torch.rand(total, 4) * 0.2 + 0.3
        labels = torch.randint(0, self.criterion.num_classes, (total,))
        return (
            CollatedImages(pixels, own, own, ids),
            TargetBatch(labels, boxes, (self.objects,) * pictures, ids),
        )


class _OnDevice:
    """The most memory that CUDA holds during a step, weights and gradients included."""

    def __init__(self, step: _Step, held: int) -> None:
        self.step = step
        self.held = held

    def __call__(self, pictures: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.step.device)
        held = torch.empty(self.held, dtype=torch.uint8, device=self.step.device)
        try:
            with _kept_gradients(self.step.model):
                self.step(pictures)
                torch.cuda.synchronize(self.step.device)
            return torch.cuda.max_memory_allocated(self.step.device)
        finally:
            del held
            torch.cuda.empty_cache()


class _OnHost:
    """The most memory that the tensors made in a step hold together, and what is `held` besides."""

    def __init__(self, step: _Step, held: int) -> None:
        self.step = step
        self.held = held

    def __call__(self, pictures: int) -> int:
        with _kept_gradients(self.step.model), LiveBytes() as live:
            self.step(pictures)
        return live.peak + self.held


@contextmanager
def _kept_gradients(model: nn.Module) -> Iterator[None]:
    """Let there be gradients of an earlier batch, which an accumulating step keeps."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while it is open, `peak` the most.

    Unlike the tensors that autograd saves, this counts what lives in between, and what
    checkpointed layers keep and compute anew. What an operation needs inside is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._bytes_of: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):  # unknown ones were made before, such as weights
                self._count(leaf.untyped_storage(), made_here=False)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), made_here=True)
        return result

    def _count(self, storage: torch.UntypedStorage, *, made_here: bool) -> None:
        key = id(storage)
        if key in self._bytes_of:
            return
        self._bytes_of[key] = storage.nbytes() if made_here else 0
        self.live += self._bytes_of[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self._bytes_of.pop(key, 0)


def _free_device_bytes(device: torch.device) -> int:
    """Return what this process holds of the device's memory already, and what is free."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)
