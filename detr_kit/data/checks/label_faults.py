"""What is wrong with the records of a COCO file, as columns: for a report and for a repair."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from detr_kit.data.box_faults import clip_boxes
from detr_kit.data.checks.box_format import BoxFormat, borders_hw, find_format
from detr_kit.data.coco_file import CocoColumns
from detr_kit.data.names import stays_inside

# Names that surely stay in their folder; the others, which are few, are looked at by parts.
_PLAIN_NAME = re.compile(r"[^./\\:\0][^/\\:\0]*(/[^./\\:\0][^/\\:\0]*)*")


def rows_of(ids: np.ndarray, known_ids: np.ndarray) -> np.ndarray:
    """Return where each id stands among `known_ids`, first where twice, -1 where it does not."""
    rows: np.ndarray = np.full(len(ids), -1, dtype=np.int64)
    if not len(known_ids) or not len(ids):
        return rows
    order = np.argsort(known_ids, kind="stable")
    by_size = known_ids[order]
    place = np.minimum(_places(ids, by_size), len(known_ids) - 1)
    found = by_size[place] == ids
    rows[found] = order[place[found]]
    return rows


def _places(ids: np.ndarray, by_size: np.ndarray) -> np.ndarray:
    """Return np.searchsorted(by_size, ids), from a table where the ids leave few gaps."""
    low, high = int(by_size[0]), int(by_size[-1])
    if high - low > 8 * len(by_size):
        return np.searchsorted(by_size, ids)
    table = np.searchsorted(by_size, np.arange(low, high + 1))
    return table[np.clip(ids, low, high) - low]


def repeated(ids: np.ndarray) -> np.ndarray:
    """Return (N,) bool: where an id has stood before."""
    again: np.ndarray = np.ones(len(ids), dtype=bool)
    again[np.unique(ids, return_index=True)[1]] = False
    return again


@dataclass(frozen=True)
class ImageFaults:
    """(I,) bool columns; `first_of_file` (I,) int64 is the first row that names the same file."""

    name_missing: np.ndarray
    leaves_folder: np.ndarray
    size_missing: np.ndarray
    first_of_file: np.ndarray


def judge_images(columns: CocoColumns) -> ImageFaults:
    """Judge names and sizes of the images; ids are judged by `repeated`."""
    names = list(columns.file_names)
    plain = [_PLAIN_NAME.fullmatch(name) is not None for name in names]
    missing = np.array([not name for name in names], dtype=bool)
    inside = [fits or stays_inside(name) for fits, name in zip(plain, names, strict=True)]
    first: dict[str, int] = {}
    first_of_file = [
        first.setdefault(name if fits else str(PurePosixPath(name)), row) if name else row
        for row, (fits, name) in enumerate(zip(plain, names, strict=True))
    ]
    return ImageFaults(
        name_missing=missing,
        leaves_folder=~np.array(inside, dtype=bool) & ~missing,
        size_missing=np.asarray((columns.sizes_hw < 1).any(axis=1)),
        first_of_file=np.array(first_of_file, dtype=np.int64),
    )


@dataclass(frozen=True)
class BoxFaults:
    """What the boxes of a file are and what is wrong with them; columns are (N,) bool.

    A box that is not `given`, or whose format is no (x, y, w, h) in pixels, has no other fault.
    """

    format: BoxFormat
    not_finite: np.ndarray
    no_side: np.ndarray
    outside: np.ndarray
    overshoot: np.ndarray

    @property
    def bad(self) -> np.ndarray:
        """Where nothing of the box can be used."""
        return self.not_finite | self.no_side | self.outside


def judge_boxes(
    boxes_xywh: np.ndarray, given: np.ndarray, sizes_hw: np.ndarray, known: np.ndarray
) -> BoxFaults:
    """Judge boxes_xywh (N, 4) in pictures of sizes_hw (N, 2), 0 where a side is not known.

    `given` (N,) bool says which annotations have a box. Only those of a `known` image and category
    tell what the boxes of the file are.
    """
    borders = borders_hw(sizes_hw)
    clipped = clip_boxes(boxes_xywh, borders)
    usable = given & known & ~clipped.not_finite & ~clipped.no_side
    found = find_format(boxes_xywh[usable], sizes_hw[usable], clipped.outside[usable])
    judged = given if found == "xywh" else np.zeros_like(given)
    return BoxFaults(
        format=found,
        not_finite=clipped.not_finite & given,
        no_side=clipped.no_side & judged,
        outside=clipped.outside & judged,
        overshoot=clipped.overshoot & judged,
    )


def wrong_areas(areas: np.ndarray, boxes_xywh: np.ndarray, comparable: np.ndarray) -> np.ndarray:
    """Return (N,) bool: areas that are negative, infinite, or do not fit a `comparable` box.

    None is zero there, and none is larger than the box. The sides may have been rounded, or counted
    without the last pixel: each may be one off.
    """
    sides = boxes_xywh[:, 2:]
    with np.errstate(invalid="ignore", over="ignore"):
        too_large = areas > (sides + 1).prod(axis=1)
        too_small = (areas == 0) & (sides > 1).all(axis=1)
    return (areas < 0) | np.isinf(areas) | ((too_large | too_small) & comparable)


def first_twins(keys: np.ndarray, boxes_xywh: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return (N,) int64: the first of `rows` with the same keys (N, k) and box; -1 for itself.

    Rows that are not among `rows` have none.
    """
    twins: np.ndarray = np.full(len(keys), -1, dtype=np.int64)
    # + 0.0 makes -0.0 the same number as 0.0, bit by bit.
    words = np.concatenate(
        [keys[rows].view(np.uint64), (boxes_xywh[rows] + 0.0).view(np.uint64)], axis=1
    )
    digest = np.zeros(len(rows), dtype=np.uint64)
    for column in words.T:
        digest = (digest ^ column) * np.uint64(0x9E3779B97F4A7C15)
        digest ^= digest >> np.uint64(29)
    order = np.argsort(digest, kind="stable")
    same = np.flatnonzero(digest[order][1:] == digest[order][:-1])
    candidates = np.unique(order[np.concatenate([same, same + 1])])
    if len(candidates):
        # The digest may be the same by chance; the words are not.
        _, first, group = np.unique(
            words[candidates], axis=0, return_index=True, return_inverse=True
        )
        source = candidates[first[group.reshape(-1)]]
        later = source != candidates
        twins[rows[candidates[later]]] = rows[source[later]]
    return twins
