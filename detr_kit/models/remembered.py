"""Remembering what was computed from weights, for as long as the weights stay what they were."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")
_steps = 0


def _count_step(*_: Any) -> None:
    """Fused optimisers write without raising a tensor's version: their steps are counted."""
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


class Remembered:
    """Keeps the last few results of computations on tensors.

    They are dropped as soon as the tensors' values are others: loaded, stepped, averaged or
    swapped for other tensors. A write through `.data` leaves no trace: whoever holds a
    `Remembered` calls `clear` where the mode changes. Copies and pickles start empty.
    """

    def __init__(self, max_items: int = 4) -> None:
        self.max_items = max_items
        self.items: dict[Hashable, Any] = {}
        self._sources: tuple[Tensor, ...] = ()
        self._state: tuple[Any, ...] = ()

    def __call__(self, sources: tuple[Tensor, ...], key: Hashable, compute: Callable[[], T]) -> T:
        """Return `compute()`, or what it returned for this key and these values before.

        It runs without gradients; a caller that wants them does not ask here.
        """
        if torch.compiler.is_compiling() or any(source.is_inference() for source in sources):
            return compute()
        state = _state_of(sources)
        if state != self._state:
            self.clear()
            # Aliases keep the memory, so that no other tensor can come to lie at its address.
            self._sources = tuple(source.detach() for source in sources)
            self._state = state
        found = self.items.get(key)
        if found is None:
            # Tensors made in inference mode could not be used in training afterwards.
            with torch.inference_mode(False), torch.no_grad():
                found = compute()
            while len(self.items) >= self.max_items:
                del self.items[next(iter(self.items))]
            self.items[key] = found
        return found

    def clear(self) -> None:
        """Forget everything."""
        self.items = {}
        self._sources = ()
        self._state = ()

    def __reduce__(self) -> tuple[type[Remembered], tuple[int]]:
        return Remembered, (self.max_items,)


def _state_of(sources: tuple[Tensor, ...]) -> tuple[Any, ...]:
    trainable = any(source.requires_grad for source in sources)
    return (
        _steps if trainable else None,
        *((s.data_ptr(), s._version, s.dtype, s.device, s.shape) for s in sources),
    )
