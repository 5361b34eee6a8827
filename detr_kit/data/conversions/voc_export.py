"""COCO files as Pascal VOC folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from detr_kit.data.conversions.class_names import read_lines
from detr_kit.data.conversions.exporting import (
    ExportInput,
    ImageObjects,
    export_folder,
    label_files,
    place_pictures,
    read_for_export,
    recover_export,
    require_same_names,
)
from detr_kit.data.conversions.reports import ExportReport
from detr_kit.data.conversions.voc import CLASSES, PICTURES
from detr_kit.data.conversions.voc_xml import FLAGS, VocObject, voc_text
from detr_kit.data.soundness import OnBadBox
from detr_kit.errors import DetrKitError


class _Flags(msgspec.Struct, gc=False):
    difficult: Any = None
    truncated: Any = None
    occluded: Any = None


def export_voc(
    annotations: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    copy: bool = False,
    split: str | None = None,
    on_bad_box: OnBadBox = "raise",
) -> ExportReport:
    """Write the VOC folder `out`, all of it or nothing.

    `Annotations/*.xml`, the list `ImageSets/Main/SPLIT.txt` (by default called like the json),
    classes.txt with the names in the order of their ids and, with `images`, the folder of the
    pictures, links to these in `JPEGImages/`, or copies with `copy=True`. Sub-folders are kept.
    Where `split` is given, `out` may be an export of other pictures with the same classes.

    Boxes are clipped to their pictures and rounded to whole pixels, at least one. Crowd regions are
    written as difficult objects, and left out where they have no box; `difficult`, `truncated` and
    `occluded` of the records are written. Polygons are left out.

    Raises DetrKitError where `out` holds something else, a picture is missing, a box is bad (see
    `load_annotations`), two pictures would have the same xml file, or a name does not fit in one.
    """
    annotations, out = Path(annotations), Path(out)
    if split is not None and (not split or Path(split).name != split):
        raise DetrKitError(f"split {split!r} (--split): expected a name without folders")
    given = read_for_export(annotations, on_bad_box)
    labels = label_files(given, lambda name: Path("Annotations", name).with_suffix(".xml"))
    names = given.document.table.names
    list_file = Path("ImageSets", "Main", f"{split or annotations.stem}.txt")
    recover_export(out)
    adding = split is not None and (out / CLASSES).is_file() and (out / "Annotations").is_dir()
    if adding:
        require_same_names(out / CLASSES, read_lines(out / CLASSES), names)
        _require_new(out, [list_file, *labels, *_placed_pictures(given)])
    with export_folder(out, adding=adding) as folder:
        for image, label in zip(given.images, labels, strict=True):
            (folder / label).parent.mkdir(parents=True, exist_ok=True)
            objects = _voc_objects(given, image)
            text = voc_text(Path(image.file_name).name, image.size_hw, objects)
            (folder / label).write_bytes(text)
        stems = [Path(image.file_name).with_suffix("").as_posix() for image in given.images]
        _write_lines(folder / list_file, stems)
        if not adding:
            _write_lines(folder / CLASSES, names)
        num_pictures = place_pictures(given, images, folder / PICTURES, copy=copy)
    single = given.document.single
    num_written = sum(int(image.iscrowd.sum()) for image in given.images)
    return ExportReport(
        out=out,
        num_images=len(labels),
        num_objects=sum(len(image.rows) for image in given.images),
        num_categories=len(names),
        num_crowd=int((~single).sum()) - num_written,
        num_clipped=given.num_clipped,
        num_skipped=given.num_skipped,
        num_pictures=num_pictures,
    )


def _placed_pictures(given: ExportInput) -> list[Path]:
    return [Path(PICTURES, image.file_name) for image in given.images]


def _require_new(out: Path, files: Iterable[Path]) -> None:
    for file in files:
        # A link to a picture that is gone is there as well.
        if os.path.lexists(out / file):
            raise DetrKitError(f"{out / file}: it is there already")


def _voc_objects(given: ExportInput, image: ImageObjects) -> tuple[VocObject, ...]:
    names = given.document.table.names
    records = given.document.records.annotations
    objects = []
    for row, label, box_xyxy, iscrowd in zip(
        image.rows, image.labels, image.boxes_xyxy, image.iscrowd, strict=True
    ):
        stated = msgspec.structs.asdict(msgspec.json.decode(records[row], type=_Flags))
        flags = {tag: int(bool(stated[tag])) for tag in FLAGS if stated[tag] is not None}
        if iscrowd:
            flags = {**flags, "difficult": 1}
        objects.append(VocObject(names[label], box_xyxy, flags))
    return tuple(objects)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
