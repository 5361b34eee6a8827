"""Drawings of examples: a picture with its objects and detections, or a part of it with one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from detr_kit.data.box_faults import clip_boxes
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.analysis import Analysis
from detr_kit.evaluation.error_kinds import KINDS
from detr_kit.evaluation.examples import (
    IGNORED,
    RIGHT,
    ImageExample,
)
from detr_kit.evaluation.match_table import UNMATCHED
from detr_kit.evaluation.overlaps import paired_ious
from detr_kit.visualization.charts import child, markup
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
from detr_kit.visualization.texts import counted, decimal, grouped, readable

# Boxes that are drawn on one picture: mistakes first, then the best-scored, or the first of the
# file.
MAX_BOXES = 200
# Of so many boxes all are named, of more only the mistakes: all names would hide the picture.
NAMED_BOXES = 6
# Classes that a key of a picture holds, those of most boxes.
_KEYS = 10
# Longer side of a crop, in pixels of its JPEG, and the least that it shows of a picture.
CROP_SIDE = 160
_LEAST_CROP = 48
_WRONG = "box wrong"
_STATES = {RIGHT: "right", IGNORED: "not counted"}
# Classes of `templates/page.html`: dashes tell what colours, which are those of categories, do not.
_LOOKS = {
    "right": "box",
    "found": "box",
    "wrong": _WRONG,
    "not found": _WRONG,
    "not counted": "box ignored",
}


@dataclass(frozen=True)
class Key:
    """A class and the colour of its boxes, as #rrggbb."""

    name: str
    color: str


@dataclass(frozen=True)
class ComparedPicture:
    """A picture with its objects, the same with what was found, and a summary in words.

    The drawings are empty, and there are no keys, where pictures cannot be shown. The notes say how
    many boxes are drawn where these are not all.
    """

    name: str
    summary: str
    keys: tuple[Key, ...] = ()
    truth_drawing: str = ""
    found_drawing: str = ""
    truth_note: str = ""
    found_note: str = ""


@dataclass(frozen=True)
class Crop:
    """A part of the picture `name`, and in words what is wrong, of which class, and about what.

    `color`, as #rrggbb, is that of the box; it and the drawing are empty where there is none.
    """

    name: str
    badge: str
    text: str
    about: str
    drawing: str = ""
    color: str = ""


@dataclass(frozen=True)
class _Boxes:
    """Boxes_xywh (n, 4) of a picture with the category, the look and the texts of each."""

    boxes_xywh: np.ndarray
    category_ids: Sequence[int]
    looks: Sequence[str]
    names: Sequence[str]
    tooltips: Sequence[str]


class Album:
    """Draws examples of an evaluation, each after `can_show` has read its picture.

    Without a folder, examples are told in words only. JPEGs have about `max_bytes`, those of crops
    about `max_crop_bytes`. `skipped` names the pictures that could not be read, with the reason.
    """

    def __init__(
        self, analysis: Analysis, folder: Path | None, max_bytes: int, max_crop_bytes: int
    ) -> None:
        table = analysis.evaluation.table
        self.truth, self.found = table.truth, table.found
        self.object_ignored = table.at(0).object_ignored
        self.has_classes = not table.options.class_agnostic
        self.folder = folder
        self.max_bytes, self.max_crop_bytes = max_bytes, max_crop_bytes
        self.skipped: dict[str, str] = {}
        self._number = 0
        self._row = -1
        self._picture = np.empty((0, 0, 3), dtype=np.uint8)

    def can_show(self, image_row: int) -> bool:
        """Whether the picture can be read, which is noted where not; without a folder, always."""
        name = self._name(image_row)
        if self.folder is None or image_row == self._row:
            return True
        if name in self.skipped:
            return False
        try:
            size_hw = self.truth.sizes_hw[image_row]
            self._picture = read_picture(self.folder, self.truth.file_names[image_row], size_hw)
        except DetrKitError as error:
            self.skipped[name] = str(error)
            return False
        self._row = image_row
        return True

    def compared(self, image: ImageExample) -> ComparedPicture:
        """Return a picture twice, with its objects and with what was found."""
        name, summary = self._name(image.image_row), _summary(image)
        if self.folder is None:
            return ComparedPicture(name, summary)
        self._number += 1
        anchor = f"picture-{self._number}"
        height, width = self._picture.shape[:2]
        scale = LONG_SIDE / max(height, width)
        size_wh = (max(1.0, width * scale), max(1.0, height * scale))
        truth_drawing = picture_drawing(f"{name}: labelled objects", size_wh)
        draw_picture(truth_drawing, small_jpeg(self._picture, self.max_bytes), size_wh, id=anchor)
        objects, detections = self._objects(image), self._detections(image)
        truth_note = self._draw(truth_drawing, objects, (0, 0), (height, width), scale)
        found_drawing = picture_drawing(f"{name}: detections", size_wh)
        # The same JPEG again, without its bytes.
        child(found_drawing, "use", href=f"#{anchor}")
        found_note = self._draw(found_drawing, detections, (0, 0), (height, width), scale)
        keys = self._keys([*objects.category_ids, *detections.category_ids])
        drawings = markup(truth_drawing), markup(found_drawing)
        return ComparedPicture(name, summary, keys, *drawings, truth_note, found_note)

    def false_crop(self, row: int, kind: int, partner: int) -> Crop:
        """Return a wrong detection with the object that it is about, if any."""
        column = self.found.class_columns[row]
        text = f"{self._class(column)} {decimal(self.found.scores[row], 2)}".lstrip()
        about = self._about(row, KINDS[kind], partner)
        boxes_xywh = [self.found.boxes_xywh[row]]
        categories, tooltips = [self._category(column)], [text]
        if partner != UNMATCHED:
            boxes_xywh.append(self.truth.boxes_xywh[partner])
            categories.append(self._category(self.truth.class_columns[partner]))
            tooltips.append(about)
        looks = [_WRONG, "box"][: len(tooltips)]
        boxes = _Boxes(np.stack(boxes_xywh), categories, looks, [], tooltips)
        return self._crop(self.found.image_rows[row], boxes, KINDS[kind], text, about)

    def missed_crop(self, row: int, below: int) -> Crop:
        """Return an object that was not found, or with too low a score."""
        box_xywh = self.truth.boxes_xywh[row]
        column = self.truth.class_columns[row]
        text = self._class(column)
        boxes = _Boxes(box_xywh[None], [self._category(column)], [_WRONG], [], [text])
        badge = "not found"
        if below != UNMATCHED:
            badge = f"score too low: {decimal(self.found.scores[below], 2)}"
        about = f"{box_xywh[2]:.0f} x {box_xywh[3]:.0f} px"
        return self._crop(self.truth.image_rows[row], boxes, badge, text, about)

    def _crop(self, image_row: int, boxes: _Boxes, badge: str, text: str, about: str) -> Crop:
        """Draw what is around the first of the boxes."""
        name = self._name(image_row)
        if self.folder is None:
            return Crop(name, badge, text, about)
        x0, y0, x1, y1 = _window(boxes.boxes_xywh[0], self._picture.shape)
        size_hw = (y1 - y0, x1 - x0)
        scale = CROP_SIDE / max(size_hw)
        size_wh = (max(1.0, size_hw[1] * scale), max(1.0, size_hw[0] * scale))
        drawing = picture_drawing(f"{name}: {badge}, {text}, {about}", size_wh)
        jpeg = small_jpeg(self._picture[y0:y1, x0:x1], self.max_crop_bytes, CROP_SIDE)
        draw_picture(drawing, jpeg, size_wh)
        self._draw(drawing, boxes, (x0, y0), size_hw, scale)
        color = color_of(boxes.category_ids[0])
        return Crop(name, badge, text, about, markup(drawing), color)

    def _draw(
        self,
        drawing: Element,
        boxes: _Boxes,
        corner_xy: tuple[int, int],
        size_hw: tuple[int, int],
        scale: float,
    ) -> str:
        """Draw the boxes that reach into the part of a picture at `corner_xy`.

        Returns a note of how many these are, empty where all are.
        """
        boxes_xywh = boxes.boxes_xywh - np.array([*corner_xy, 0, 0])
        clipped = clip_boxes(boxes_xywh, np.tile(np.array(size_hw), (len(boxes_xywh), 1)))
        good = np.flatnonzero(~clipped.bad)
        is_right = np.array([look != _WRONG for look in boxes.looks], dtype=np.bool_)
        good = np.sort(good[np.argsort(is_right[good], kind="stable")][:MAX_BOXES])
        boxes_xyxy = clipped.boxes_xyxy[good] * scale
        # The best-scored one is on top.
        for place, box_xyxy in reversed(list(zip(good.tolist(), boxes_xyxy, strict=True))):
            draw_outlines(
                drawing,
                box_xyxy[None],
                color=color_of(boxes.category_ids[place]),
                look=boxes.looks[place],
                tooltip=boxes.tooltips[place],
            )
        # Mistakes first: where names would overlap, the later one is left out.
        named = [place for place in good.tolist() if boxes.names and boxes.looks[place] == _WRONG]
        if boxes.names and len(good) <= NAMED_BOXES:
            named += [place for place in good.tolist() if place not in named]
        draw_names(
            drawing,
            boxes_xyxy[np.searchsorted(good, np.array(named, dtype=np.int64))],
            [boxes.names[place] for place in named],
            (size_hw[1] * scale, size_hw[0] * scale),
        )
        if len(good) == len(boxes_xywh):
            return ""
        return f": {grouped(len(good))} of {counted(len(boxes_xywh), 'box', 'boxes')} drawn"

    def _objects(self, image: ImageExample) -> _Boxes:
        """Return the labelled objects of a picture, those not found dashed."""
        rows = np.flatnonzero(self.truth.image_rows == image.image_row)
        missed = np.isin(rows, image.missed)
        ignored = self.object_ignored[rows]
        columns = self.truth.class_columns[rows].tolist()
        states = np.where(ignored, "not counted", np.where(missed, "not found", "found")).tolist()
        names = [self._class(column) for column in columns]
        return _Boxes(
            self.truth.boxes_xywh[rows],
            [self._category(column) for column in columns],
            [_LOOKS[state] for state in states],
            names,
            [f"{name} {state}" for name, state in zip(names, states, strict=True)],
        )

    def _detections(self, image: ImageExample) -> _Boxes:
        """Return what was found in a picture, the wrong ones dashed."""
        columns = self.found.class_columns[image.rows].tolist()
        names = [
            f"{self._class(column)} {decimal(score, 2)}".lstrip()
            for column, score in zip(columns, self.found.scores[image.rows].tolist(), strict=True)
        ]
        states = [_STATES.get(kind, "wrong") for kind in image.kinds.tolist()]
        kinds = [
            KINDS[kind] if state == "wrong" else state
            for kind, state in zip(image.kinds.tolist(), states, strict=True)
        ]
        return _Boxes(
            self.found.boxes_xywh[image.rows],
            [self._category(column) for column in columns],
            [_LOOKS[state] for state in states],
            names,
            [f"{name}: {kind}" for name, kind in zip(names, kinds, strict=True)],
        )

    def _about(self, row: int, kind: str, partner: int) -> str:
        """Say which object a wrong detection is about."""
        if partner == UNMATCHED:
            return "no object there"
        iou = paired_ious(
            self.found.boxes_xywh[[row]],
            self.truth.boxes_xywh[[partner]],
            self.truth.is_crowd[[partner]],
        )[0]
        name = self._class(self.truth.class_columns[partner]) or "object"
        if kind == "duplicate":
            return f"{name} was found already, IoU {iou:.2f}"
        return f"labelled {name}, IoU {iou:.2f}"

    def _name(self, image_row: int) -> str:
        name = self.truth.file_names[int(image_row)]
        return readable(name or f"image {self.truth.image_ids[image_row]}", 120)

    def _class(self, column: int) -> str:
        """Return the name of a class, nothing where classes do not matter."""
        return readable(self.truth.categories.names[column], 60) if self.has_classes else ""

    def _category(self, column: int) -> int:
        return self.truth.categories.ids[column]

    def _keys(self, category_ids: Sequence[int]) -> tuple[Key, ...]:
        """Return the classes of boxes, nothing where classes do not matter."""
        columns = {id_: column for column, id_ in enumerate(self.truth.categories.ids)}
        common = Counter(category_ids).most_common(_KEYS) if self.has_classes else []
        return tuple(Key(self._class(columns[id_]), color_of(id_)) for id_, _ in common)


def _summary(image: ImageExample) -> str:
    """Say how many are right, wrong by kinds, and not found."""
    counts = Counter(image.kinds.tolist())
    wrong = {KINDS[kind]: number for kind, number in sorted(counts.items()) if kind >= 0}
    kinds = ", ".join(f"{number} {kind}" for kind, number in wrong.items())
    parts = [
        f"{counts[RIGHT]} right",
        f"{sum(wrong.values())} wrong" + (f" ({kinds})" if kinds else ""),
    ]
    return ", ".join([*parts, f"{len(image.missed)} not found"])


def _window(box_xywh: np.ndarray, size_hw: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the corners of a square around a box, twice its longer side, inside the picture."""
    height, width = size_hw[:2]
    left, top = np.clip(box_xywh[:2], 0, (width - 1, height - 1))
    right, bottom = np.clip(box_xywh[:2] + box_xywh[2:], (left + 1, top + 1), (width, height))
    side = max(_LEAST_CROP, 2 * max(right - left, bottom - top))
    spans = []
    for start, end, length in ((left, right, width), (top, bottom, height)):
        size = round(min(side, length))
        first = round(min(max((start + end - size) / 2, 0), length - size))
        spans.append((first, first + size))
    (x0, x1), (y0, y1) = spans
    return x0, y0, x1, y1
