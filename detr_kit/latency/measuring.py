"""How long one detector takes for pictures of one size, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from detr_kit.errors import DetrKitError
from detr_kit.inference.predictor import Predictor
from detr_kit.latency.memory import PeakMemory, resident_bytes
from detr_kit.sizes import SizeHW

# First calls compile, choose algorithms, fill caches and get memory.
WARM_UP = 3
# Of the calls whose total is taken, so many per call that is taken apart.
CALLS_PER_SPLIT = 3
STAGES = ("preprocessing", "model", "postprocessing")


@dataclass(frozen=True)
class Spread:
    """Milliseconds a call."""

    median: float
    p99: float
    min: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        milliseconds = np.array(seconds) * 1e3
        median, p99 = np.percentile(milliseconds, (50, 99))
        return cls(float(median), float(p99), float(milliseconds.min()), float(milliseconds.max()))


@dataclass(frozen=True)
class Latency:
    """What a detector takes for `batch_size` decoded pictures of `size_hw`, until it has boxes.

    The model sees them as `resized_hw`. `stage_ms` are medians of the `STAGES`, of other calls
    than the total; without them where nobody can tell them apart. `peak_bytes` is what
    `PeakMemory` says, None where it cannot tell.
    """

    size_hw: SizeHW
    resized_hw: SizeHW
    batch_size: int
    repeats: int
    total_ms: Spread
    stage_ms: dict[str, float]
    peak_bytes: int | None

    @property
    def images_per_second(self) -> float:
        """The throughput of calls one after the other, by the median."""
        return self.batch_size / self.total_ms.median * 1e3


def measure_latency(
    predictor: Predictor,
    size_hw: SizeHW,
    batch_size: int = 1,
    *,
    repeats: int = 30,
    resident_before: int | None = None,
    on_call: Callable[[], None] = lambda: None,
) -> Latency:
    """Time a detector with pictures of noise; what is in a picture makes no difference.

    `resident_before` is what `resident_bytes` was before the detector was made, to count its
    weights; `on_call` is called after each of `num_calls(repeats)` calls. Raises DetrKitError for
    fewer than one repeat or picture.
    """
    if repeats < 1 or batch_size < 1:
        raise DetrKitError(f"repeats {repeats}, batch size {batch_size}: expected at least 1")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8) for _ in range(batch_size)]

    before = resident_bytes() if resident_before is None else resident_before

    def timed() -> float:
        start = perf_counter()
        _call(predictor, pictures)
        seconds = perf_counter() - start
        on_call()
        return seconds

    for _ in range(WARM_UP):
        timed()
    memory = PeakMemory(getattr(predictor, "device", None), before)
    totals = [timed() for _ in range(repeats)]
    peak_bytes = memory.bytes()
    splits = []
    for _ in range(_num_splits(repeats)):
        splits.append(_split_seconds(predictor, pictures))
        on_call()
    return Latency(
        size_hw,
        predictor.preprocessing.size_rule.target_hw(size_hw),
        batch_size,
        repeats,
        Spread.of(totals),
        _medians([split for split in splits if split is not None]),
        peak_bytes,
    )


def num_calls(repeats: int) -> int:
    """Return how many calls `measure_latency` makes."""
    return WARM_UP + repeats + _num_splits(repeats)


def _num_splits(repeats: int) -> int:
    return max(repeats // CALLS_PER_SPLIT, 1)


def _call(predictor: Predictor, pictures: list[np.ndarray]) -> None:
    """Do what `predict` does once pictures are decoded; the boxes are on the host at its end."""
    resized = [predictor.prepare(picture) for picture in pictures]
    sizes_hw = [(picture.shape[0], picture.shape[1]) for picture in pictures]
    predictor.detect(resized, sizes_hw, [f"number {index}" for index in range(len(pictures))])


def _split_seconds(
    predictor: Predictor, pictures: list[np.ndarray]
) -> tuple[float, float, float] | None:
    """Return the seconds of each of `STAGES` in a call; None where the model is not called once."""
    owner, method = _what_runs(predictor)
    if owner is None:
        return None
    with _timing(owner, method, _wait_of(predictor)) as intervals:
        start = perf_counter()
        _call(predictor, pictures)
        end = perf_counter()
    if len(intervals) != 1:
        return None
    ((began, ended),) = intervals
    return began - start, ended - began, end - ended


def _what_runs(predictor: Predictor) -> tuple[Any, str]:
    """Return the object and the name of its method that runs the network and nothing else."""
    if hasattr(predictor, "session"):  # ONNX Runtime's
        return predictor.session, "run"
    return getattr(predictor, "model", None), "forward"


def _wait_of(predictor: Predictor) -> Callable[[], None]:
    """Return what waits for the device; calls to an accelerator come back before it is done."""
    device = getattr(predictor, "device", None)
    if device is None or device.type == "cpu":
        return lambda: None
    import torch

    return lambda: torch.accelerator.synchronize(device)


@contextmanager
def _timing(
    owner: Any, method: str, wait: Callable[[], None]
) -> Iterator[list[tuple[float, float]]]:
    """Yield the list of when each call of a method begins and ends while the block runs."""
    function, was_own = getattr(owner, method), method in vars(owner)
    intervals = []

    def timed(*arguments: Any, **options: Any) -> Any:
        wait()
        began = perf_counter()
        result = function(*arguments, **options)
        wait()
        intervals.append((began, perf_counter()))
        return result

    setattr(owner, method, timed)
    try:
        yield intervals
    finally:
        if was_own:
            setattr(owner, method, function)
        else:
            delattr(owner, method)


def _medians(splits: list[tuple[float, float, float]]) -> dict[str, float]:
    if not splits:
        return {}
    return dict(zip(STAGES, (np.median(splits, axis=0) * 1e3).tolist(), strict=True))
