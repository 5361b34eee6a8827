"""Pascal VOC folders to a COCO json.

`Annotations/*.xml`, `JPEGImages/` and `ImageSets/Main/SPLIT.txt`, or xml files in any folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.data.conversions.bad_boxes import require_no_bad_boxes
from detr_kit.data.conversions.class_names import Names, names_by_index, read_lines
from detr_kit.data.conversions.documents import (
    require_not_among,
    unknown_class,
    write_documents,
)
from detr_kit.data.conversions.picture_files import IMAGE_SUFFIXES, files_below, upright_size_hw
from detr_kit.data.conversions.reports import ImportReport
from detr_kit.data.conversions.voc_xml import (
    VocAnnotation,
    VocObject,
    read_voc,
)
from detr_kit.data.soundness import OnBadBox
from detr_kit.errors import DetrKitError

# The classes of the challenges of 2007 to 2012 in their order.
VOC_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
CLASSES = "classes.txt"
PICTURES = "JPEGImages"


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
    on_bad_box: OnBadBox = "raise",
) -> ImportReport:
    """Write the COCO json `out` of a VOC folder, or of a folder of its xml files.

    `split` picks the pictures of ImageSets/Main/SPLIT.txt. The picture of an xml file has its name
    or the one it gives. `names` are the classes in their order, or a file of them; by default those
    in classes.txt, else the 20 of VOC where there are no others, else the sorted names of all xml
    files, those of other splits too. Category ids count from 1.

    Boxes go from xmin to xmax, pixels counted from 1: x = xmin - 1, width = xmax - xmin + 1. Boxes
    that overshoot the border are cut. Difficult objects are crowd regions, which AP ignores and
    training leaves out, unless `difficult_as_crowd` is False; `difficult`, `truncated` and
    `occluded` are kept in the records. Objects whose box has no pixel, lies outside or is not
    finite are left out and counted with `on_bad_box="skip"`.

    Raises DetrKitError for what is missing, and naming file and object for what is malformed or
    has a bad box.
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
    require_no_bad_boxes(builder.bad_objects, "objects", on_bad_box)
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
        num_skipped=len(builder.bad_objects),
    )


def _find_folders(source: Path, images: Path | None) -> _Folders:
    for folder in (source, images):
        if folder is not None and not folder.is_dir():
            raise DetrKitError(f"{folder}: no such folder")
    annotations = source / "Annotations" if (source / "Annotations").is_dir() else source
    root = source.absolute().parent if source.name == "Annotations" else source
    usual = [root / name for name in (PICTURES, "images") if (root / name).is_dir()]
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
    if names is None and (source / CLASSES).is_file():
        names = source / CLASSES
    if names is not None:
        return list(names_by_index(names, source).values())
    found = {one.name for file in files for one in read_voc(folder / file).objects}
    if not found:
        raise DetrKitError(
            f"{source}: no object in any xml file; give names of the classes (--names)"
        )
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
        self.bad_objects: list[str] = []
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
            inside_xyxy = one.box_xyxy.clip(0, [width, height, width, height])
            fault = one.fault
            if fault is None and (inside_xyxy[2:] <= inside_xyxy[:2]).any():
                fault = "the box lies outside its image"
            if fault is not None:
                self.bad_objects.append(f"{path}: object {number}: {fault}")
                continue
            self.num_clipped += bool((inside_xyxy != one.box_xyxy).any())
            self.annotations.append(self._annotation(image_id, one, inside_xyxy))

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
            f"{stem.as_posix()}.* nor {given!r}; name its folder with images (--images)"
        )

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
