"""COCO-format annotation files as flat columns.

A list of dicts a picture would be copied into every worker process piece by piece, as reference
counts are touched; a few arrays are not, and hold a large data set in tens of megabytes.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError

# Decimals in a file overshoot the border by rounding; what is below this is not worth counting.
OVERSHOOT_TOLERANCE = 0.01


class BoxFormatWarning(UserWarning):
    """The boxes of a file look like corners (x0, y0, x1, y1), COCO's are (x, y, w, h)."""


_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Category(msgspec.Struct, gc=False):
    id: _Int64
    name: str


class _Image(msgspec.Struct, gc=False):
    id: _Int64
    file_name: str
    width: _Int64
    height: _Int64


class _Annotation(msgspec.Struct, gc=False):
    id: _Int64
    image_id: _Int64
    category_id: _Int64
    bbox: list[float] = []
    iscrowd: int | bool = 0


class _CocoFile(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class CocoAnnotations:
    """The pictures of one file in its order, and their objects picture after picture.

    Objects of picture i are rows `offsets[i]` to `offsets[i + 1]`. Crowd regions are left out.

    - `image_ids` (I,) int64, `file_names` (I,) str, `sizes_hw` (I, 2) int64;
    - `offsets` (I + 1,) int64;
    - `boxes_xyxy` (N, 4) float32 in pixels, inside the picture, of positive width and height;
    - `labels` (N,) int64 columns of the class head, see `categories`;
    - `annotation_ids` (N,) int64.

    `num_clipped` boxes overshot the border and were cut, `num_skipped` were left out as bad,
    `num_crowd` as crowd regions.
    """

    path: Path
    categories: CategoryTable
    image_ids: np.ndarray
    file_names: np.ndarray
    sizes_hw: np.ndarray
    offsets: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    annotation_ids: np.ndarray
    num_clipped: int
    num_skipped: int
    num_crowd: int

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.image_ids)

    @property
    def num_objects(self) -> int:
        return len(self.labels)

    @property
    def max_objects(self) -> int:
        """The most objects in one picture."""
        return int(np.diff(self.offsets).max(initial=0))

    @property
    def num_empty(self) -> int:
        return int((np.diff(self.offsets) == 0).sum())

    def size_hw(self, index: int) -> tuple[int, int]:
        height, width = self.sizes_hw[index]
        return int(height), int(width)

    def objects_of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes_xyxy (n, 4) and labels (n,) of picture `index`."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return self.boxes_xyxy[rows], self.labels[rows]


def load_annotations(
    path: str | Path, *, on_bad_box: Literal["raise", "skip"] = "raise"
) -> CocoAnnotations:
    """Read a COCO-format json.

    Boxes that overshoot the border are clipped to it and counted. Boxes without width or height,
    not finite, or wholly outside their picture raise, or are left out and counted with
    `on_bad_box="skip"`. A missing `iscrowd` is 0; `area` is not needed. Boxes that look like
    corners raise a `BoxFormatWarning`.

    Raises DetrKitError, naming file and annotation or picture, for whatever cannot be trained on.
    """
    path = Path(path)
    if on_bad_box not in ("raise", "skip"):
        raise DetrKitError(f"on_bad_box must be 'raise' or 'skip', got {on_bad_box!r}")
    coco = _decode(path)
    categories = _categories(path, coco.categories)
    image_ids = _column([image.id for image in coco.images])
    _check_images(path, coco.images, image_ids)
    sizes_hw = _column([(image.height, image.width) for image in coco.images]).reshape(-1, 2)
    found = coco.annotations
    rows, labels = _references(path, found, image_ids, categories.ids_array)
    crowd = np.array([bool(annotation.iscrowd) for annotation in found], dtype=bool)
    rows, labels = rows[~crowd], labels[~crowd]
    found = [annotation for annotation in found if not annotation.iscrowd]
    boxes_xyxy, clipped, bad = _check_boxes(path, found, sizes_hw[rows], on_bad_box)
    # Stable, so that the objects of a picture keep the order of the file.
    kept = np.flatnonzero(~bad)
    kept = kept[np.argsort(rows[kept], kind="stable")]
    counts = np.bincount(rows[kept], minlength=len(image_ids))
    return CocoAnnotations(
        path=path,
        categories=categories,
        image_ids=image_ids,
        file_names=np.array([image.file_name for image in coco.images], dtype=np.str_),
        sizes_hw=sizes_hw,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xyxy=boxes_xyxy[kept],
        labels=labels[kept],
        annotation_ids=_column([annotation.id for annotation in found])[kept],
        num_clipped=int((clipped & ~bad).sum()),
        num_skipped=int(bad.sum()),
        num_crowd=int(crowd.sum()),
    )


def _decode(path: Path) -> _CocoFile:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DetrKitError(f"{path}: no such annotation file") from error
    except OSError as error:
        raise DetrKitError(f"{path}: cannot read the file: {error.strerror}") from error
    try:
        return msgspec.json.decode(content, type=_CocoFile)
    except msgspec.ValidationError as error:
        raise DetrKitError(f"{path}: not a COCO annotation file: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_leniently(path, content)


def _decode_leniently(path: Path, content: bytes) -> _CocoFile:
    """Read what Python writes and json does not allow, NaN and Infinity, to name its boxes."""
    try:
        values: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DetrKitError(f"{path}: not a json file: {error}") from error
    try:
        return msgspec.convert(values, type=_CocoFile)
    except msgspec.ValidationError as error:
        raise DetrKitError(f"{path}: not a COCO annotation file: {error}") from error


def _column(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _categories(path: Path, categories: list[_Category]) -> CategoryTable:
    try:
        return CategoryTable.from_coco(map(msgspec.structs.asdict, categories))
    except DetrKitError as error:
        raise DetrKitError(f"{path}: {error}") from error


def _check_images(path: Path, images: list[_Image], image_ids: np.ndarray) -> None:
    unique, counts = np.unique(image_ids, return_counts=True)
    if (counts > 1).any():
        raise DetrKitError(f"{path}: image id {unique[counts > 1][0]} appears twice")
    for image in images:
        if image.width < 1 or image.height < 1:
            raise DetrKitError(
                f"{path}: image {image.id}: width {image.width} and height {image.height} "
                "must be positive"
            )
        if not _stays_inside(image.file_name):
            raise DetrKitError(
                f"{path}: image {image.id}: file_name {image.file_name!r} must lead to a file "
                "inside the image folder"
            )


def _stays_inside(file_name: str) -> bool:
    """Whether a relative path stays in its folder, read by the rules of either system."""
    windows = PureWindowsPath(file_name)
    parts = {*PurePosixPath(file_name).parts, *windows.parts}
    return (
        bool(parts) and ".." not in parts and not file_name.startswith("/") and not windows.anchor
    )


def _references(
    path: Path, annotations: list[_Annotation], image_ids: np.ndarray, category_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture's and the category's position of each annotation, both (N,) int64."""
    ids_of_images = _column([annotation.image_id for annotation in annotations])
    ids_of_categories = _column([annotation.category_id for annotation in annotations])
    places = []
    for kind, ids, known_ids in (
        ("image", ids_of_images, image_ids),
        ("category", ids_of_categories, category_ids),
    ):
        order = np.argsort(known_ids)
        place = np.searchsorted(known_ids, ids, sorter=order)
        known = place < len(known_ids)
        known[known] = known_ids[order[place[known]]] == ids[known]
        if not known.all():
            first = int(np.flatnonzero(~known)[0])
            raise DetrKitError(
                f"{path}: annotation {annotations[first].id}: no {kind} has the id {ids[first]}"
            )
        places.append(order[place])
    return places[0], places[1]


def _check_boxes(
    path: Path, annotations: list[_Annotation], sizes_hw: np.ndarray, on_bad_box: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `_clip_boxes` does; warn and raise where the boxes call for it."""
    boxes_xywh = _boxes_xywh(path, annotations)
    boxes_xyxy, clipped, bad = _clip_boxes(boxes_xywh, sizes_hw)
    if _look_like_corners(boxes_xywh, sizes_hw):
        warnings.warn(
            f"{path}: the boxes look like corners (x0, y0, x1, y1); COCO's are (x, y, w, h)",
            BoxFormatWarning,
            stacklevel=3,
        )
    if bad.any() and on_bad_box == "raise":
        first = int(np.flatnonzero(bad)[0])
        raise DetrKitError(
            f"{path}: annotation {annotations[first].id}: {_fault(boxes_xywh[first])} "
            f"({int(bad.sum())} such in the file; on_bad_box=skip leaves them out)"
        )
    return boxes_xyxy, clipped, bad


def _boxes_xywh(path: Path, annotations: list[_Annotation]) -> np.ndarray:
    for annotation in annotations:
        if len(annotation.bbox) != 4:
            raise DetrKitError(
                f"{path}: annotation {annotation.id}: bbox must be [x, y, w, h], "
                f"got {annotation.bbox}"
            )
    return np.array([a.bbox for a in annotations], dtype=np.float64).reshape(-1, 4)


def _clip_boxes(
    boxes_xywh: np.ndarray, sizes_hw: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes_xyxy (n, 4) float32 inside the picture, and which were cut, and which are bad.

    A box is bad where it is not finite, has no width or height, or none inside the picture.
    """
    border = np.tile(sizes_hw[:, ::-1], 2).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        raw_xyxy = np.concatenate(
            [boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1
        )
        overshoot = np.maximum(-raw_xyxy, raw_xyxy - border).max(axis=1, initial=-np.inf)
        inside_xyxy = np.clip(raw_xyxy, 0, border).astype(np.float32)
        sides = inside_xyxy[:, 2:] - inside_xyxy[:, :2]
    bad = ~np.isfinite(boxes_xywh).all(axis=1)
    bad |= (boxes_xywh[:, 2:] <= 0).any(axis=1) | ~(sides > 0).all(axis=1)
    return inside_xyxy, overshoot > OVERSHOOT_TOLERANCE, bad


def _fault(box_xywh: np.ndarray) -> str:
    box = [float(value) for value in box_xywh]
    if not np.isfinite(box_xywh).all():
        return f"bbox {box} is not finite"
    if (box_xywh[2:] <= 0).any():
        return f"bbox {box} has no width or no height"
    return f"bbox {box} lies outside its image"


def _look_like_corners(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> bool:
    """Whether all boxes would be valid as corners while many are far off as (x, y, w, h).

    As corners, x1 > x0 and x1 <= W for every box; read as widths, x0 + x1 passes W for boxes in
    the right half. True (x, y, w, h) boxes hardly do both throughout a file.
    """
    if not len(boxes_xywh):
        return False
    border = sizes_hw[:, ::-1]
    low, high = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    as_corners = ((high > low) & (high <= border + 1) & (low >= -1)).all()
    far_off = (low + high > border * 1.05 + 1).any(axis=1)
    return bool(as_corners and far_off.mean() >= 0.1)
