"""Looking at every value of a forward and a backward pass that are run for the sake of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class TensorWatch:
    """While open, notes where in a model the first value appears that is not finite.

    `output` names the first module, in the order in which they finish, whose output is not finite
    although its inputs are; `gradient` the first weight whose gradient is not, in the order of the
    backward pass. Both say how many of the values, and are None while all are finite.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.output: str | None = None
        self.gradient: str | None = None
        self._inside: list[str] = []  # modules that were given bad values and passed them on
        self._in_forward = True
        self._handles: list[Any] = []

    def __enter__(self) -> TensorWatch:
        for name, module in self.model.named_modules():
            self._handles.append(
                module.register_forward_hook(self._module_hook(plain_name(name)), with_kwargs=True)
            )
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                hook = self._gradient_hook(plain_name(name))
                self._handles.append(weight.register_post_accumulate_grad_hook(hook))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def forward_is_over(self) -> None:
        """Look at modules no more: checkpointed ones run again in the backward pass."""
        self._in_forward = False

    def _module_hook(self, name: str) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not self._in_forward or self.output is not None:
                return
            counts = counts_of_bad(*_tensors_in(output))
            if counts is None:
                return
            if counts_of_bad(*_tensors_in((args, kwargs))) is not None:
                self._inside.append(name)
                return
            place = f"{name or 'the model'} ({type(module).__name__})"
            prefix = f"{name}." if name else ""
            within = [child for child in self._inside if child.startswith(prefix)]
            between = f", computed before its part {within[0]}" if within else ""
            self.output = f"the output of {place}: {counts}{between}"

        return look

    def _gradient_hook(self, name: str) -> Any:
        def look(weight: Tensor) -> None:
            if self.gradient is None and weight.grad is not None:
                counts = counts_of_bad(weight.grad)
                if counts is not None:
                    self.gradient = f"the gradient of the weight {name}: {counts}"

        return look


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore buffers, modes and torch's random streams afterwards; gradients are None then."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    devices = {weight.device for weight in model.parameters() if weight.device.type == "cuda"}
    model.zero_grad(set_to_none=True)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        model.zero_grad(set_to_none=True)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def counts_of_bad(*tensors: Tensor, allow_minus_infinity: bool = False) -> str | None:
    """Return "3 nan and 1 inf of 25600 values", or None where all are finite."""
    nan = infinite = total = 0
    widest: torch.dtype | None = None
    for tensor in map(_local, tensors):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        total += tensor.numel()
        if not tensor.isfinite().all():
            nan += int(tensor.isnan().sum())
            bad = tensor.isposinf() if allow_minus_infinity else tensor.isinf()
            infinite += int(bad.sum())
            widest = tensor.dtype
    counts = [f"{count} {kind}" for count, kind in ((nan, "nan"), (infinite, "inf")) if count]
    if not counts:
        return None
    half = f" of {str(widest).removeprefix('torch.')}" if widest == torch.float16 else ""
    return f"{' and '.join(counts)} of {total} values{half}"


def too_large_gradient(model: nn.Module) -> str | None:
    """Name the weight whose gradient is not finite, or the largest where only their norm is not.

    The order is that of the backward pass as far as the order of the weights tells.
    """
    norms: dict[str, Tensor] = {}
    for name, weight in reversed(list(model.named_parameters())):
        if weight.grad is None:
            continue
        gradient = _local(weight.grad)
        counts = counts_of_bad(gradient)
        if counts is not None:
            return f"the gradient of the weight {plain_name(name)}: {counts}"
        norms[name] = torch.linalg.vector_norm(gradient, dtype=torch.float32)
    if not norms or bool(torch.linalg.vector_norm(torch.stack(list(norms.values()))).isfinite()):
        return None
    largest = max(norms, key=lambda name: float(norms[name]))
    size = float(_local(_gradient(model, largest)).abs().max())
    return (
        f"the norm of the gradients; the largest is that of the weight {plain_name(largest)}, "
        f"with values up to {size:.2g}"
    )


def largest_weight(model: nn.Module) -> tuple[str, float]:
    """Return the name and the size of the largest finite value among the weights."""
    sizes = {
        plain_name(name): float(_local(weight.detach()).abs().max())
        for name, weight in model.named_parameters()
        if _local(weight).numel()
    }
    return max(sizes.items(), key=lambda item: item[1], default=("", 0.0))


def plain_name(name: str) -> str:
    """Take off what wrappers put into the names of a model's parts."""
    return name.removeprefix("module.").replace("_orig_mod.", "")


def _gradient(model: nn.Module, name: str) -> Tensor:
    gradient = model.get_parameter(name).grad
    assert gradient is not None
    return gradient


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that several share, any other as it is."""
    to_local = getattr(tensor, "to_local", None)
    return (tensor if to_local is None else to_local()).detach()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors_in(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
