"""What is wrong with the records of a COCO file, as columns: for a report and for a repair."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from detr_kit.data.box_faults import clip_boxes, pass_by_far
from detr_kit.data.checks.box_format import BoxFormat, borders_hw, find_format
from detr_kit.data.checks.image_formats import OddImages, find_odd_images
from detr_kit.data.coco_file import CocoColumns
from detr_kit.data.names import stays_inside

# Names that surely stay in their folder; the others, which are few, are looked at by parts.
_PLAIN_NAME = re.compile(r"[^./\\:\0][^/\\:\0]*(/[^./\\:\0][^/\\:\0]*)*")


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
    `odd` are boxes of images in `odd_images`. `swapped` are boxes that pass the border of images
    whose boxes would all fit, were width and height swapped. `mostly_outside` are the overshooting
    ones of which less than half is in the image.
    """

    format: BoxFormat
    odd_images: OddImages
    odd: np.ndarray
    not_finite: np.ndarray
    no_side: np.ndarray
    outside: np.ndarray
    overshoot: np.ndarray
    swapped: np.ndarray
    mostly_outside: np.ndarray

    @property
    def bad(self) -> np.ndarray:
        """Where nothing of the box can be used."""
        return self.not_finite | self.no_side | self.outside

    @property
    def num_passing(self) -> int:
        return int((self.overshoot | self.outside).sum())

    @property
    def many_pass(self) -> bool:
        """Whether so many boxes pass the border that they may all be something else."""
        return len(self.odd) >= 20 and self.num_passing > 0.2 * len(self.odd)

    @property
    def in_format(self) -> np.ndarray:
        """Where the box is (x, y, w, h) in pixels, as far as can be told."""
        return ~self.odd if self.format == "xywh" else np.zeros_like(self.odd)


@dataclass(frozen=True)
class Boxes:
    """The boxes of a file with all that is needed to judge them.

    `xywh` (N, 4) and `areas` (N,) are as in the file, `sizes_hw` (N, 2) are of their images, 0
    where a side is not known, `image_rows` (N,) are -1 where there is no image. `given` (N,) bool
    says which annotations have a box. Only those of a `known` image and category tell what the
    boxes of the file are.
    """

    xywh: np.ndarray
    areas: np.ndarray
    sizes_hw: np.ndarray
    image_rows: np.ndarray
    given: np.ndarray
    known: np.ndarray


def judge_boxes(boxes: Boxes) -> BoxFaults:
    """Judge the boxes of a file: its format first, then that of single images, then the rest."""
    clipped = clip_boxes(boxes.xywh, borders_hw(boxes.sizes_hw))
    usable = boxes.given & boxes.known & ~clipped.not_finite & ~clipped.no_side
    found = find_format(boxes.xywh[usable], boxes.sizes_hw[usable], clipped.outside[usable])
    usable &= boxes.image_rows >= 0
    odd_images = find_odd_images(
        boxes.xywh[usable],
        boxes.areas[usable],
        boxes.sizes_hw[usable],
        boxes.image_rows[usable],
        found,
    )
    odd = odd_images.among(boxes.image_rows)
    judged = boxes.given & ~odd if found == "xywh" else np.zeros_like(boxes.given)
    overshoot = clipped.overshoot & judged
    passing = (clipped.outside & judged) | overshoot
    return BoxFaults(
        format=found,
        odd_images=odd_images,
        odd=odd,
        not_finite=clipped.not_finite & boxes.given,
        no_side=clipped.no_side & judged,
        outside=clipped.outside & judged,
        overshoot=overshoot,
        swapped=passing & _fit_swapped(boxes, usable & judged),
        mostly_outside=overshoot & mostly_outside(boxes.xywh, clipped.boxes_xyxy),
    )


def mostly_outside(boxes_xywh: np.ndarray, inside_xyxy: np.ndarray) -> np.ndarray:
    """Return (N,) bool: less than half of a box (N, 4) is what was left of it by clipping."""
    with np.errstate(invalid="ignore", over="ignore"):
        shares = (inside_xyxy[:, 2:] - inside_xyxy[:, :2]) / boxes_xywh[:, 2:]
        return np.asarray(shares.prod(axis=1) < 0.5)


def _fit_swapped(boxes: Boxes, usable: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the image's boxes pass its border by far, and none does if it is turned."""
    rows = np.flatnonzero(usable & (boxes.sizes_hw > 0).all(axis=1))
    xywh, sizes_hw, image_rows = boxes.xywh[rows], boxes.sizes_hw[rows], boxes.image_rows[rows]
    far = pass_by_far(xywh, sizes_hw)
    fits = fit_into(xywh, sizes_hw[:, ::-1])
    turned = np.setdiff1d(image_rows[far], image_rows[~fits])
    return np.isin(boxes.image_rows, turned)


def fit_into(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the boxes are in images of sizes_hw (N, 2), but for one pixel."""
    with np.errstate(over="ignore"):
        low, high = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    return np.asarray(((low >= -1) & (high <= sizes_hw[:, ::-1] + 1)).all(axis=1))


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


def category_shift(columns: CocoColumns) -> str:
    """Say so where all ids that are used are one off from those that are listed, else ""."""
    used, listed = np.unique(columns.category_id_of), np.unique(columns.category_ids)
    if not len(used) or not len(listed) or np.isin(used, listed).all():
        return ""
    low, high = int(listed[0]), int(listed[-1])
    if high - low + 1 != len(listed):
        return ""
    first, last = int(used[0]), int(used[-1])
    up, down = last == high + 1 and first > low, first == low - 1 and last < high
    if not (up or down):
        return ""
    return f"{_span(first, last)} used, {_span(low, high)} listed: shifted by one?"


def _span(first: int, last: int) -> str:
    return f"id {first} is" if first == last else f"ids {first}-{last} are"
