"""How much memory there is, and what to do when it runs out."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import psutil
import torch

from detr_kit.checkpoints.listing import listed
from detr_kit.config import ImageSizeConfig, RunConfig
from detr_kit.data.loading import Batch
from detr_kit.errors import DetrKitError
from detr_kit.images import one_line

Place = Literal["device", "host", "workers"]

# Parts of the messages of those who raise no type of their own when memory is short.
_MESSAGES: dict[Place, tuple[str, ...]] = {
    "workers": ("is killed by signal: Killed", "insufficient shared memory"),
    "device": (
        "CUDA out of memory",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory",
    ),
    "host": (
        "DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory",
        "std::bad_alloc",
        "Cannot allocate memory",
        "Insufficient memory",  # of OpenCV
        "MemoryError",  # as the loader passes on what a worker met
    ),
}

# What is left of each side in the sizes that are proposed: 56 % of the pixels.
_SMALLER_SIDE = 0.75
_SIDE_STEP = 32


def out_of_memory(
    error: BaseException,
    batches: Sequence[Batch],
    config: RunConfig,
    *,
    doing: Literal["training", "evaluating"] = "training",
) -> DetrKitError | None:
    """Return what to tell a user about an error for want of memory; None for any other error.

    `batches` are those of the step at hand; none outside of a step. The largest is described. What
    is advised depends on whether the run has saved a state that it can go on from.
    """
    place = memory_that_ran_out(error)
    if place is None:
        return None
    batch = max(batches, key=lambda batch: batch[0].pixels.numel(), default=None)
    owner = {
        "device": "on the device",
        "host": "on the host",
        "workers": "in the loader's workers",
    }[place]
    where = "" if batch is None else _described(batch)
    if doing == "evaluating":
        where = f" in the evaluation{where}"
        goes_on, anew = _smaller_evaluation(config, place), []
    else:
        goes_on, anew = _smaller_steps(config, batches, place), _smaller_models(config, place)
    helps = _advice(config, goes_on, anew)
    return DetrKitError(
        f"out of memory {owner}{where}: {_amounts(error)}{f'; try {helps}' if helps else ''}"
    )


def memory_that_ran_out(error: BaseException) -> Place | None:
    """Return whose memory an error, or what caused it, says is used up; None if none."""
    for cause in _chain(error):
        if isinstance(cause, torch.OutOfMemoryError):
            return "device"
        if isinstance(cause, MemoryError):
            return "host"
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return "host"
        if isinstance(cause, Exception) and not isinstance(cause, DetrKitError):
            for place, parts in _MESSAGES.items():
                if any(part in str(cause) for part in parts):
                    return place
    return None


def available_host_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process may still take without swapping.

    A container may allow less than the machine has: the limits of the control groups (versions 1
    and 2) count, of their use all but the cache of files. `root` is where /proc and /sys are.
    """
    available = int(psutil.virtual_memory().available)
    for group in _control_groups(root):
        limit = _number_in(group, "memory.max", "memory.limit_in_bytes")
        used = _number_in(group, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            available = min(available, limit - used + _file_cache(group))
    return max(available, 0)


def _control_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's memory groups, the innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        # In a container the path is the host's: what is mounted there is the container's own.
        inner = mounted / path.lstrip("/")
        yield from (group for group in (inner, *inner.parents) if group.is_relative_to(mounted))


def _number_in(group: Path, *names: str) -> int | None:
    """Return the number in the first of the files that exists; None for none, and for "max"."""
    for name in names:
        if (group / name).is_file():
            text = (group / name).read_text(encoding="utf-8").strip()
            return int(text) if text.isdigit() else None
    return None


def _file_cache(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # an error may be its own cause
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _described(batch: Batch) -> str:
    images, targets = batch
    number = f"{len(images)} {'picture' if len(images) == 1 else 'pictures'}"
    height, width = images.pixels.shape[1:3]
    objects = f"{sum(targets.counts)} {'object' if sum(targets.counts) == 1 else 'objects'}"
    ids = listed([str(image_id) for image_id in images.image_ids], 5)
    return f" with a batch of {number}, {height} x {width} (H x W), {objects}, image ids {ids}"


def _amounts(error: BaseException) -> str:
    """Return how much was asked for and how much is free, or else the error's first words."""
    for cause in _chain(error):
        text = str(cause)
        asked = re.search(r"[Tt]ried to allocate (\d[\d.]* ?\w+)", text)
        if asked is None:
            continue
        amount = asked[1]
        if amount.endswith("bytes"):
            amount = f"{int(amount.split()[0]) / 2**30:.3g} GiB"
        free = re.search(r"total capacity of (.*?) of which (.*?) is free", text)
        return f"tried to allocate {amount}" + (
            f", {free[2]} of {free[1]} are free" if free else ""
        )
    return one_line(error)[:200] or type(error).__name__


def _advice(config: RunConfig, goes_on: list[str], anew: list[str]) -> str:
    """Join settings that a run may go on with, and those that only a new run may have."""
    if not _is_saved(config):
        return ", or ".join(goes_on + anew)
    ways = []
    if goes_on:
        ways.append(f"detr-kit resume {config.output} {', or '.join(goes_on)}")
    if anew:
        ways.append(f"a new run with {', or '.join(anew)}")
    return "; or ".join(ways)


def _is_saved(config: RunConfig) -> bool:
    return (config.output / "last").exists()


def _smaller_steps(config: RunConfig, batches: Sequence[Batch], place: Place) -> list[str]:
    """Return settings that need less memory and leave it the same run, the best first."""
    pictures = max((len(images) for images, _ in batches), default=0)
    if config.batch_size != "auto":
        pictures = config.batch_size  # the last batch of an epoch may hold fewer
    # A run that was resumed with smaller batches has more of them in a step than its config says.
    accumulated = max(config.accumulate, len(batches))
    helps = []
    parts = next((n for n in range(2, pictures + 1) if pictures % n == 0), None)
    if parts is not None:
        same = "the same steps" if config.loss.normalizer == "step" else "nearly the same steps"
        smaller = f"batch_size={pictures // parts}"
        new = f"{smaller} accumulate={accumulated * parts}"
        helps.append(
            f"{smaller} ({same}; in a new run {new})" if _is_saved(config) else f"{new} ({same})"
        )
    if place == "device" and config.precision in ("fp32", "tf32"):
        helps.append("precision=bf16")
    return _with_fewer_workers(helps, config, place)


def _smaller_models(config: RunConfig, place: Place) -> list[str]:
    """Return settings that need less memory and cannot change when a run goes on."""
    helps = []
    if not config.model.activation_checkpointing:
        helps.append("model.activation_checkpointing=true (the same steps, slower)")
    helps += _smaller_pictures(config.image_size)
    if place == "device" and config.average.decay > 0:
        helps.append("average.decay=0 (a copy of the weights less)")
    return helps


def _smaller_evaluation(config: RunConfig, place: Place) -> list[str]:
    now = config.evaluation.batch_size or config.batch_size
    helps = [] if now == 1 else [f"evaluation.batch_size=1 (now {now})"]
    return _with_fewer_workers(helps, config, place)


def _with_fewer_workers(helps: list[str], config: RunConfig, place: Place) -> list[str]:
    if place == "device" or config.data.num_workers < 2:
        return helps
    fewer = f"data.num_workers={config.data.num_workers // 2}"
    if place == "host":
        return [*helps, fewer]
    return [f"{fewer}, or more memory in /dev/shm", *helps]


def _smaller_pictures(sizes: ImageSizeConfig) -> list[str]:
    now = sizes.train_short_sides or (sizes.short_side,)
    short = _smaller(max(now))
    kept = [side for side in now if side <= short] or [short]
    if max(kept) >= max(now):
        return []
    change = f"image_size.train_short_sides={kept}".replace(" ", "")
    was = f"now up to {max(now)}"
    if sizes.rule not in ("square", "fit"):
        cap = sizes.train_long_side or sizes.long_side
        change += f" image_size.train_long_side={_smaller(cap)}"
        was += f" and {cap}"
    return [f"{change} ({was})"]


def _smaller(side: int) -> int:
    """Return a side of about three quarters, a multiple of 32 where it is not smaller than that."""
    smaller = int(side * _SMALLER_SIDE)
    return max(smaller // _SIDE_STEP * _SIDE_STEP, 16)
