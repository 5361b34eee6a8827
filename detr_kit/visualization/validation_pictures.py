"""A few validation pictures, to watch a detector learn: its objects beside what it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from detr_kit.drawing import draw_boxes
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.visualization.picture_drawings import read_picture

# Longer side of one of the two drawings of a picture.
_LONG_SIDE = 400
_GAP = 8
# A detection is shown from this score on.
_SHOWN_FROM = 0.3
_MOST_SHOWN = 50


def draw_validation(
    found: ResultColumns, truth: GroundTruth, images: Path, *, count: int = 4
) -> list[Image.Image]:
    """Draw the first `count` pictures that have objects, by id: the objects left, `found` right.

    Detections are shown from a score of 0.3 on, but the best of them in any case, as many as there
    are objects: a detector that has learned little is sure of nothing. Pictures that cannot be
    read are left out.
    """
    drawings = []
    for row in np.unique(truth.image_rows)[:count].tolist():
        try:
            pixels = read_picture(images, truth.file_names[row], truth.sizes_hw[row])
        except DetrKitError:  # whoever evaluates has told of it
            continue
        picture = Image.fromarray(pixels)
        picture.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.BILINEAR)
        scale = picture.width / pixels.shape[1]
        own = np.flatnonzero(truth.image_rows == row)
        objects = picture.copy()
        columns = truth.class_columns[own].tolist()
        _draw(objects, truth.boxes_xywh[own] * scale, columns, [""] * len(own), truth)
        _draw(picture, *_detections(row, len(own), scale, found, truth), truth)
        drawings.append(_side_by_side(objects, picture))
    return drawings


def _detections(
    row: int, num_objects: int, scale: float, found: ResultColumns, truth: GroundTruth
) -> tuple[np.ndarray, list[int], list[str]]:
    """Return boxes (n, 4), class columns and scores of what is shown, the best one last."""
    own = np.flatnonzero(found.image_ids == truth.image_ids[row])
    own = own[np.argsort(-found.scores[own], kind="stable")]
    num_shown = max(num_objects, int((found.scores[own] >= _SHOWN_FROM).sum()))
    own = own[: min(num_shown, _MOST_SHOWN)][::-1]
    columns = [truth.categories.ids.index(id_) for id_ in found.category_ids[own].tolist()]
    scores = [f"{score:.2f}" for score in found.scores[own].tolist()]
    return found.boxes_xywh[own] * scale, columns, scores


def _draw(
    canvas: Image.Image,
    boxes_xywh: np.ndarray,
    columns: list[int],
    scores: list[str],
    truth: GroundTruth,
) -> None:
    names, ids = truth.categories.names, truth.categories.ids
    draw_boxes(
        canvas,
        np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1),
        [names[column] for column in columns],
        [ids[column] for column in columns],
        details=scores,
    )


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (left.width + _GAP + right.width, left.height), (255, 255, 255))
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + _GAP, 0))
    return sheet
