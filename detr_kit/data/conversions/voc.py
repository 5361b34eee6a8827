"""Pascal VOC folders to a COCO json and back.

`Annotations/*.xml`, `JPEGImages/` and `ImageSets/Main/SPLIT.txt`, or xml files in any folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detr_kit.data.conversions.class_names import Names, names_by_index, read_lines
from detr_kit.data.conversions.documents import (
    require_not_among,
    unknown_class,
    write_documents,
)
from detr_kit.data.conversions.exporting import (
    ExportInput,
    ImageObjects,
    label_files,
    new_folder,
    place_pictures,
    read_for_export,
)
from detr_kit.data.conversions.picture_files import IMAGE_SUFFIXES, files_below, upright_size_hw
from detr_kit.data.conversions.reports import ExportReport, ImportReport
from detr_kit.data.conversions.voc_xml import (
    FLAGS,
    VocAnnotation,
    VocObject,
    read_voc,
    voc_text,
)
from detr_kit.data.soundness import OnBadBox
from detr_kit.errors import DetrKitError
from detr_kit.sizes import SizeHW

# The classes of the challenges of 2007 to 2012 in their order.
VOC_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_CLASSES = "classes.txt"


@dataclass(frozen=True)
class _Folders:
    annotations: Path
    images: Path
    splits: Path


def import_voc(
    source: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    names: Names | None = None,
    split: str | None = None,
    difficult_as_crowd: bool = True,
) -> ImportReport:
    """Write the COCO json `out` of a VOC folder, or of a folder of its xml files.

    `split` picks the pictures of ImageSets/Main/SPLIT.txt. The picture of an xml file has its name
    or the one it gives. `names` are the classes in their order, or a file of them; by default those
    in classes.txt, else the 20 of VOC where there are no others, else the sorted names of all xml
    files, those of other splits too. Category ids count from 1.

    Boxes go from xmin to xmax, pixels counted from 1: x = xmin - 1, width = xmax - xmin + 1. Boxes
    that overshoot the border are cut. Difficult objects are crowd regions, which AP ignores and
    training leaves out, unless `difficult_as_crowd` is False; `difficult`, `truncated` and
    `occluded` are kept in the records.

    Raises DetrKitError for what is missing, and naming file and object for what is malformed.
    """
    source, out = Path(source), Path(out)
    require_not_among([out], [source])
    folders = _find_folders(source, None if images is None else Path(images))
    files = files_below(folders.annotations, frozenset({".xml"}))
    if not files:
        raise DetrKitError(f"{folders.annotations}: no xml files there")
    wanted = _of_split(folders.splits, split, files)
    classes = _classes(source, names, folders.annotations, files)
    pictures = files_below(folders.images, IMAGE_SUFFIXES)
    builder = _CocoBuilder(folders, classes, _by_stem(pictures), difficult_as_crowd)
    for name in wanted:
        builder.add(name)
    write_documents({out: builder.content()})
    return ImportReport(
        out=out,
        images=folders.images,
        num_images=len(builder.images),
        num_empty=len(builder.images) - len({one["image_id"] for one in builder.annotations}),
        num_objects=len(builder.annotations),
        num_categories=len(classes),
        num_clipped=builder.num_clipped,
        num_crowd=sum(one["iscrowd"] for one in builder.annotations),
        num_unmatched=0 if split else len({*pictures} - {*builder.used}),
    )


def _find_folders(source: Path, images: Path | None) -> _Folders:
    for folder in (source, images):
        if folder is not None and not folder.is_dir():
            raise DetrKitError(f"{folder}: no such folder")
    annotations = source / "Annotations" if (source / "Annotations").is_dir() else source
    root = source.absolute().parent if source.name == "Annotations" else source
    usual = [root / name for name in ("JPEGImages", "images") if (root / name).is_dir()]
    return _Folders(annotations, images or (usual or [source])[0], root / "ImageSets" / "Main")


def _of_split(folder: Path, split: str | None, files: Sequence[str]) -> list[str]:
    """Return the xml files of a split in the order of its list, or all."""
    if split is None:
        return list(files)
    path = folder / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(Path(name).stem for name in files_below(folder, frozenset({".txt"})))
        raise DetrKitError(f"{path}: no such split; there are {known or 'none'}")
    known_files = {*files}
    stems = []
    for line in filter(None, map(str.strip, read_lines(path))):
        # Lists of one class have a second column, 1 or -1; names may hold spaces.
        stem = line if f"{line}.xml" in known_files else line.split()[0]
        if f"{stem}.xml" not in known_files:
            raise DetrKitError(f"{path}: {stem} has no xml file")
        stems.append(stem)
    return [f"{stem}.xml" for stem in dict.fromkeys(stems)]


def _classes(source: Path, names: Names | None, folder: Path, files: Iterable[str]) -> list[str]:
    if names is None and (source / _CLASSES).is_file():
        names = source / _CLASSES
    if names is not None:
        return list(names_by_index(names, source).values())
    found = {one.name for file in files for one in read_voc(folder / file).objects}
    if not found:
        raise DetrKitError(f"{source}: no object in any xml file; give names of the classes")
    return list(VOC_NAMES) if found <= {*VOC_NAMES} else sorted(found)


def _by_stem(pictures: Iterable[str]) -> dict[str, str]:
    """Return "a/b" to "a/b.jpg"; of several, the first."""
    stems: dict[str, str] = {}
    for name in pictures:
        stems.setdefault(Path(name).with_suffix("").as_posix(), name)
    return stems


class _CocoBuilder:
    """Turns xml files, one after the other, into records."""

    def __init__(
        self,
        folders: _Folders,
        classes: Sequence[str],
        pictures: Mapping[str, str],
        difficult_as_crowd: bool,
    ) -> None:
        self.folders = folders
        self.classes = classes
        self.pictures = pictures
        self.difficult_as_crowd = difficult_as_crowd
        self.id_of = {name: number for number, name in enumerate(classes, 1)}
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.used: list[str] = []
        self.num_clipped = 0

    def add(self, xml_name: str) -> None:
        path = self.folders.annotations / xml_name
        found = read_voc(path)
        picture = self._picture(path, xml_name, found)
        height, width = found.size_hw or upright_size_hw(self.folders.images / picture)
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": picture, "width": width, "height": height})
        self.used.append(picture)
        for number, one in enumerate(found.objects, 1):
            if one.name not in self.id_of:
                raise unknown_class(one.name, self.classes, path)
            box_xyxy = self._inside(one.box_xyxy, (height, width))
            if box_xyxy is None:
                raise DetrKitError(f"{path}: object {number}: the box lies outside its image")
            self.annotations.append(self._annotation(image_id, one, box_xyxy))

    def _picture(self, path: Path, xml_name: str, found: VocAnnotation) -> str:
        """Return the picture's file name.

        The xml's own name goes first, for that is what lists of splits name; what it says inside
        is often left over from before files were renamed.
        """
        stem = Path(xml_name).with_suffix("")
        given = (stem.parent / Path(found.file_name.replace("\\", "/")).name).as_posix()
        first = self.pictures.get(stem.as_posix())
        if first is not None:
            same_stem = given.startswith(f"{stem.as_posix()}.")
            return given if same_stem and (self.folders.images / given).is_file() else first
        if found.file_name and (self.folders.images / given).is_file():
            return given
        raise DetrKitError(
            f"{path}: its picture is not in {self.folders.images}: neither "
            f"{stem.as_posix()}.* nor {given!r}"
        )

    def _inside(self, box_xyxy: np.ndarray, size_hw: SizeHW) -> np.ndarray | None:
        inside_xyxy = box_xyxy.clip(0, [*size_hw[::-1], *size_hw[::-1]])
        self.num_clipped += bool((inside_xyxy != box_xyxy).any())
        return inside_xyxy if (inside_xyxy[2:] > inside_xyxy[:2]).all() else None

    def _annotation(self, image_id: int, one: VocObject, box_xyxy: np.ndarray) -> dict[str, Any]:
        x, y = box_xyxy[:2].tolist()
        width, height = (box_xyxy[2:] - box_xyxy[:2]).tolist()
        return {
            "id": len(self.annotations) + 1,
            "image_id": image_id,
            "category_id": self.id_of[one.name],
            "bbox": [x, y, width, height],
            "area": width * height,
            "iscrowd": int(self.difficult_as_crowd and one.flags.get("difficult", 0)),
            **one.flags,
        }

    def content(self) -> dict[str, Any]:
        categories = [{"id": id_, "name": name} for name, id_ in self.id_of.items()]
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }


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

    Boxes are clipped to their pictures and rounded to whole pixels, at least one. Crowd regions are
    written as difficult objects, and left out where they have no box; `difficult`, `truncated` and
    `occluded` of the records are written. Polygons are left out.

    Raises DetrKitError where `out` holds something, a picture is missing, a box is bad (see
    `load_annotations`), two pictures would have the same xml file, or a name does not fit in one.
    """
    annotations, out = Path(annotations), Path(out)
    given = read_for_export(annotations, on_bad_box)
    labels = label_files(given, lambda name: Path("Annotations", name).with_suffix(".xml"))
    with new_folder(out) as folder:
        for image, label in zip(given.images, labels, strict=True):
            (folder / label).parent.mkdir(parents=True, exist_ok=True)
            objects = _voc_objects(given, image)
            text = voc_text(Path(image.file_name).name, image.size_hw, objects)
            (folder / label).write_bytes(text)
        stems = [Path(image.file_name).with_suffix("").as_posix() for image in given.images]
        _write_lines(folder / "ImageSets" / "Main" / f"{split or annotations.stem}.txt", stems)
        _write_lines(folder / _CLASSES, given.document.table.names)
        num_pictures = place_pictures(given, images, folder / "JPEGImages", copy=copy)
    single = given.document.single
    num_written = sum(int(image.iscrowd.sum()) for image in given.images)
    return ExportReport(
        out=out,
        num_images=len(labels),
        num_objects=sum(len(image.rows) for image in given.images),
        num_categories=len(given.document.table),
        num_crowd=int((~single).sum()) - num_written,
        num_clipped=given.num_clipped,
        num_skipped=given.num_skipped,
        num_pictures=num_pictures,
    )


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
