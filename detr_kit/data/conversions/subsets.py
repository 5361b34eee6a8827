"""COCO files cut and joined: splits, subsets by class, merges. Records keep whatever they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.data.conversions.documents import (
    CocoDocument,
    picked,
    read_document,
    require_not_among,
    unknown_class,
    write_documents,
)
from detr_kit.data.conversions.reports import FileReport, PartReport
from detr_kit.data.conversions.stratification import part_sizes, stratify
from detr_kit.errors import DetrKitError

# Fractions such as 0.33, 0.33 and 0.33 are meant to be all.
_SUM_TOLERANCE = 0.011


def split(
    annotations: str | Path, outs: Mapping[str | Path, float], *, seed: int = 0
) -> tuple[PartReport, ...]:
    """Deal out the pictures of a COCO file to several, with about the same share of each class.

    `outs` gives every file to write its fraction of the pictures; they sum to 1. The numbers of
    pictures are exact to one, see `part_sizes`; for the shares see `stratify`, crowd regions do
    not count. All categories and further keys go to every file. The same seed gives the same files.
    The reports say which class is furthest from its share.

    Raises DetrKitError for fractions that are no parts of a whole, a file that would get no
    picture, and outs that are the input.
    """
    paths = [Path(out) for out in outs]
    require_not_among(paths, [Path(annotations)])
    fractions = _normalised(dict(zip(paths, outs.values(), strict=True)))
    if seed < 0:
        raise DetrKitError(f"seed={seed}: expected a whole number from 0 on")
    document = read_document(annotations)
    sizes = part_sizes(len(document.records.images), fractions)
    if 0 in sizes:
        raise DetrKitError(
            f"{paths[sizes.index(0)]}: no picture is left for it of the {sum(sizes)} in "
            f"{annotations}"
        )
    classes_of = _classes_of_images(document)
    parts = stratify(classes_of, fractions, seed=seed)
    contents = {
        path: _content(document, parts == part, parts[document.image_rows] == part)
        for part, path in enumerate(paths)
    }
    write_documents(contents)
    counts = _class_counts(document, classes_of, parts, len(paths))
    return tuple(
        _part_report(_report(path, content), fraction, document, counts, part)
        for part, ((path, content), fraction) in enumerate(
            zip(contents.items(), fractions, strict=True)
        )
    )


def _class_counts(
    document: CocoDocument, classes_of: Sequence[set[int]], parts: np.ndarray, num_parts: int
) -> np.ndarray:
    """Return how many pictures of each part have each class, (parts, classes)."""
    counts = np.zeros((num_parts, len(document.records.categories)), dtype=np.int64)
    for classes, part in zip(classes_of, parts.tolist(), strict=True):
        counts[part, list(classes)] += 1
    return counts


def _part_report(
    report: FileReport, fraction: float, document: CocoDocument, counts: np.ndarray, part: int
) -> PartReport:
    totals = counts.sum(axis=0)
    # Classes without a picture have no share to miss.
    off = np.where(totals > 0, np.abs(counts[part] / np.maximum(totals, 1) - fraction), -1)
    worst = int(off.argmax())
    return PartReport(
        **asdict(report),
        fraction=fraction,
        class_name=document.columns.category_names[worst] if totals.any() else None,
        num_class_images=int(counts[part, worst]),
        num_class_images_in_all=int(totals[worst]),
    )


def _normalised(fractions: Mapping[Path, float]) -> list[float]:
    for path, fraction in fractions.items():
        if not (math.isfinite(fraction) and fraction > 0):
            raise DetrKitError(f"{path}={fraction:g}: a fraction must be more than 0")
    total = math.fsum(fractions.values())
    if not fractions or abs(total - 1) > _SUM_TOLERANCE:
        raise DetrKitError(f"the fractions of a split must sum to 1, these sum to {total:g}")
    return [fraction / total for fraction in fractions.values()]


def _classes_of_images(document: CocoDocument) -> list[set[int]]:
    classes: list[set[int]] = [set() for _ in document.records.images]
    rows = document.image_rows[document.single].tolist()
    for row, category in zip(rows, document.category_rows[document.single].tolist(), strict=True):
        classes[row].add(category)
    return classes


def subset(
    annotations: str | Path,
    out: str | Path,
    classes: Sequence[str],
    *,
    keep_empty: bool = False,
) -> FileReport:
    """Write a COCO file of some classes; ids, of categories too, stay as they are.

    One of `classes` that is no name of a class is taken for several with commas between them.
    Pictures without one of the classes are left out unless `keep_empty`. Raises DetrKitError for a
    class that is not there, with the nearest name.
    """
    out = Path(out)
    require_not_among([out], [Path(annotations)])
    document = read_document(annotations)
    wanted = _wanted_categories(document, classes)
    kept = wanted[document.category_rows]
    images = np.full(len(document.records.images), keep_empty)
    images[document.image_rows[kept]] = True
    categories = picked(document.records.categories, wanted)
    content = {**_content(document, images, kept), "categories": categories}
    write_documents({out: content})
    return _report(out, content)


def _wanted_categories(document: CocoDocument, classes: Sequence[str]) -> np.ndarray:
    """Return which categories are named, (C,) bool."""
    names = document.columns.category_names
    wanted: set[str] = set()
    for text in classes:
        parts = [text] if text in names else [part.strip() for part in text.split(",")]
        wanted.update(filter(None, parts))
    if not wanted:
        raise DetrKitError("a subset needs the name of a class (--classes)")
    for name in sorted(wanted.difference(names)):
        raise unknown_class(name, names, document.path)
    return np.array([name in wanted for name in names])


def _content(document: CocoDocument, images: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """Return the keys of the file with the images (I,) bool and the annotations `kept` (N,)."""
    return {
        **document.content,
        "images": picked(document.records.images, images),
        "annotations": picked(document.records.annotations, kept),
        "categories": document.records.categories,
    }


def _report(out: Path, content: Mapping[str, Any]) -> FileReport:
    return FileReport(
        out, len(content["images"]), len(content["annotations"]), len(content["categories"])
    )
