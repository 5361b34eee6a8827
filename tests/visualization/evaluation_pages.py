"""Reports of evaluations, written for tests and read back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.errors import DetrKitWarning
from detr_kit.evaluation.analysis import Analysis, analyse
from detr_kit.evaluation.coco import evaluation_of
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.visualization.evaluation_report import write_evaluation_report
from tests.visualization.report_pages import Page, annotation, coco, image

Box = Sequence[float]
# Picture, class, box and for detections the score.
Objects = Sequence[tuple[int, int, Box]]
Found = Sequence[tuple[int, int, Box, float]]


def analysis_of(
    path: Path,
    objects: Objects,
    found: Found,
    names: Sequence[str] = ("cat", "dog", "cow"),
    *,
    num_images: int = 3,
    size_wh: tuple[int, int] = (64, 48),
    options: ScoringOptions | None = None,
) -> Analysis:
    """Analyse detections of pictures 1 to n, called 1.png and so on, with a file at `path`."""
    coco(
        path,
        [image(id_, f"{id_}.png", *size_wh) for id_ in range(1, num_images + 1)],
        [annotation(id_, class_, list(box)) for id_, class_, box in objects],
        names,
    )
    return analysis_of_file(path, found, options)


def analysis_of_file(path: Path, found: Found, options: ScoringOptions | None = None) -> Analysis:
    rows = [
        {"image_id": id_, "category_id": 3 * class_, "bbox": list(box), "score": score}
        for id_, class_, box, score in found
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DetrKitWarning)
        return analyse(evaluation_of(rows, path, options=options))


def drawn_analysis(
    path: Path, names: Sequence[str] = ("cat", "dog", "cow"), *, seed: int = 0, **options: Any
) -> Analysis:
    """Analyse a drawn problem with mistakes of all kinds, in 20 pictures of 640x480."""
    draw = np.random.default_rng(seed)
    num_classes, count = len(names), 40 + 4 * len(names)
    places = draw.uniform(0, 300, (count, 2))
    boxes = np.concatenate([places, draw.uniform(10, 150, (count, 2))], axis=1)
    ids, classes = draw.integers(1, 21, count), draw.integers(0, num_classes, count)
    objects = list(zip(ids.tolist(), classes.tolist(), boxes.tolist(), strict=True))
    moved = boxes + draw.normal(0, 1, boxes.shape) * draw.choice([1, 8, 25], (count, 1))
    moved[:, 2:] = np.maximum(moved[:, 2:], 5)
    seen_as = np.where(draw.random(count) < 0.25, draw.integers(0, num_classes, count), classes)
    scores = draw.uniform(0.05, 1, count)
    found = list(zip(ids.tolist(), seen_as.tolist(), moved.tolist(), scores.tolist(), strict=True))
    missed = count // 8
    again = [(id_, class_, box, score / 2) for id_, class_, box, score in found[::6]]
    nothing = [(id_, 0, [400.0, 350.0, 60.0, 60.0], 0.3) for id_ in range(1, 8)]
    given = [*found[missed:], *again, *nothing]
    return analysis_of(path, objects, given, names, num_images=20, size_wh=(640, 480), **options)


def write(analysis: Analysis, out: Path, **options: Any) -> Page:
    write_evaluation_report(analysis, out, **({"title": "trial"} | options))
    return Page(out.read_text(encoding="utf-8"))


def texts_of(page: Page, label: str) -> list[str]:
    """Return all that is written in a drawing."""
    return [part.text or "" for part in page.drawing(label).iter("text")]
