"""A COCO-format json of any size: its records as text, and what detection needs of them in columns.

The file is held once, as bytes. A record is decoded for a moment, to fill its row of the columns;
polygons and whatever else nobody asks for are skipped over, not built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np
from msgspec import Raw

from detr_kit.data.json_file import decode_json, read_bytes
from detr_kit.errors import DetrKitError

# What stands in a column of ids for a record without one.
NO_ID = -(2**63)
# Records that are decoded before they go to the columns; more would only take memory.
_CHUNK = 8192

_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}

_Int64 = Annotated[int, msgspec.Meta(ge=NO_ID + 1, le=2**63 - 1)]
_Size = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class _Category(msgspec.Struct, gc=False):
    id: _Int64
    name: str


class _Image(msgspec.Struct, gc=False):
    id: _Int64
    file_name: str | None = None
    width: _Size | None = None
    height: _Size | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: _Int64
    category_id: _Int64
    id: _Int64 | None = None
    bbox: tuple[float | None, float | None, float | None, float | None] | None = None
    area: float | None = None
    iscrowd: int | bool | None = None
    segmentation: Raw = Raw(b"")


class _EmptyBox(_Annotation, gc=False):
    """Some write crowd regions with `bbox: []`, which says as much as none."""

    bbox: Annotated[list[float], msgspec.Meta(max_length=0)] | None = None  # type: ignore[assignment]


class CocoRecords(msgspec.Struct, gc=False):
    """The records of a COCO file as json text, in the order of the file."""

    images: list[Raw]
    annotations: list[Raw]
    categories: list[Raw]


class PackedText(Sequence[str]):
    """Many texts in two arrays: `data` uint8, their UTF-8 after each other, and `offsets` int64."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self.data = data
        self.offsets = offsets

    @classmethod
    def pack(cls, texts: Iterable[bytes]) -> PackedText:
        listed = list(texts)
        lengths = np.array([0, *map(len, listed)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(listed), dtype=np.uint8), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[str]:
        data, bounds = self.data.tobytes(), self.offsets.tolist()
        for start, end in pairwise(bounds):
            yield data[start:end].decode()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"no text {index} among {len(self)}")
        return self.data[self.offsets[place] : self.offsets[place + 1]].tobytes().decode()


@dataclass(frozen=True)
class Malformed:
    """A record that does not have the form of COCO: where it stands and why it cannot be read."""

    section: str
    position: int
    id: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"

    @property
    def name(self) -> str:
        """How a message calls the record: by its id where it has one, or by its place."""
        if self.id is None:
            return f"{self.section}[{self.position}]"
        return f"{_SINGULAR[self.section]} {self.id}"


@dataclass(frozen=True)
class CocoColumns:
    """A COCO file as written, in the order of the file, without the records in `malformed`.

    - `category_ids` (C,) int64, `category_names` C texts: repeated ones are still there;
    - `image_ids` (I,) int64, `file_names` I texts, "" where missing, `sizes_hw` (I, 2) int32, 0
      where missing;
    - `annotation_ids` (N,) int64, NO_ID where missing, `image_id_of` and `category_id_of` (N,)
      int64, which need not exist;
    - `boxes_xywh` (N, 4) float64 in pixels, NaN where a number is null or no number;
    - `has_box` (N,) bool, `areas` (N,) float64, NaN where missing, `iscrowd` (N,) int8, -1 where
      missing;
    - `segmentations` N json texts, "" where missing; None unless asked for.

    `positions` gives, for each section, the place in the file of every row.
    """

    path: Path
    category_ids: np.ndarray
    category_names: tuple[str, ...]
    image_ids: np.ndarray
    file_names: PackedText
    sizes_hw: np.ndarray
    annotation_ids: np.ndarray
    image_id_of: np.ndarray
    category_id_of: np.ndarray
    boxes_xywh: np.ndarray
    has_box: np.ndarray
    areas: np.ndarray
    iscrowd: np.ndarray
    segmentations: PackedText | None
    positions: dict[str, np.ndarray]
    malformed: tuple[Malformed, ...]

    def annotation_name(self, row: int) -> str:
        """Return how a message calls the annotation in `row`."""
        if self.annotation_ids[row] != NO_ID:
            return f"annotation {self.annotation_ids[row]}"
        return f"annotations[{self.positions['annotations'][row]}] (without an id)"

    def require_well_formed(self) -> None:
        """Raise DetrKitError, naming the file, where a record was malformed."""
        if self.malformed:
            raise DetrKitError(
                f"{self.path}: not a COCO annotation file: {self.malformed[0]} "
                f"({len(self.malformed)} such in the file; `detr-kit check` lists them)"
            )


def read_columns(path: str | Path, *, segmentations: bool = False) -> CocoColumns:
    """Read a COCO-format json into columns; the json text of segmentations only on request.

    Memory peaks at the size of the file and some 300 bytes a record, however long the polygons in
    it are. Raises DetrKitError, naming the
    file, where it cannot be read, is no json, or lacks a section; single malformed records are
    listed, not raised.
    """
    return columns_of(Path(path), read_records(path), segmentations=segmentations)


def read_records(path: str | Path) -> CocoRecords:
    """Return the records of a COCO file; see `read_columns` for what is raised."""
    return decode_json(Path(path), read_bytes(path), CocoRecords)


R = TypeVar("R")


def _without_box(record: Raw) -> _Annotation | None:
    """Return an annotation whose bbox is an empty list as one that has none."""
    try:
        found = msgspec.json.decode(record, type=_EmptyBox)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return _Annotation(**{**msgspec.structs.asdict(found), "bbox": None})


def _irreparable(record: Raw) -> None:
    return None


class _Section(Generic[R]):
    """Decodes the records of one section in chunks and keeps account of malformed ones."""

    def __init__(
        self,
        name: str,
        records: list[Raw],
        type_: type[R],
        repair: Callable[[Raw], R | None] = _irreparable,
    ) -> None:
        self.name = name
        self.records = records
        self.repair = repair
        self.decoder = msgspec.json.Decoder(type_)
        self.positions: np.ndarray = np.arange(len(records), dtype=np.int64)
        self.malformed: list[Malformed] = []

    def chunks(self) -> Iterable[list[R]]:
        for start in range(0, len(self.records), _CHUNK):
            chunk = self.records[start : start + _CHUNK]
            try:
                yield list(map(self.decoder.decode, chunk))
            except (msgspec.DecodeError, UnicodeDecodeError):
                yield self._one_by_one(start, chunk)
        bad = [record.position for record in self.malformed]
        self.positions = np.delete(self.positions, bad)

    def _one_by_one(self, start: int, chunk: list[Raw]) -> list[R]:
        decoded = (self._decoded(position, record) for position, record in enumerate(chunk, start))
        return [record for record in decoded if record is not None]

    def _decoded(self, position: int, record: Raw) -> R | None:
        try:
            return self.decoder.decode(record)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if (repaired := self.repair(record)) is not None:
                return repaired
            self.malformed.append(Malformed(self.name, position, _id_of(record), _reason(error)))
            return None


def _reason(error: Exception) -> str:
    """Put the field first: "bbox: Expected `array` of length 4, got 3"."""
    message, _, place = str(error).partition(" - at `$.")
    field = place.rstrip("`")
    if field.startswith("bbox"):
        field = "bbox must be [x, y, w, h]"
    return f"{field}: {message}" if field else message


class _AnyId(msgspec.Struct, gc=False):
    id: _Int64


def _id_of(record: Raw) -> int | None:
    try:
        return msgspec.json.decode(record, type=_AnyId).id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def columns_of(path: Path, records: CocoRecords, *, segmentations: bool = False) -> CocoColumns:
    """Return the columns of records that were read from `path`."""
    categories = _Section("categories", records.categories, _Category)
    category_rows = [record for chunk in categories.chunks() for record in chunk]
    images = _Section("images", records.images, _Image)
    image_ids, names, sizes_hw = _image_columns(images)
    annotations = _Section("annotations", records.annotations, _Annotation, _without_box)
    columns, texts = _annotation_columns(annotations, segmentations)
    return CocoColumns(
        path=path,
        category_ids=np.array([category.id for category in category_rows], dtype=np.int64),
        category_names=tuple(category.name for category in category_rows),
        image_ids=image_ids,
        file_names=names,
        sizes_hw=sizes_hw,
        segmentations=texts,
        **columns,
        positions={part.name: part.positions for part in (categories, images, annotations)},
        malformed=(*categories.malformed, *images.malformed, *annotations.malformed),
    )


def _image_columns(section: _Section[_Image]) -> tuple[np.ndarray, PackedText, np.ndarray]:
    ids: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    names: list[bytes] = []
    for chunk in section.chunks():
        ids.append(np.array([image.id for image in chunk], dtype=np.int64))
        sizes_of_chunk = [(image.height or 0, image.width or 0) for image in chunk]
        sizes.append(np.array(sizes_of_chunk, dtype=np.int32))
        names += [(image.file_name or "").encode() for image in chunk]
    sizes_hw = np.concatenate([np.empty((0, 2), np.int32), *(s.reshape(-1, 2) for s in sizes)])
    return _joined(ids, np.int64), PackedText.pack(names), sizes_hw


def _annotation_columns(
    section: _Section[_Annotation], segmentations: bool
) -> tuple[dict[str, np.ndarray], PackedText | None]:
    """Return the columns by name, and the segmentations' texts."""
    length = len(section.records)
    # Made at once: joined from parts, they would be held twice.
    columns = {
        "annotation_ids": np.empty(length, np.int64),
        "image_id_of": np.empty(length, np.int64),
        "category_id_of": np.empty(length, np.int64),
        "boxes_xywh": np.empty((length, 4), np.float64),
        "has_box": np.empty(length, np.bool_),
        "areas": np.empty(length, np.float64),
        "iscrowd": np.empty(length, np.int8),
    }
    texts: list[bytes] = []
    end = 0
    for chunk in section.chunks():
        values: dict[str, list[Any]] = {
            "annotation_ids": [NO_ID if row.id is None else row.id for row in chunk],
            "image_id_of": [row.image_id for row in chunk],
            "category_id_of": [row.category_id for row in chunk],
            "boxes_xywh": [_NO_BOX if row.bbox is None else row.bbox for row in chunk],
            "has_box": [row.bbox is not None for row in chunk],
            "areas": [np.nan if row.area is None else row.area for row in chunk],
            "iscrowd": [-1 if row.iscrowd is None else bool(row.iscrowd) for row in chunk],
        }
        start, end = end, end + len(chunk)
        if chunk:
            for name, column in values.items():
                columns[name][start:end] = column
        if segmentations:
            texts += [bytes(row.segmentation) for row in chunk]
    columns = {name: column[:end] for name, column in columns.items()}
    return columns, PackedText.pack(texts) if segmentations else None


_NO_BOX = (np.nan,) * 4


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts])
