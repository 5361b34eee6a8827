"""The objects found in one image, on numpy arrays, with their COCO form and a drawing."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detr_kit.errors import DetrKitError
from detr_kit.images import ImageInput, read_image

RGB = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Detections:
    """N objects of one image.

    `boxes_xyxy` is (N, 4) float32 in pixels of the original image, `scores` (N,) float32,
    `category_ids` (N,) int64 ids of the data set (not columns of the head), `names` N strings.
    Arrays are converted to these types. Raises DetrKitError where lengths differ, a number is not
    finite, or a box ends before it begins.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    names: list[str]

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes_xyxy, dtype=np.float32)
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        scores = np.asarray(self.scores, dtype=np.float32)
        category_ids = np.asarray(self.category_ids, dtype=np.int64)
        names = [str(name) for name in self.names]
        count = len(boxes)
        if (
            boxes.shape != (count, 4)
            or scores.shape != (count,)
            or category_ids.shape != (count,)
            or len(names) != count
        ):
            raise DetrKitError(
                "detections: expected boxes (N, 4), scores (N,), category_ids (N,) and N names, "
                f"got {boxes.shape}, {scores.shape}, {category_ids.shape} and {len(names)}"
            )
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise DetrKitError("detections: a box or a score is not finite")
        backwards = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
        if len(backwards):
            row = int(backwards[0])
            raise DetrKitError(
                f"detections: box {row} is {boxes[row].tolist()}, which is not (x0, y0, x1, y1) "
                "with x0 <= x1 and y0 <= y1"
            )
        for field, value in (
            ("boxes_xyxy", boxes),
            ("scores", scores),
            ("category_ids", category_ids),
            ("names", names),
        ):
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: np.ndarray | Sequence[int]) -> Detections:
        """Return the rows that an index array or a (N,) bool mask picks, in that order."""
        picked = np.arange(len(self))[np.asarray(rows, dtype=None if len(rows) else np.int64)]
        return Detections(
            self.boxes_xyxy[picked],
            self.scores[picked],
            self.category_ids[picked],
            [self.names[row] for row in picked],
        )

    def above(self, threshold: float) -> Detections:
        """Return the detections with a score of at least `threshold`."""
        return self.select(self.scores >= threshold)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return COCO result dicts: xywh pixels, plain numbers, ready for json.

        Width and height are taken in float64, so that x + w gives back the box's own corner.
        """
        boxes = self.boxes_xyxy.astype(np.float64)
        boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": box_xywh, "score": score}
            for category_id, box_xywh, score in zip(
                self.category_ids.tolist(), boxes_xywh, self.scores.tolist(), strict=True
            )
        ]

    def draw(self, image: ImageInput) -> Image.Image:
        """Return the picture with boxes, names and scores; the best-scored box is on top.

        Raises DetrKitError where the image cannot be read.
        """
        order = np.argsort(self.scores, kind="stable")
        texts = [f"{self.names[row]} {self.scores[row]:.2f}" for row in order]
        canvas = Image.fromarray(read_image(image))
        draw_boxes(canvas, self.boxes_xyxy[order], texts, self.category_ids[order].tolist())
        return canvas


def draw_boxes(
    canvas: Image.Image, boxes_xyxy: np.ndarray, texts: Sequence[str], category_ids: Sequence[int]
) -> None:
    """Draw boxes (n, 4) in pixels and what they are, in place; the last one is on top."""
    pen = ImageDraw.Draw(canvas)
    short_side = min(canvas.size)
    line = max(1, round(short_side / 250))
    font = ImageFont.load_default(size=max(10, round(short_side / 36)))
    right, bottom = canvas.width - 1, canvas.height - 1
    for corners, text, category_id in zip(boxes_xyxy, texts, category_ids, strict=True):
        box = corners.clip(0, (right, bottom, right, bottom)).tolist()
        color = category_color(category_id)
        pen.rectangle(box, outline=color, width=line)
        _draw_label(pen, text, (box[0], box[1]), color, font, canvas.size)


def category_color(category_id: int) -> RGB:
    """Return the category's RGB color, the same in every picture.

    Hues a golden section apart: any run of consecutive ids is spread over the color circle.
    """
    hue = category_id * 0.6180339887 % 1.0
    lightness = 0.45 + 0.15 * (category_id // 3 % 2)
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_label(
    pen: ImageDraw.ImageDraw,
    text: str,
    corner_xy: tuple[float, float],
    color: RGB,
    font: Any,
    picture_wh: tuple[int, int],
) -> None:
    """Write on a filled background above the corner, or below it where the picture ends."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    margin = max(1, round((bottom - top) / 6))
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = max(0, min(corner_xy[0], picture_wh[0] - width))
    y = corner_xy[1] - height
    if y < 0:
        y = max(0, min(corner_xy[1], picture_wh[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 128 else (255, 255, 255)
    pen.text((x + margin - left, y + margin - top), text, fill=ink, font=font)
