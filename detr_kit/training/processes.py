"""What the processes of a run tell each other, on the host, so that no device has to wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import distributed

T = TypeVar("T")


class Processes:
    """This process among those of a run, and a channel between them.

    The channel is a gloo group of its own: its numbers never touch a device, whatever backend
    carries the gradients.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self._group: Any = distributed.new_group(backend="gloo") if self.count > 1 else None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of the processes' `values`, which must be of one length."""
        if self._group is None:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(summed, group=self._group)
        return summed.tolist()

    def gather(self, own: T) -> list[T]:
        """Return what each process gave, by rank, to all of them."""
        if self._group is None:
            return [own]
        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, own, group=self._group)
        return parts
