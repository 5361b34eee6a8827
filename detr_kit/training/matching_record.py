"""Which query found each object, from epoch to epoch: how settled the matching is.

DETR trains slowly for as long as the same object is given to another query each time; where many
queries are never given an object, there are more of them than the data needs.

Queries that are selected from the picture are numbered by the rank of their score: which number
finds an object says how its score compares with others', not which query it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_kit.structures import TargetBatch

Gather = Callable[[object], list[Any]]


class MatchingRecord:
    """Keeps the query of each of `num_objects` training objects, in this epoch and the last.

    An object is known by its row in the annotations, whatever augmentation did to its picture;
    objects of unknown row count for the queries only. Of an object that comes several times in an
    epoch, the last time counts. All of it is work on the host.

    `ranked`: a query's number is a rank in its picture, so that changes of it are not told.
    """

    def __init__(self, num_objects: int, num_queries: int, *, ranked: bool = False) -> None:
        # Large data sets: two bytes an object, for two epochs.
        dtype = np.int16 if num_queries <= np.iinfo(np.int16).max else np.int32
        self._last = np.full(num_objects, -1, dtype=dtype)
        self._current = self._last.copy()
        self._matched = np.zeros(num_queries, dtype=np.bool_)
        self._ranked = ranked

    def add(self, pairs: np.ndarray, targets: TargetBatch) -> None:
        """Take in the last layer of `Assignment.pairs`, (3, L, M)."""
        _, query, target = pairs[:, -1]
        self._matched[query] = True
        if targets.rows is not None:
            rows = targets.rows[target]
            known = rows >= 0
            self._current[rows[known]] = query[known]

    def finish_epoch(self, gather: Gather | None = None) -> dict[str, float | int | None]:
        """Return what came of the epoch, and begin the next.

        - `query_changed`: of the objects matched in this epoch and the last, the share whose query
          is another one; None where there are none, as in the first epoch, and where queries are
          `ranked`.
        - `queries_never_matched`: how many queries found no object in the epoch.

        `gather` takes this process's part and returns those of all processes, in one order in all
        of them: each sees other pictures. All return the same.
        """
        own = (self._current, self._matched)
        for current, matched in [own] if gather is None else gather(own):
            np.copyto(self._current, current, where=current >= 0)
            self._matched |= matched
        both = (self._current >= 0) & (self._last >= 0)
        changed = (self._current != self._last) & both
        num_both = 0 if self._ranked else int(both.sum())
        result = {
            "query_changed": int(changed.sum()) / num_both if num_both else None,
            "queries_never_matched": int((~self._matched).sum()),
        }
        self._last, self._current = self._current, self._last
        self._current.fill(-1)
        self._matched.fill(False)
        return result

    def state(self) -> dict[str, Tensor]:
        """Return copies of all that is kept, of this process."""
        return {
            "last": torch.from_numpy(self._last.copy()),
            "current": torch.from_numpy(self._current.copy()),
            "matched": torch.from_numpy(self._matched.copy()),
        }

    @staticmethod
    def shared(
        states: Sequence[dict[str, Tensor]], *, rank: int, world_size: int
    ) -> dict[str, Tensor]:
        """Return the state of a process of `world_size` from those that others have kept.

        As many as there were: each goes on with its own. Else the first takes what all have seen.
        """
        if len(states) == world_size:
            return states[rank]
        merged = {name: part.clone() for name, part in states[0].items()}
        if rank:
            merged["current"].fill_(-1)
            merged["matched"].fill_(False)
            return merged
        for state in states[1:]:
            seen = state["current"] >= 0
            merged["current"][seen] = state["current"][seen]
            merged["matched"] |= state["matched"]
        return merged

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`; one of other objects or queries is left alone."""
        last, current, matched = (state[name].numpy() for name in ("last", "current", "matched"))
        if last.shape == self._last.shape and matched.shape == self._matched.shape:
            self._last, self._current = last.copy(), current.copy()
            self._matched = matched.copy()
