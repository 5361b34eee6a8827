"""YOLO labels to a COCO json and back.

A text file a picture, a line an object: `class cx cy w h`, or `class x0 y0 x1 y1 ...` for a
polygon, as fractions of the picture's width and height (https://docs.ultralytics.com/datasets).
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.data.conversions.bad_boxes import BadBoxError, require_no_bad_boxes
from detr_kit.data.conversions.class_names import Names, read_lines
from detr_kit.data.conversions.documents import require_not_among, write_documents
from detr_kit.data.conversions.exporting import (
    ImageObjects,
    export_folder,
    label_files,
    place_pictures,
    read_for_export,
    recover_export,
)
from detr_kit.data.conversions.picture_files import upright_size_hw
from detr_kit.data.conversions.reports import ExportReport, ImportReport
from detr_kit.data.conversions.yolo_data_yaml import DATA_YAML, data_yaml, split_entries
from detr_kit.data.conversions.yolo_layout import find_layout, label_path
from detr_kit.data.soundness import OnBadBox
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write
from detr_kit.sizes import SizeHW

# Of a picture's side: tools that round or clip carelessly pass the border by less.
BORDER_TOLERANCE = 0.01
# Decimals of a pixel in the json. Labels have six of the side as a rule, which is no finer.
PIXEL_DECIMALS = 3
# Decimals of the side in labels: within 0.001 pixels for pictures of up to 100,000.
LABEL_DECIMALS = 8


@dataclass(frozen=True)
class LabelledObject:
    """An object of a line: `box_xyxy` (4,) and `polygon_xy` (n, 2) in pixels, None for a box.

    `clipped` says that it overshot the border by more than rounding does.
    """

    class_index: int
    box_xyxy: np.ndarray
    polygon_xy: np.ndarray | None
    clipped: bool


def import_yolo(
    source: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    names: Names | None = None,
    split: str | None = None,
    on_bad_box: OnBadBox = "raise",
) -> ImportReport:
    """Write the COCO json `out` of YOLO labels.

    `source` is a data.yaml, or a folder: of labels that stand beside their pictures, in the
    `labels/` parallel to `images/`, or elsewhere, and then `images` is the pictures' folder.
    `split` picks one of several. `names` are the classes in their order, or a file of them; by
    default those of data.yaml, classes.txt or obj.names.

    Category ids are the class indices. Sizes are those of the pictures with their EXIF orientation
    applied. Pictures without a label file, or with an empty one, have no objects. Boxes are
    rounded to 0.001 pixels and cut at the border, which they may pass by a hundredth of the side.
    Lines whose box has no side, lies outside or is not finite are left out and counted with
    `on_bad_box="skip"`.

    Raises DetrKitError for what is missing, and naming file and line for a line that is no label
    or has a bad box.
    """
    source, out = Path(source), Path(out)
    names = Path(names) if isinstance(names, str) else names
    require_not_among([out], [source, *([names] if isinstance(names, Path) else [])])
    layout = find_layout(source, None if images is None else Path(images), names, split)
    image_records: list[dict[str, Any]] = []
    objects: list[tuple[int, LabelledObject]] = []
    bad_lines: list[str] = []
    for image_id, (picture, label) in enumerate(layout.pairs, 1):
        height, width = upright_size_hw(picture)
        name = _file_name(picture, layout.images)
        image_records.append({"id": image_id, "file_name": name, "width": width, "height": height})
        if label is not None:
            found, bad = read_labels(label, layout.names, (height, width))
            objects += [(image_id, one) for one in found]
            bad_lines += bad
    require_no_bad_boxes(bad_lines, "lines", on_bad_box)
    annotations = [
        _annotation(number, image_id, one) for number, (image_id, one) in enumerate(objects, 1)
    ]
    categories = [{"id": index, "name": name} for index, name in layout.names.items()]
    content = {"images": image_records, "annotations": annotations, "categories": categories}
    write_documents({out: content})
    return ImportReport(
        out=out,
        images=layout.images,
        num_images=len(image_records),
        num_empty=len(image_records) - len({image_id for image_id, _ in objects}),
        num_objects=len(annotations),
        num_categories=len(categories),
        num_clipped=sum(one.clipped for _, one in objects),
        num_unmatched=layout.num_unmatched,
        num_skipped=len(bad_lines),
    )


def _file_name(picture: Path, images: Path) -> str:
    relative = Path(os.path.relpath(picture, images))
    if relative.parts[0] == "..":
        raise DetrKitError(f"{picture}: the picture is not in the folder {images}")
    return relative.as_posix()


def read_labels(
    path: Path, names: Mapping[int, str], size_hw: SizeHW
) -> tuple[list[LabelledObject], list[str]]:
    """Return the objects of a label file, and what is wrong in lines with a bad box.

    Raises DetrKitError naming the line where one is no label.
    """
    objects, bad = [], []
    for number, line in enumerate(read_lines(path), 1):
        values = line.split()
        if not values:
            continue
        try:
            objects.append(_parse(values, names, size_hw))
        except BadBoxError as error:
            bad.append(f"{path}, line {number}: {error}")
        except ValueError as error:
            # A file that holds something else may have very long words.
            reason = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise DetrKitError(f"{path}, line {number}: {reason}") from error
    return objects, bad


def _parse(values: list[str], names: Mapping[int, str], size_hw: SizeHW) -> LabelledObject:
    """Return the object; raises ValueError with the reason where the values are none.

    That is a BadBoxError where they are of the right form.
    """
    if len(values) == 6:
        raise ValueError(
            "6 values, where a box has 5 (class cx cy w h); a sixth is the score of a prediction"
        )
    if len(values) < 5 or len(values) % 2 == 0:
        raise ValueError(
            f"{len(values)} values; expected class cx cy w h, or class and three points or more"
        )
    class_index = _class_index(values[0], names)
    numbers = np.array([float(value) for value in values[1:]])
    if not np.isfinite(numbers).all():
        raise BadBoxError("a number is not finite")
    low, high = -BORDER_TOLERANCE, 1 + BORDER_TOLERANCE
    if numbers.min() < low or numbers.max() > high:
        outside = numbers[(numbers < low) | (numbers > high)][0]
        raise BadBoxError(f"{outside:g} is no fraction of the picture's side, from 0 to 1")
    if len(numbers) == 4:
        corners = np.array([numbers[:2] - numbers[2:] / 2, numbers[:2] + numbers[2:] / 2])
        box_xyxy, clipped = _in_pixels(corners, size_hw)
        return LabelledObject(class_index, _with_sides(box_xyxy.reshape(4)), None, clipped)
    polygon_xy, clipped = _in_pixels(numbers.reshape(-1, 2), size_hw)
    box_xyxy = np.concatenate([polygon_xy.min(axis=0), polygon_xy.max(axis=0)])
    return LabelledObject(class_index, _with_sides(box_xyxy), polygon_xy, clipped)


def _class_index(value: str, names: Mapping[int, str]) -> int:
    # Some tools write all numbers alike: 3.000000.
    number = float(value)
    if number not in names:
        raise ValueError(
            f"class {value}, but the {len(names)} names have the indices {min(names)} to "
            f"{max(names)}"
        )
    return int(number)


def _in_pixels(points: np.ndarray, size_hw: SizeHW) -> tuple[np.ndarray, bool]:
    """Return fractional points (n, 2) in pixels inside the picture, and whether any was cut."""
    size_wh = np.array(size_hw[::-1], dtype=np.float64)
    raw = points * size_wh
    inside = raw.clip(0, size_wh)
    # Six decimals of a fraction are up to half a millionth of the side off at each border.
    clipped = bool((np.abs(raw - inside) > np.maximum(size_wh * 2e-6, 0.01)).any())
    return inside.round(PIXEL_DECIMALS), clipped


def _with_sides(box_xyxy: np.ndarray) -> np.ndarray:
    if (box_xyxy[2:] <= box_xyxy[:2]).any():
        raise BadBoxError("the object has no width or no height inside the picture")
    return box_xyxy


def _annotation(number: int, image_id: int, one: LabelledObject) -> dict[str, Any]:
    x0, y0, x1, y1 = one.box_xyxy.tolist()
    width, height = round(x1 - x0, PIXEL_DECIMALS), round(y1 - y0, PIXEL_DECIMALS)
    record: dict[str, Any] = {
        "id": number,
        "image_id": image_id,
        "category_id": one.class_index,
        "bbox": [x0, y0, width, height],
        "area": round(width * height, PIXEL_DECIMALS),
        "iscrowd": 0,
    }
    if one.polygon_xy is not None:
        record["area"] = round(_area(one.polygon_xy), PIXEL_DECIMALS)
        record["segmentation"] = [one.polygon_xy.reshape(-1).tolist()]
    return record


def _area(polygon_xy: np.ndarray) -> float:
    """Return the area of a polygon (n, 2) by the shoelace formula."""
    x, y = (polygon_xy - polygon_xy[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def export_yolo(
    annotations: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    copy: bool = False,
    split: str | None = None,
    on_bad_box: OnBadBox = "raise",
) -> ExportReport:
    """Write the folder `out` with `labels/*.txt` and a data.yaml, all of it or nothing.

    Class indices are the columns of the categories in the order of their ids. With `images`, the
    folder of the pictures, these are linked into `out/images`, or copied with `copy=True`.
    Sub-folders are kept. Boxes are clipped to their pictures; crowd regions, which YOLO has not,
    are left out, and so are polygons.

    `split`, one of train, val and test, goes to `images/SPLIT` and `labels/SPLIT`, and `out` may be
    an export of other splits with the same classes. Without it, data.yaml has the same pictures as
    train and val, for Ultralytics wants both.

    Raises DetrKitError where `out` holds something else, a picture is missing, a box is bad (see
    `load_annotations`), or two pictures would have the same label file.
    """
    out = Path(out)
    given = read_for_export(Path(annotations), on_bad_box)
    names = given.document.table.names
    place = Path("images", split) if split else Path("images")
    labels = label_files(given, lambda name: label_path(place / name))
    recover_export(out)
    entries = split_entries(out, split, names)
    with export_folder(out, adding=bool(entries)) as folder:
        for image, label in zip(given.images, labels, strict=True):
            (folder / label).parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(f"{line}\n" for line in _lines(image))
            (folder / label).write_text(lines, encoding="utf-8")
        text = data_yaml({**entries, split: place.as_posix()} if split else {}, names)
        with atomic_write(folder / DATA_YAML) as path:
            path.write_text(text, encoding="utf-8")
        num_pictures = place_pictures(given, images, folder / place, copy=copy)
    return ExportReport(
        out=out,
        num_images=len(labels),
        num_objects=sum(int((~image.iscrowd).sum()) for image in given.images),
        num_categories=len(names),
        num_crowd=int((~given.document.single).sum()),
        num_clipped=given.num_clipped,
        num_skipped=given.num_skipped,
        num_pictures=num_pictures,
    )


def _lines(image: ImageObjects) -> Iterator[str]:
    size_whwh = np.tile(image.size_hw[::-1], 2)
    single = ~image.iscrowd
    for box_xyxy, label in zip(image.boxes_xyxy[single], image.labels[single], strict=True):
        low, high = np.split(box_xyxy / size_whwh, 2)
        values = np.concatenate([(low + high) / 2, high - low])
        yield " ".join([str(label), *(f"{value:.{LABEL_DECIMALS}f}" for value in values)])
