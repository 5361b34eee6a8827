"""Counts where a step reads values of a device on the host, on a machine without a device.

Such a read waits until the device has done all that it was asked to do. On the CPU nothing waits
and nothing is copied, so that a read shows in no profile; the calls that would be one are counted
instead.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result, or the size of it, the host has to know.
READING_OPERATORS = {
    "_local_scalar_dense": "a tensor's value as a number or a condition",
    "equal": "equal",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "bincount": "bincount",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
}
READING_METHODS = ("cpu", "numpy", "tolist")
_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class HostRead:
    """One read: what kind of call, and the innermost lines that led to it, outside of torch."""

    kind: str
    where: str


@dataclass
class _Counter:
    """Takes notes, and knows which memory is a copy on the host: reading that is no read."""

    reads: list[HostRead] = field(default_factory=list)
    thread: int = field(default_factory=threading.get_ident)
    # The tensors are kept, so that no other one gets their memory meanwhile.
    on_host: dict[int, Tensor] = field(default_factory=dict)
    is_inside: bool = False

    def note(self, kind: str) -> None:
        if threading.get_ident() == self.thread and not self.is_inside:
            self.reads.append(HostRead(kind, _where()))

    def keep_on_host(self, tensor: Tensor) -> None:
        self.on_host[_memory(tensor)] = tensor

    def is_on_host(self, tensor: Tensor) -> bool:
        return _memory(tensor) in self.on_host

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What a read does to get its values is not read again."""
        before, self.is_inside = self.is_inside, True
        try:
            yield
        finally:
            self.is_inside = before


class _Operators(TorchDispatchMode):
    """Sees every operator, of the backward pass as well."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        all_on_host = bool(given) and all(self.counter.is_on_host(tensor) for tensor in given)
        name = func.overloadpacket.__name__
        kind = READING_OPERATORS.get(name) or _kind_by_arguments(name, args, kwargs or {})
        if kind is not None and not all_on_host:
            self.counter.note(kind)
        returned = func(*args, **(kwargs or {}))
        if all_on_host:
            for leaf in tree_leaves(returned):
                if isinstance(leaf, Tensor):
                    self.counter.keep_on_host(leaf)
        return returned


@contextmanager
def counting_host_reads() -> Iterator[list[HostRead]]:
    """Collect the reads of this thread, in their order.

    Counted are calls on every tensor, for none tells whether it would be on a device; what was
    brought to the host by such a call, and what was made from that alone, is read freely.
    `.to("cpu")` is a read, `.to(device)` with a `torch.device` is not: that is how tensors go to
    a device, which here happens to be the CPU.
    """
    counter = _Counter()
    with ExitStack() as stack:
        for name in READING_METHODS:
            patched = _reading(counter, name, getattr(Tensor, name))
            stack.enter_context(mock.patch.object(Tensor, name, patched))
        stack.enter_context(mock.patch.object(Tensor, "to", _moving(counter, Tensor.to)))
        stack.enter_context(_Operators(counter))
        yield counter.reads


def _reading(counter: _Counter, name: str, right: Callable[..., Any]) -> Callable[..., Any]:
    def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not counter.is_on_host(tensor):
            counter.note(name)
        with counter.inside():
            returned = right(tensor, *args, **kwargs)
            return _copy_on_host(counter, returned) if name == "cpu" else returned

    return method


def _moving(counter: _Counter, right: Callable[..., Any]) -> Callable[..., Any]:
    def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device", args[0] if args else None)
        if not isinstance(device, str) or torch.device(device).type != "cpu":
            return right(tensor, *args, **kwargs)
        if not counter.is_on_host(tensor):
            counter.note("to")
        with counter.inside():
            return _copy_on_host(counter, right(tensor, *args, **kwargs))

    return method


def _copy_on_host(counter: _Counter, tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    counter.keep_on_host(copy)
    return copy


def _kind_by_arguments(name: str, args: Any, kwargs: dict[str, Any]) -> str | None:
    """Name the read of an operator that is one with some arguments only."""
    if name == "repeat_interleave" and len(args) < 2 and kwargs.get("output_size") is None:
        return "repeat_interleave without output_size"
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        is_mask = any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
        # Writing one value through a mask needs no list of places.
        if is_mask and (name == "index" or args[2].numel() != 1):
            return "index by a mask"
    return None


def _memory(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:  # a sparse one has no memory of its own
        return id(tensor)
    return tensor.untyped_storage()._cdata


def _where() -> str:
    frames = [
        f"{frame.filename}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_stack()
        if frame.filename != __file__ and not frame.filename.startswith(_TORCH)
    ]
    return "\n".join(frames[-4:])
