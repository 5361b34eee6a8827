"""The objects found in one image, on numpy arrays, in the forms of other tools, and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detr_kit.categories import CategoryTable
from detr_kit.drawing import draw_boxes
from detr_kit.errors import DetrKitError
from detr_kit.images import ImageInput, read_image

if TYPE_CHECKING:
    import pandas
    import supervision


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
        """Return the detections with a score of at least `threshold`.

        `detr_kit.inference.thresholds.above` takes one for each category, too.
        """
        return self.select(self.scores >= threshold)

    @classmethod
    def from_coco(cls, rows: Iterable[Mapping[str, Any]], categories: CategoryTable) -> Detections:
        """Make detections of the COCO result dicts of one image, in their order.

        Raises DetrKitError that names the row: for a key that is missing or of another kind,
        a category that is not in the table, and rows of different images.
        """
        found = [_of_coco(row, place) for place, row in enumerate(rows)]
        names = {id_: categories.names[column] for id_, column in categories.column_of.items()}
        for place, (image_id, category_id, _, _) in enumerate(found):
            if image_id != found[0][0]:
                raise DetrKitError(
                    f"row {place}: of image {image_id!r}, but row 0 of image {found[0][0]!r}; "
                    "detections are of one image"
                )
            if category_id not in names:
                raise DetrKitError(f"row {place}: there is no category {category_id}")
        _, category_ids, boxes, scores = zip(*found, strict=True) if found else [()] * 4
        return cls(
            np.array(boxes),
            np.array(scores),
            np.array(category_ids),
            [names[id_] for id_ in category_ids],
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return COCO result dicts: xywh pixels, plain numbers, ready for json.

        Width and height are taken in float64, so that x + w gives back the box's own corner.
        `from_coco` makes the same detections of them again.
        """
        boxes = self.boxes_xyxy.astype(np.float64)
        boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": box_xywh, "score": score}
            for category_id, box_xywh, score in zip(
                self.category_ids.tolist(), boxes_xywh, self.scores.tolist(), strict=True
            )
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table of N rows: category_id, name, score, x0, y0, x1, y1 (pixels).

        Raises DetrKitError where pandas is not installed.
        """
        pandas = _needed("pandas", "to_pandas")
        columns = {
            "category_id": self.category_ids,
            "name": pandas.Series(self.names, dtype=str),  # text also where N is 0
            "score": self.scores,
        }
        corners = zip(("x0", "y0", "x1", "y1"), self.boxes_xyxy.T, strict=True)
        return pandas.DataFrame(columns | dict(corners), copy=True)

    def to_supervision(self) -> supervision.Detections:
        """Return what the supervision library takes: its class_id are our category ids.

        Names are in `data["class_name"]`. Raises DetrKitError where supervision is not installed.
        """
        return _needed("supervision", "to_supervision").Detections(
            xyxy=self.boxes_xyxy.copy(),
            confidence=self.scores.copy(),
            class_id=self.category_ids.copy(),
            data={"class_name": np.array(self.names, dtype=np.str_)},
        )

    def draw(
        self,
        image: ImageInput,
        notes: Sequence[str] | None = None,
        *,
        font: str | Path | None = None,
    ) -> Image.Image:
        """Return the picture with boxes, names and scores; the best-scored box is on top.

        `notes` are N texts that follow the scores, such as numbers of tracks. Boxes that are many
        or small get thin lines; labels go where they hide little, shrink to score and note where
        there is no room for the name, and are left out and counted where there is none at all.
        `font` is a TrueType file for names that DejaVu Sans has no letters for.

        Raises DetrKitError where the image or the font cannot be read, or the notes are not N.
        """
        if notes is not None and len(notes) != len(self):
            raise DetrKitError(f"notes: expected {len(self)}, one a detection, got {len(notes)}")
        order = np.argsort(self.scores, kind="stable").tolist()
        scores = [f"{score:.2f}" for score in self.scores.tolist()]
        canvas = Image.fromarray(read_image(image))
        draw_boxes(
            canvas,
            self.boxes_xyxy[order],
            [self.names[row] for row in order],
            self.category_ids[order].tolist(),
            details=[f"{scores[row]} {notes[row] if notes else ''}" for row in order],
            font=font,
        )
        return canvas


def _of_coco(
    row: Mapping[str, Any], place: int
) -> tuple[Any, int, tuple[float, float, float, float], float]:
    """Return image id, category id, box xyxy and score of a COCO result."""
    try:
        x, y, width, height = map(float, row["bbox"])
        category_id, score = index(row["category_id"]), float(row["score"])
        return row.get("image_id"), category_id, (x, y, x + width, y + height), score
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DetrKitError(
            f"row {place}: expected a COCO result with category_id, bbox and score, got {row!r}"
        ) from error


def _needed(library: str, method: str) -> Any:
    try:
        return import_module(library)
    except ImportError as error:
        raise DetrKitError(f"{method} needs {library}: pip install {library}") from error
