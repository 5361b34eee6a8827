"""Labels of any known format, by its name or by what the folder looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from detr_kit.data.conversions.class_names import YAML_SUFFIXES, Names
from detr_kit.data.conversions.picture_files import files_below
from detr_kit.data.conversions.reports import ExportReport, ImportReport
from detr_kit.data.conversions.voc import import_voc
from detr_kit.data.conversions.voc_export import export_voc
from detr_kit.data.conversions.yolo import export_yolo, import_yolo
from detr_kit.data.conversions.yolo_layout import YAML_NAMES
from detr_kit.data.soundness import OnBadBox
from detr_kit.errors import DetrKitError

LabelFormat = Literal["yolo", "voc"]


def import_labels(
    source: str | Path,
    out: str | Path,
    *,
    label_format: LabelFormat | None = None,
    images: str | Path | None = None,
    names: Names | None = None,
    split: str | None = None,
    difficult_as_crowd: bool = True,
    on_bad_box: OnBadBox = "raise",
) -> ImportReport:
    """Write a COCO json of YOLO or VOC labels; see `import_yolo` and `import_voc`.

    Raises DetrKitError where the format is not given and cannot be told.
    """
    if (label_format or detect_format(source)) == "yolo":
        return import_yolo(
            source, out, images=images, names=names, split=split, on_bad_box=on_bad_box
        )
    return import_voc(
        source,
        out,
        images=images,
        names=names,
        split=split,
        difficult_as_crowd=difficult_as_crowd,
        on_bad_box=on_bad_box,
    )


def detect_format(source: str | Path) -> LabelFormat:
    """Return the format of a folder of labels or of a data.yaml."""
    source = Path(source)
    if source.suffix.lower() in YAML_SUFFIXES:
        return "yolo"
    if not source.is_dir():
        reason = (
            "expected a folder of labels or a data.yaml" if source.exists() else "no such folder"
        )
        raise DetrKitError(f"{source}: {reason}")
    if (source / "Annotations").is_dir():
        return "voc"
    if (source / "labels").is_dir() or any((source / name).is_file() for name in YAML_NAMES):
        return "yolo"
    found = {Path(name).suffix for name in files_below(source, frozenset({".xml", ".txt"}))}
    if len(found) != 1:
        what = "both .txt and .xml files" if found else "neither .txt nor .xml files"
        raise DetrKitError(f"{source}: it holds {what}; say the format (--format), yolo or voc")
    return "voc" if ".xml" in found else "yolo"


def export_labels(
    annotations: str | Path,
    out: str | Path,
    label_format: LabelFormat,
    *,
    images: str | Path | None = None,
    copy: bool = False,
    split: str | None = None,
    on_bad_box: OnBadBox = "raise",
) -> ExportReport:
    """Write a COCO json as YOLO or VOC labels; see `export_yolo` and `export_voc`."""
    export = export_yolo if label_format == "yolo" else export_voc
    return export(annotations, out, images=images, copy=copy, split=split, on_bad_box=on_bad_box)
