"""How reports and logs call images, annotations and numbers: on one line, without control codes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from detr_kit.data.checks.findings import Case
from detr_kit.data.coco_file import NO_ID, CocoColumns

_LONGEST = 120


def quoted(text: str) -> str:
    """Return a text of the user's in quotes, on one line, cut where it is long."""
    return repr(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}...")


def number(value: float) -> str:
    """Return a number as people write it: 12, not 12.0."""
    return f"{float(value):.12g}"


def numbers(values: Iterable[float]) -> str:
    return f"[{', '.join(map(number, values))}]"


class Naming:
    """Names the rows of a file; `image_rows` (N,) int64 is the image of each annotation or -1."""

    def __init__(self, columns: CocoColumns, image_rows: np.ndarray) -> None:
        self.columns = columns
        self.image_rows = image_rows
        self._category_names = dict(
            zip(columns.category_ids.tolist(), columns.category_names, strict=True)
        )

    def image(self, row: int) -> str:
        name = self.columns.file_names[row]
        return f"image {self.columns.image_ids[row]} {quoted(name) if name else '(no file_name)'}"

    def annotation(self, row: int) -> str:
        image_row = self.image_rows[row]
        image = (
            self.image(image_row) if image_row >= 0 else f"image {self.columns.image_id_of[row]}"
        )
        return f"{self.columns.annotation_name(row)} ({image})"

    def category(self, row: int) -> str:
        return (
            f"category {self.columns.category_ids[row]} {quoted(self.columns.category_names[row])}"
        )

    def category_of(self, row: int) -> str:
        """Name the category of the annotation in `row`."""
        id_ = int(self.columns.category_id_of[row])
        name = self._category_names.get(id_)
        return f"category {id_}" if name is None else f"category {id_} {quoted(name)}"

    def size_of(self, row: int) -> str:
        """Name the size of the image of the annotation in `row`: width x height."""
        height, width = self.columns.sizes_hw[self.image_rows[row]]
        return f"{width} x {height}"

    def image_case(self, row: int, text: str) -> Case:
        return Case(
            f"{self.image(row)}: {text}",
            file=self.columns.file_names[row] or None,
            image_id=int(self.columns.image_ids[row]),
        )

    def annotation_case(self, row: int, text: str) -> Case:
        image_row = self.image_rows[row]
        id_ = int(self.columns.annotation_ids[row])
        return Case(
            f"{self.annotation(row)}: {text}",
            file=(self.columns.file_names[image_row] or None) if image_row >= 0 else None,
            annotation_id=None if id_ == NO_ID else id_,
            image_id=int(self.columns.image_id_of[row]),
        )
