"""A few pictures of a data set with their boxes, as drawings that hold small JPEGs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from detr_kit.data.box_faults import clip_boxes
from detr_kit.data.coco_file import CocoColumns
from detr_kit.errors import DetrKitError
from detr_kit.visualization.charts import child, markup
from detr_kit.visualization.distributions import Distributions
from detr_kit.visualization.picture_drawings import (
    LONG_SIDE,
    color_of,
    draw_names,
    draw_outlines,
    draw_picture,
    picture_drawing,
    read_picture,
    small_jpeg,
)
from detr_kit.visualization.texts import counted, grouped, readable

# Categories that are listed under one picture, and those that have a colour in it.
MAX_LISTED = 6
MAX_COLORS = 24
# Boxes that are drawn on one picture, the largest ones.
MAX_BOXES = 1000
_OTHER_COLOR = "#808080"
# Files that are tried for each picture that shall be shown, where some cannot be read.
_TRIES = 3
# Radius of what points out a small box.
_RING = 14


@dataclass(frozen=True)
class ListedCategory:
    """A category under a picture: its name, the colour of its boxes as #rrggbb, how many."""

    name: str
    color: str
    count: int


@dataclass(frozen=True)
class SamplePicture:
    """A picture with its boxes as SVG, why it was chosen, and what is in it.

    `num_not_drawn` boxes are too many to be drawn.
    """

    name: str
    drawing: str
    reasons: tuple[str, ...]
    num_objects: int
    categories: tuple[ListedCategory, ...]
    num_more_categories: int
    num_not_drawn: int


@dataclass
class SamplePictures:
    """The pictures that could be shown, and of the others what was wrong with them."""

    pictures: list[SamplePicture] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def sample_pictures(
    columns: CocoColumns, numbers: Distributions, folder: Path, count: int, max_bytes: int
) -> SamplePictures:
    """Draw up to `count` pictures of the image folder, each with a JPEG of about `max_bytes`.

    They are the same at each call: the one with the most objects, the one with the smallest, one
    without objects, and others spread over the file. Files that cannot be read are skipped.
    """
    samples = SamplePictures()
    for tried, (row, reasons) in enumerate(_candidates(columns, numbers, count)):
        if len(samples.pictures) >= count or tried >= count * _TRIES:
            break
        try:
            picture = read_picture(folder, columns.file_names[row], columns.sizes_hw[row])
        except DetrKitError as error:
            samples.skipped.append(f"{columns.file_names[row] or '(no name)'}: {error}")
            continue
        samples.pictures.append(_drawn(columns, numbers, row, reasons, picture, max_bytes))
    return samples


def _candidates(
    columns: CocoColumns, numbers: Distributions, count: int
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield rows of images, the special ones first, and why each was chosen."""
    special: dict[int, list[str]] = {}
    of_image = numbers.objects_of_image
    if numbers.max_objects:
        special.setdefault(int(of_image.argmax()), []).append("most objects")
    if len(numbers.annotation_of_share):
        inside = numbers.annotation_of_share
        sides = numbers.sides[np.searchsorted(numbers.annotation_of_side, inside)]
        row = int(numbers.image_row[inside[sides.argmin()]])
        special.setdefault(row, []).append(f"smallest object: {sides.min():.3g} px")
    empty = np.flatnonzero((of_image == 0) & numbers.is_first)
    if len(empty):
        special.setdefault(int(empty[0]), []).append("no objects")
    yield from ((row, tuple(reasons)) for row, reasons in special.items())
    yield from ((row, ()) for row in _spread(len(of_image), count) if row not in special)


def _spread(length: int, count: int) -> list[int]:
    """Return rows from all over the file, then the ones between, for files that cannot be read."""
    rows: dict[int, None] = {}
    for part in range(_TRIES):
        fractions = (np.arange(count) + (part + 0.5) / _TRIES) / count
        rows.update(dict.fromkeys((fractions * length).astype(int).tolist()))
    return list(rows) if length else []


def _drawn(
    columns: CocoColumns,
    numbers: Distributions,
    row: int,
    reasons: tuple[str, ...],
    picture: np.ndarray,
    max_bytes: int,
) -> SamplePicture:
    scale = LONG_SIDE / max(picture.shape[:2])
    height, width = (max(1.0, side * scale) for side in picture.shape[:2])
    rows, boxes_xyxy = _usable_boxes(columns, numbers, row, picture.shape[:2])
    num_not_drawn = max(0, len(rows) - MAX_BOXES)
    rows, boxes_xyxy = rows[:MAX_BOXES], boxes_xyxy[:MAX_BOXES] * scale
    objects, category_ids = numbers.is_object[rows], columns.category_id_of[rows]
    num_objects = int(numbers.objects_of_image[row])
    name = columns.file_names[row]
    drawing = picture_drawing(f"{name}: {counted(num_objects, 'object')}", (width, height))
    draw_picture(drawing, small_jpeg(picture, max_bytes), (width, height))
    names = _name_of_category(columns, numbers)
    listed = _draw_boxes(drawing, boxes_xyxy, category_ids, objects, names)
    labels = [names.get(id_, "?") for id_ in category_ids[objects].tolist()]
    draw_names(drawing, boxes_xyxy[objects], labels, (width, height))
    if any(reason.startswith("smallest") for reason in reasons) and objects.any():
        _draw_ring(drawing, boxes_xyxy[objects])
    return SamplePicture(
        name,
        markup(drawing),
        reasons,
        num_objects,
        tuple(listed[:MAX_LISTED]),
        max(0, len(listed) - MAX_LISTED),
        num_not_drawn,
    )


def _usable_boxes(
    columns: CocoColumns, numbers: Distributions, row: int, size_hw: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the annotations (n,) of an image that reach into it and their boxes_xyxy (n, 4).

    The largest come first.
    """
    rows = np.flatnonzero(numbers.image_row == row)
    clipped = clip_boxes(columns.boxes_xywh[rows], np.tile(np.array(size_hw), (len(rows), 1)))
    good = np.flatnonzero(~clipped.bad)
    sides = clipped.boxes_xyxy[good, 2:] - clipped.boxes_xyxy[good, :2]
    good = good[np.argsort(-sides.prod(axis=1), kind="stable")]
    return rows[good], clipped.boxes_xyxy[good]


def _name_of_category(columns: CocoColumns, numbers: Distributions) -> dict[int, str]:
    return {
        int(columns.category_ids[row]): columns.category_names[row] for row in numbers.category_rows
    }


def _draw_boxes(
    drawing: ElementTree.Element,
    boxes_xyxy: np.ndarray,
    category_ids: np.ndarray,
    objects: np.ndarray,
    names: dict[int, str],
) -> list[ListedCategory]:
    """Draw each category's boxes as one path; return the categories, the most frequent first."""
    groups = []
    for category_id in np.unique(category_ids).tolist():
        name = readable(names.get(category_id, f"unknown category {category_id}"), 60)
        for single, shown in ((True, name), (False, f"{name}: crowd region")):
            chosen = (category_ids == category_id) & (objects == single)
            if chosen.any():
                category = ListedCategory(shown, color_of(category_id), int(chosen.sum()))
                groups.append((category, chosen, "box" if single else "box crowd"))
    groups.sort(key=lambda group: -group[0].count)
    if len(groups) > MAX_COLORS:
        others = np.any([chosen for _, chosen, _ in groups[MAX_COLORS:]], axis=0)
        other = ListedCategory("other categories", _OTHER_COLOR, int(others.sum()))
        _draw_category(drawing, boxes_xyxy[others], other, "box")
    for category, chosen, look in groups[:MAX_COLORS]:
        _draw_category(drawing, boxes_xyxy[chosen], category, look)
    return [category for category, _, _ in groups]


def _draw_category(
    drawing: ElementTree.Element, boxes_xyxy: np.ndarray, category: ListedCategory, look: str
) -> None:
    tooltip = f"{category.name} ({grouped(category.count)})"
    draw_outlines(drawing, boxes_xyxy, color=category.color, look=look, tooltip=tooltip)


def _draw_ring(drawing: ElementTree.Element, boxes_xyxy: np.ndarray) -> None:
    """Point out the smallest box where it is hard to see."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    smallest = int(sides.prod(axis=1).argmin())
    if sides[smallest].max() < 2 * _RING:
        x, y = (boxes_xyxy[smallest, :2] + sides[smallest] / 2).tolist()
        child(drawing, "circle", class_="ring", cx=x, cy=y, r=_RING)
