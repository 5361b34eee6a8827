"""Drawn scoring problems, full of what real files rarely have, and the verdict of pycocotools."""

from __future__ import annotations

import copy
import io
import json
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.evaluation.coco import Evaluation, evaluate_results, evaluation_of
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.results import Results

Rows = list[dict[str, Any]]
ROW = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "score": 0.01}


def coco_content(
    annotations: Rows | None = None,
    *,
    image_ids: tuple[int, ...] = (1,),
    category_ids: tuple[int, ...] = (1, 2),
) -> dict[str, Any]:
    """Return a file of 400x300 pictures; its one object, unless given, is what ROW finds."""
    if annotations is None:
        annotations = [{"id": 4, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50]}]
    return {
        "images": [
            {"id": id_, "file_name": f"{id_}.jpg", "width": 400, "height": 300} for id_ in image_ids
        ],
        "categories": [{"id": id_, "name": f"class {id_}"} for id_ in category_ids],
        "annotations": annotations,
    }


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def quiet_evaluation(
    results: Results, path: Path, options: ScoringOptions | None = None, **others: Any
) -> Evaluation:
    """Evaluate without the warnings of doubts, which drawn problems give cause for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DetrKitWarning)
        return evaluation_of(results, path, options=options, **others)


def told(results: Any, annotations: Path) -> str:
    """The one line that an error has."""
    with pytest.raises(DetrKitError) as caught:
        evaluate_results(results, annotations)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


@dataclass(frozen=True)
class Reference:
    """What COCOeval leaves: its 12 figures where it has them, and its arrays."""

    figures: list[float]
    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray


def by_pycocotools(
    content: dict[str, Any], rows: Rows, options: ScoringOptions | None = None
) -> Reference:
    """Score as the README of pycocotools does; of options, all are set by hand."""
    with redirect_stdout(io.StringIO()):
        truth = _indexed(_completed(content))
        # loadRes takes no empty list
        found = truth.loadRes(copy.deepcopy(rows)) if rows else _indexed({**content, **_NOTHING})
        scorer = COCOeval(truth, found, "bbox")
        if options is not None:
            _set(scorer.params, options)
        scorer.evaluate()
        scorer.accumulate()
        if options is None:
            scorer.summarize()
    arrays = (scorer.eval[name] for name in ("precision", "recall", "scores"))
    return Reference([float(value) for value in scorer.stats], *arrays)


_NOTHING: dict[str, Rows] = {"annotations": []}


def _completed(content: dict[str, Any]) -> dict[str, Any]:
    """Fill in what pycocotools needs; ids from 1, as it takes a match with id 0 for none."""
    annotations = [
        {"area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0, **a, "id": number}
        for number, a in enumerate(content["annotations"], start=1)
    ]
    return {**content, "annotations": annotations}


def _indexed(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _set(params: Any, options: ScoringOptions) -> None:
    params.iouThrs = np.array(options.iou_thresholds)
    params.maxDets = list(options.max_detections)
    params.areaRng = [list(bounds) for bounds in options.areas.values()]
    params.areaRngLbl = list(options.areas)
    params.useCats = int(not options.class_agnostic)


@dataclass(frozen=True)
class Problem:
    content: dict[str, Any]
    rows: Rows
    options: ScoringOptions = field(default_factory=ScoringOptions)


IMAGE_IDS = st.sampled_from([0, 1, 2, 9, 31, -1, -70, 581_929, 2**31, 2**53 + 1, 2**63 - 1])
CATEGORY_IDS = st.sampled_from([0, 1, 2, 3, 44, 90, -5, 2**40])
# Few values, so that boxes touch, repeat and overlap equally; the fractions have no exact float.
_PLACES = st.sampled_from([0, 0.1, 1, 8, 16, 31.7, 40, 64, -3, -20.5, 300])
_SIDES = st.sampled_from([0, 0.3, 4, 8, 16, 31.9, 32, 33, 64, 95.9, 96, 128, 144, 400])
_HUGE = st.sampled_from([[-1e5, -1e5, 3e5, 3e5], [0, 0, 1e5, 1e5], [5, 5, 1e6, 1e6]])
_AREAS = st.sampled_from([0, 0.5, 1023.99, 1024, 1024.01, 5000, 9216, 9216.01, 1e10, 1.5e10])
_SCORES = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.5000001, 0.9, 1.0, -0.5, 7.0])
_SHIFTS = st.sampled_from([0, 0, 0, 1, -1, 2.5, 6])


@st.composite
def _boxes(draw: st.DrawFn) -> list[float]:
    if draw(st.integers(0, 15)) == 0:
        return draw(_HUGE)
    return [draw(_PLACES), draw(_PLACES), draw(_SIDES), draw(_SIDES)]


@st.composite
def _annotation(
    draw: st.DrawFn, images: list[int], categories: list[int], boxes: list[list[float]]
) -> dict[str, Any]:
    annotation: dict[str, Any] = {
        "image_id": draw(st.sampled_from(images)),
        "category_id": draw(st.sampled_from(categories)),
        "bbox": draw(st.sampled_from(boxes)),
    }
    kind = draw(st.integers(0, 5))
    if kind < 2:
        annotation["iscrowd"] = kind
    if kind == 1:
        outline = {"size": [300, 400], "counts": [5000, 70, 114_930]}
        annotation["segmentation"] = draw(
            st.sampled_from([outline, {"size": [300, 400], "counts": "PPY34N2N2N2"}])
        )
    if kind in (0, 2):
        annotation["segmentation"] = [[0, 0, 9.5, 0, 9.5, 7]]
    if draw(st.booleans()):
        annotation["area"] = draw(_AREAS)
    return annotation


@st.composite
def _row(
    draw: st.DrawFn, images: list[int], categories: list[int], boxes: list[list[float]]
) -> dict[str, Any]:
    return _scored(
        draw,
        image_id=draw(st.sampled_from(images)),
        category_id=draw(st.sampled_from(categories)),
        bbox=draw(st.sampled_from(boxes)),
    )


@st.composite
def _row_near(draw: st.DrawFn, annotations: Rows) -> dict[str, Any]:
    annotation = draw(st.sampled_from(annotations))
    return _scored(draw, **{key: annotation[key] for key in ("image_id", "category_id", "bbox")})


def _scored(draw: st.DrawFn, **row: Any) -> dict[str, Any]:
    x, y, w, h = row["bbox"]
    shifted = [x + draw(_SHIFTS), y + draw(_SHIFTS), w, h + draw(_SHIFTS)]
    return {**row, "bbox": shifted, "score": draw(_SCORES)}


def _many(row: dict[str, Any], count: int, seed: int) -> Rows:
    """More detections of a class in a picture than are scored, near a box, some scores equal."""
    rng = np.random.default_rng(seed)
    shaken = np.array(row["bbox"]) + rng.normal(0, 2, (count, 4)).round(1)
    shaken[:, 2:] = np.abs(shaken[:, 2:])
    scores = rng.integers(0, 40, count) / 40
    return [
        {**row, "bbox": box, "score": score}
        for box, score in zip(shaken.tolist(), scores.tolist(), strict=True)
    ]


def _with_ids(draw: st.DrawFn, annotations: Rows) -> Rows:
    """Number from 1, from 0, from below 0 or downwards, or not at all."""
    first, step = draw(st.sampled_from([(1, 1), (0, 1), (-3, 1), (2**62, -7)]))
    if draw(st.integers(0, 3)) == 0:
        return annotations
    return [{**a, "id": first + step * number} for number, a in enumerate(annotations)]


@st.composite
def _listed(draw: st.DrawFn, rows: st.SearchStrategy[dict[str, Any]]) -> Rows:
    """Draw a list: lengths of 0 and 1, which are drawn often by themselves, make dull problems."""
    least = draw(st.sampled_from([0, 2, 5, 5]))
    return draw(st.lists(rows, min_size=least, max_size=12))


@st.composite
def problems(draw: st.DrawFn, options: st.SearchStrategy[ScoringOptions] | None = None) -> Problem:
    """Draw a file and results; with COCO's options unless others are drawn."""
    images = draw(st.lists(IMAGE_IDS, min_size=1, max_size=4, unique=True))
    categories = draw(st.lists(CATEGORY_IDS, min_size=1, max_size=3, unique=True))
    boxes = draw(st.lists(_boxes(), min_size=1, max_size=6))
    drawn = (images, categories, boxes)
    annotations = _with_ids(draw, draw(_listed(_annotation(*drawn))))
    rows = draw(_listed(_row(*drawn)))
    if annotations:
        rows += draw(_listed(_row_near(annotations)))
    if rows and draw(st.integers(0, 4)) == 0:
        rows += _many(rows[0], draw(st.integers(95, 140)), draw(st.integers(0, 9)))
    content = {
        "images": [{"id": id_} for id_ in images],
        "categories": [{"id": id_, "name": f"class {id_}"} for id_ in categories],
        "annotations": annotations,
    }
    return Problem(content, rows, ScoringOptions() if options is None else draw(options))


@st.composite
def other_options(draw: st.DrawFn) -> ScoringOptions:
    """Draw options that are not COCO's."""
    thresholds = st.sampled_from([0.01, 0.1, 0.3, 1 / 3, 0.5, 0.75, 0.9, 0.95, 1.0])
    areas = {
        "tiny": (0.0, 256.0),
        "one": (1024.0, 1024.5),
        "middle": (1023.99, 9216.0),
        "vast": (9216.0, 1e12),
    }
    names = draw(st.lists(st.sampled_from(list(areas)), max_size=3, unique=True))
    return ScoringOptions(
        iou_thresholds=draw(st.lists(thresholds, min_size=1, max_size=4, unique=True)),
        areas={name: areas[name] for name in names},
        max_detections=draw(
            st.lists(st.sampled_from([1, 2, 3, 10, 100, 120, 300]), min_size=1, max_size=3)
        ),
        class_agnostic=draw(st.booleans()),
    )
