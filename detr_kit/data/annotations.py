"""COCO-format annotation files as training reads them: checked, clipped, in flat columns.

A list of dicts a picture would be copied into every worker process piece by piece, as reference
counts are touched; a few arrays are not, and hold a large data set in tens of megabytes.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.data import index_cache
from detr_kit.data.box_faults import clip_boxes, suspected_format
from detr_kit.data.coco_file import (
    CocoColumns,
    CocoRecords,
    PackedText,
    columns_of,
    decode_json,
    read_bytes,
    read_columns,
)
from detr_kit.data.soundness import (
    OnBadBox,
    category_table,
    reference_rows,
    require_boxes,
    require_images,
    require_unique_images,
)
from detr_kit.errors import DetrKitError, DetrKitWarning


class BoxFormatWarning(DetrKitWarning):
    """The boxes of a file look like another format than COCO's (x, y, w, h) in pixels."""


class IndexCacheWarning(DetrKitWarning):
    """The columns of an annotation file cannot be kept where they were to be."""


@dataclass(frozen=True)
class CocoAnnotations:
    """The pictures of one file in its order, and their objects picture after picture.

    Objects of picture i are rows `offsets[i]` to `offsets[i + 1]`. Crowd regions are left out.

    - `image_ids` (I,) int64, `file_names` I texts, `sizes_hw` (I, 2) int32;
    - `offsets` (I + 1,) int64;
    - `boxes_xyxy` (N, 4) float32 in pixels, inside the picture, of positive width and height;
    - `labels` (N,) int64 columns of the class head, see `categories`;
    - `annotation_ids` (N,) int64, NO_ID where the file has none.

    `num_clipped` boxes overshot the border and were cut, `num_skipped` were left out as bad,
    `num_crowd` as crowd regions; `suspected_format` says what the boxes look like if not like
    COCO's, or is empty. Arrays that come from a cache are files mapped into memory, and
    reach worker processes by their names.
    """

    path: Path
    categories: CategoryTable
    image_ids: np.ndarray
    file_names: PackedText
    sizes_hw: np.ndarray
    offsets: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    annotation_ids: np.ndarray
    num_clipped: int
    num_skipped: int
    num_crowd: int
    suspected_format: str
    cached_at: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.cached_at is not None:
            return _from_cache, (self.cached_at, self.path)
        return type(self), tuple(getattr(self, column.name) for column in fields(self))

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

    def require_consistent(self) -> None:
        """Raise ValueError where the columns do not belong together."""
        num_images, num_objects = len(self.image_ids), int(self.offsets[-1])
        of_images = {len(self.sizes_hw), len(self.file_names), len(self.offsets) - 1}
        of_objects = {len(self.boxes_xyxy), len(self.labels), len(self.annotation_ids)}
        if of_images != {num_images} or of_objects != {num_objects}:
            raise ValueError(f"{self.path}: columns of different lengths")

    def size_hw(self, index: int) -> tuple[int, int]:
        height, width = self.sizes_hw[index]
        return int(height), int(width)

    def objects_of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes_xyxy (n, 4) and labels (n,) of picture `index`."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return self.boxes_xyxy[rows], self.labels[rows]


def load_annotations(
    path: str | Path, *, on_bad_box: OnBadBox = "raise", cache_dir: str | Path | None = None
) -> CocoAnnotations:
    """Read a COCO-format json.

    Boxes that overshoot the border are clipped to it and counted. Boxes without width or height,
    not finite, or wholly outside their picture raise, or are left out and counted with
    `on_bad_box="skip"`. A missing `iscrowd` is 0; `area` is not needed. Boxes that look like
    corners raise a `BoxFormatWarning`.

    With `cache_dir`, the columns are written there, under the content of the json, and mapped into
    memory from there: now, and at once the next time.

    Raises DetrKitError, naming file and annotation or picture, for whatever cannot be trained on.
    """
    path = Path(path)
    if on_bad_box not in ("raise", "skip"):
        raise DetrKitError(f"on_bad_box must be 'raise' or 'skip', got {on_bad_box!r}")
    if cache_dir is None:
        loaded = _from_columns(read_columns(path), on_bad_box)
    else:
        loaded = _through_cache(path, on_bad_box, Path(cache_dir))
    if loaded.suspected_format:
        warnings.warn(
            f"{path}: the boxes look like {loaded.suspected_format}; COCO's are (x, y, w, h) in "
            "pixels, and `detr-kit check --fix` converts them",
            BoxFormatWarning,
            stacklevel=2,
        )
    return loaded


def _through_cache(path: Path, on_bad_box: OnBadBox, cache_dir: Path) -> CocoAnnotations:
    digest = index_cache.known_digest(cache_dir, path)
    if digest is not None:
        with suppress(*index_cache.DAMAGED):
            return _from_cache(index_cache.entry_folder(cache_dir, digest, on_bad_box), path)
    signature = index_cache.signature_of(path)
    content = read_bytes(path)
    digest = index_cache.digest_of(content)
    folder = index_cache.entry_folder(cache_dir, digest, on_bad_box)
    try:
        cached = _from_cache(folder, path)
    except index_cache.DAMAGED:
        columns = columns_of(path, decode_json(path, content, CocoRecords))
        cached = _stored(folder, _from_columns(columns, on_bad_box))
    if cached.cached_at is not None:
        with suppress(OSError):  # the hash is computed again the next time
            index_cache.note_digest(cache_dir, path, signature, digest)
    return cached


_ARRAYS = ("image_ids", "sizes_hw", "offsets", "boxes_xyxy", "labels", "annotation_ids")
_NUMBERS = ("num_clipped", "num_skipped", "num_crowd", "suspected_format")


def _stored(folder: Path, loaded: CocoAnnotations) -> CocoAnnotations:
    """Return what was loaded as the cache has it, or itself where the cache cannot be written."""
    arrays = {name: getattr(loaded, name) for name in _ARRAYS}
    names = {"names_data": loaded.file_names.data, "names_offsets": loaded.file_names.offsets}
    meta = {name: getattr(loaded, name) for name in _NUMBERS}
    meta["categories"] = loaded.categories.to_json()
    try:
        read = partial(_from_cache, path=loaded.path)
        index_cache.store(folder, arrays | names, meta, read)
        return read(folder)
    except index_cache.DAMAGED as error:
        warnings.warn(
            f"{folder.parent}: cannot keep the columns of {loaded.path} there ({error}); every "
            "worker process holds its own",
            IndexCacheWarning,
            stacklevel=4,
        )
        return loaded


def _from_cache(folder: Path, path: Path) -> CocoAnnotations:
    arrays, meta = index_cache.load(folder)
    values: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
    values |= {name: meta[name] for name in _NUMBERS}
    loaded = CocoAnnotations(
        path=path,
        categories=CategoryTable.from_json(meta["categories"]),
        file_names=PackedText(arrays["names_data"], arrays["names_offsets"]),
        cached_at=folder,
        **values,
    )
    loaded.require_consistent()
    return loaded


def _from_columns(columns: CocoColumns, on_bad_box: OnBadBox) -> CocoAnnotations:
    columns.require_well_formed()
    categories = category_table(columns)
    require_unique_images(columns)
    require_images(columns)
    rows = reference_rows(columns, "image", columns.image_id_of, columns.image_ids)
    labels = reference_rows(columns, "category", columns.category_id_of, categories.ids_array)
    single = np.flatnonzero(columns.iscrowd != 1)
    boxes_xywh, sizes_hw = columns.boxes_xywh[single], columns.sizes_hw[rows[single]]
    clipped = clip_boxes(boxes_xywh, sizes_hw)
    require_boxes(columns, single, clipped.bad, on_bad_box)
    # Stable, so that the objects of a picture keep the order of the file.
    kept = np.flatnonzero(~clipped.bad)
    kept = kept[np.argsort(rows[single[kept]], kind="stable")]
    counts = np.bincount(rows[single[kept]], minlength=len(columns.image_ids))
    return CocoAnnotations(
        path=columns.path,
        categories=categories,
        image_ids=columns.image_ids,
        file_names=columns.file_names,
        sizes_hw=columns.sizes_hw,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xyxy=clipped.boxes_xyxy[kept],
        labels=labels[single[kept]],
        annotation_ids=columns.annotation_ids[single[kept]],
        num_clipped=int(clipped.overshoot.sum()),
        num_skipped=int(clipped.bad.sum()),
        num_crowd=len(columns.iscrowd) - len(single),
        suspected_format=suspected_format(boxes_xywh, sizes_hw),
    )
