"""COCO files as what was written in them, and writing new ones.

Records go from file to file as json text, so that nothing of them is lost that is not known here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.listing import listed
from detr_kit.data.coco_file import CocoColumns, CocoRecords, columns_of
from detr_kit.data.json_file import decode_json, read_bytes
from detr_kit.data.soundness import category_table, reference_rows, require_unique_images
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write


@dataclass(frozen=True)
class CocoDocument:
    """A COCO file whose ids are sound: all its keys, its records, and what they say in columns.

    `content` has every key of the file in its order; row i of the columns is record i.
    `image_rows` and `category_rows` (N,) int64 say where the image of an annotation stands among
    the images, and its category among the categories.
    """

    path: Path
    content: dict[str, Raw]
    records: CocoRecords
    columns: CocoColumns
    table: CategoryTable
    image_rows: np.ndarray
    category_rows: np.ndarray

    @property
    def single(self) -> np.ndarray:
        """(N,) bool: annotations that are no crowd regions."""
        return self.columns.iscrowd != 1


def read_document(path: str | Path) -> CocoDocument:
    """Read a COCO file with all that stands in it.

    Raises DetrKitError, naming the file, where it cannot be read, a record has not the form of
    COCO, two images or categories have one id, or an annotation's image or category is not listed.
    """
    path = Path(path)
    written = read_bytes(path)
    records = decode_json(path, written, CocoRecords)
    columns = columns_of(path, records)
    columns.require_well_formed()
    table = category_table(columns)
    require_unique_images(columns)
    return CocoDocument(
        path=path,
        content=decode_json(path, written, dict[str, Raw]),
        records=records,
        columns=columns,
        table=table,
        image_rows=reference_rows(columns, "image", columns.image_id_of, columns.image_ids),
        category_rows=reference_rows(
            columns, "category", columns.category_id_of, columns.category_ids
        ),
    )


def picked(records: Sequence[Raw], rows: np.ndarray) -> list[Raw]:
    """Return the records in `rows`, whole numbers or bool."""
    numbers = np.flatnonzero(rows) if rows.dtype == bool else rows
    return [records[row] for row in numbers.tolist()]


def write_documents(documents: Mapping[Path, Mapping[str, Any]]) -> None:
    """Write json files, without spaces, in UTF-8: all of them, or none where one cannot be made.

    Raises DetrKitError, naming the file, where it cannot be written.
    """
    with ExitStack() as stack:
        for path, content in documents.items():
            text = msgspec.json.format(msgspec.json.encode(content), indent=-1)
            try:
                stack.enter_context(atomic_write(path)).write_bytes(text)
            except OSError as error:
                raise DetrKitError(f"{path}: cannot write the file: {error.strerror}") from error


def require_not_among(outs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise where a file to be written is read as well, is written twice, or may be wanted.

    Only files called .json are written over: others are pictures and labels.
    """
    taken = {path.resolve() for path in inputs}
    seen: set[Path] = set()
    for out in outs:
        place = out.resolve()
        if place.is_dir():
            raise DetrKitError(f"{out}: it is a folder; name a .json file to write")
        if place in taken:
            raise DetrKitError(f"{out}: it is an input; choose another file to write")
        if place in seen:
            raise DetrKitError(f"{out}: named twice as a file to write")
        if place.exists() and place.suffix.lower() != ".json":
            raise DetrKitError(f"{out}: it is there and no .json; choose another file to write")
        seen.add(place)


def unknown_class(name: str, names: Sequence[str], where: Path) -> DetrKitError:
    """Return the error for a class that is none of `names`, with the one that is spelt nearest."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not near:
        matches = difflib.get_close_matches(
            name.lower(), [known.lower() for known in names], n=1, cutoff=0.5
        )
        near = [known for known in names if [known.lower()] == matches][:1]
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {listed(names)}"
    return DetrKitError(f"{where}: no class is called {name!r}{hint}")
