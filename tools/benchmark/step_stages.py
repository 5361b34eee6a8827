"""Where the time of a training step goes, and how often the host waits for a value of the device.

Both are found by wrapping functions for a while, so that the code that is measured stays as it is.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

# Tensor.numpy() is left out: it works on a tensor of the host alone, which .cpu() made before.
_READS = ("cpu", "tolist", "item", "to", "__float__", "__int__", "__bool__", "__index__")
REST = "the rest"


@dataclass(frozen=True)
class Stage:
    """A function that is a stage of the step: `owner.attribute`.

    `backward` names the part of the backward pass that begins where the gradient of the function's
    result is known.
    """

    owner: Any
    attribute: str
    name: str
    backward: str | None = None


class StageClock:
    """Adds up the time inside of stages, without that of the stages inside them."""

    def __init__(self, device: torch.device, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds: Counter[str] = Counter()
        self.running: list[str] = []
        self.since = 0.0
        self.device = device

    def switch(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = self.now()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.switch()
        self.running.append(name)
        try:
            yield
        finally:
            self.switch()
            self.running.pop()

    def rename(self, name: str) -> None:
        """Count what follows in the running stage under another name."""
        self.switch()
        self.running[-1] = name

    def timed(self, stage: Stage) -> Callable[..., Any]:
        function = getattr(stage.owner, stage.attribute)

        def call(*arguments: Any, **options: Any) -> Any:
            with self.stage(stage.name):
                result = function(*arguments, **options)
            gradient_of = _last_with_gradient(result) if stage.backward else None
            if gradient_of is not None:
                gradient_of.register_hook(lambda _: self.rename(str(stage.backward)))
            return result

        return call


def stage_seconds(
    step: Callable[[], object],
    stages: list[Stage],
    device: torch.device,
    repeats: int,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the mean seconds a step of each stage, in the order in which they end."""
    clock = StageClock(device, now)
    with ExitStack() as stack:
        for stage in stages:
            stack.enter_context(patch.object(stage.owner, stage.attribute, clock.timed(stage)))
        step()
        clock.seconds.clear()
        for _ in range(repeats):
            with clock.stage(REST):
                step()
    return {name: value / repeats for name, value in clock.seconds.items()}


def _last_with_gradient(result: Any) -> Tensor | None:
    if isinstance(result, Tensor):
        return result if result.requires_grad else None
    parts = list(result.values()) if hasattr(result, "values") else result
    if not isinstance(parts, list | tuple):
        return None
    found = [_last_with_gradient(part) for part in parts]
    return next((tensor for tensor in reversed(found) if tensor is not None), None)


def host_reads(step: Callable[[], object], device: torch.device) -> Counter[str]:
    """Return how often a step reads a value of the device on the host, by the kind of call.

    On a GPU, `synchronising` counts PyTorch's own warnings of all waits, these reads among them.
    Without one, tensors of the host and of the device are not told apart, so copies by `to` are
    left out, and what the optimiser reads: its counters live on the host.
    """
    reads: Counter[str] = Counter()
    state = {"paused": False}
    with ExitStack() as stack:
        for name in _READS:
            if name == "to" and device.type == "cpu":
                continue
            wrapped = _counting(name, getattr(Tensor, name), device, reads, state)
            stack.enter_context(patch.object(Tensor, name, wrapped))
        adam = torch.optim.AdamW
        stack.enter_context(patch.object(adam, "step", _pausing(adam.step, state)))
        step()
    if device.type == "cuda":
        reads["synchronising"] = _synchronising(step)
    return reads


def _counting(
    name: str, function: Any, device: torch.device, reads: Counter[str], state: dict[str, bool]
) -> Any:
    def call(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        from_device = tensor.device.type == device.type and not hasattr(tensor, "is_host_copy")
        to_host = name != "to" or _names_host(arguments, options)
        copies = name in ("cpu", "to")
        result = function(tensor, *arguments, **options)
        if from_device and to_host and not state["paused"]:
            reads[name] += 1
            if copies:
                result.is_host_copy = True
        return result

    return call


def _names_host(arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    places = [options.get("device"), *arguments]
    return any(isinstance(place, str | torch.device) and str(place) == "cpu" for place in places)


def _pausing(function: Any, state: dict[str, bool]) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        state["paused"] = True
        try:
            return function(*arguments, **options)
        finally:
            state["paused"] = False

    return call


def _synchronising(step: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
