"""COCO files cut and joined: splits, subsets by class, merges. Records keep whatever they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from detr_kit.data.conversions.reports import FileReport
from detr_kit.data.conversions.stratification import part_sizes, stratify
from detr_kit.errors import DetrKitError

# Fractions such as 0.33, 0.33 and 0.33 are meant to be all.
_SUM_TOLERANCE = 0.011


def split(
    annotations: str | Path, outs: Mapping[str | Path, float], *, seed: int = 0
) -> tuple[FileReport, ...]:
    """Deal out the pictures of a COCO file to several, with about the same share of each class.

    `outs` gives every file to write its fraction of the pictures; they sum to 1. The numbers of
    pictures are exact to one, see `part_sizes`; for the shares see `stratify`, crowd regions do
    not count. All categories and further keys go to every file. The same seed gives the same files.

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
    parts = stratify(_classes_of_images(document), fractions, seed=seed)
    contents = {
        path: _content(document, parts == part, parts[document.image_rows] == part)
        for part, path in enumerate(paths)
    }
    write_documents(contents)
    return tuple(_report(path, content) for path, content in contents.items())


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

    Pictures without one of the classes are left out unless `keep_empty`. Raises DetrKitError for a
    class that is not there, with the nearest name.
    """
    out = Path(out)
    require_not_among([out], [Path(annotations)])
    if not classes:
        raise DetrKitError("a subset needs the name of a class")
    document = read_document(annotations)
    names = document.columns.category_names
    for name in classes:
        if name not in names:
            raise unknown_class(name, names, document.path)
    wanted = np.array([name in classes for name in names])
    kept = wanted[document.category_rows]
    images = np.full(len(document.records.images), keep_empty)
    images[document.image_rows[kept]] = True
    categories = picked(document.records.categories, wanted)
    content = {**_content(document, images, kept), "categories": categories}
    write_documents({out: content})
    return _report(out, content)


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
