"""The table that maps the columns of a class head to the categories of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from detr_kit.errors import DetrKitError

# The 80 object categories of COCO (Lin et al. 2014), by their ids of 1 to 90; "-" was never used.
_COCO_NAMES = """
    -; person; bicycle; car; motorcycle; airplane; bus; train; truck; boat; traffic light;
    fire hydrant; -; stop sign; parking meter; bench; bird; cat; dog; horse; sheep; cow; elephant;
    bear; zebra; giraffe; -; backpack; umbrella; -; -; handbag; tie; suitcase; frisbee; skis;
    snowboard; sports ball; kite; baseball bat; baseball glove; skateboard; surfboard;
    tennis racket; bottle; -; wine glass; cup; fork; knife; spoon; bowl; banana; apple; sandwich;
    orange; broccoli; carrot; hot dog; pizza; donut; cake; chair; couch; potted plant; bed; -;
    dining table; -; -; toilet; -; tv; laptop; mouse; remote; keyboard; cell phone; microwave;
    oven; toaster; sink; refrigerator; -; book; clock; vase; scissors; teddy bear; hair drier;
    toothbrush
"""


@dataclass(frozen=True)
class CategoryTable:
    """Column i of a class head stands for the category with id `ids[i]` and name `names[i]`.

    A column that no category uses (the gaps of a 91-column COCO head) has `used[i]` False and is
    never predicted. `no object` is the column after the last and is not in the table.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    used: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.used:
            object.__setattr__(self, "used", (True,) * len(self.ids))
        if not len(self.ids) == len(self.names) == len(self.used):
            raise DetrKitError("category table: ids, names and used differ in length")
        if not any(self.used):
            raise DetrKitError("category table: it holds no category")
        for kind, values in (("id", self.ids), ("name", self.names)):
            twice = sorted({str(v) for v in values if values.count(v) > 1})
            if twice:
                raise DetrKitError(f"category table: {kind} {', '.join(twice)} appears twice")

    @classmethod
    def from_coco(cls, categories: Iterable[Mapping[str, Any]]) -> CategoryTable:
        """Build the table of a COCO file: columns contiguous from 0 in the order of the ids."""
        by_id = sorted(categories, key=lambda category: int(category["id"]))
        return cls(
            tuple(int(category["id"]) for category in by_id),
            tuple(str(category["name"]) for category in by_id),
        )

    @classmethod
    def from_columns(cls, names: Iterable[str], unused: str) -> CategoryTable:
        """Build the table of a head whose columns are the ids: names in order of the columns.

        A column called `unused` stands for no category.
        """
        listed = list(names)
        return cls(
            tuple(range(len(listed))),
            tuple(f"unused_{i}" if name == unused else name for i, name in enumerate(listed)),
            tuple(name != unused for name in listed),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def column_of(self) -> dict[int, int]:
        """Category id to column."""
        return {
            id_: column
            for column, (id_, used) in enumerate(zip(self.ids, self.used, strict=True))
            if used
        }

    @cached_property
    def ids_array(self) -> np.ndarray:
        """(C,) int64: the category id of each column."""
        return np.array(self.ids, dtype=np.int64)

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"id": id_, "name": name, "used": used}
            for id_, name, used in zip(self.ids, self.names, self.used, strict=True)
        ]

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> CategoryTable:
        return cls(
            tuple(int(row["id"]) for row in rows),
            tuple(str(row["name"]) for row in rows),
            tuple(bool(row["used"]) for row in rows),
        )

    def require_same(self, other: CategoryTable, own_name: str, other_name: str) -> None:
        """Raise where the tables differ, naming the first category that does."""
        mine = dict(zip(self.ids, self.names, strict=True))
        theirs = dict(zip(other.ids, other.names, strict=True))
        if mine == theirs:
            return
        for id_ in sorted(mine.keys() | theirs.keys()):
            if mine.get(id_) != theirs.get(id_):
                raise DetrKitError(
                    f"{other_name}: categories differ from {own_name}: id {id_} is "
                    f"{theirs.get(id_)!r} there and {mine.get(id_)!r} here"
                )


def coco_table() -> CategoryTable:
    """Return the table of a head with a column for each COCO category id from 0 to 90."""
    names = [name.strip() for name in _COCO_NAMES.split(";")]
    return CategoryTable.from_columns(names, unused="-")
