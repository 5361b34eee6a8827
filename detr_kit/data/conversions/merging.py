"""COCO files joined into one. What does not collide stays as it was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from detr_kit.data.coco_file import NO_ID
from detr_kit.data.conversions.documents import (
    CocoDocument,
    read_document,
    require_not_among,
    write_documents,
)
from detr_kit.data.conversions.reports import MergeReport
from detr_kit.data.names import stays_inside
from detr_kit.errors import DetrKitError

_SECTIONS = ("images", "annotations", "categories", "licenses")


def merge(
    sources: Sequence[str | Path], out: str | Path, *, prefixes: Sequence[str] = ()
) -> MergeReport:
    """Write one COCO file of several.

    Categories are joined by name and get a new id where theirs is taken by another name; so do
    licenses by all they say. Images and annotations get a new id where theirs is taken by an
    earlier source. Records keep all their keys; of `info` and other keys of the file, the first
    source's are kept. The report's notes say what was changed.

    `prefixes`, one a source, go before its file names: "a/" for the pictures of folder a. Raises
    DetrKitError where two sources have the same file name, and for what `read_document` refuses.
    """
    out, paths = Path(out), [Path(source) for source in sources]
    if len(paths) < 2:
        raise DetrKitError("merging needs two sources or more")
    if prefixes and len(prefixes) != len(paths):
        raise DetrKitError(f"{len(prefixes)} prefixes for {len(paths)} sources; give one for each")
    require_not_among([out], paths)
    merger = _Merger([read_document(path) for path in paths])
    for place, document in enumerate(merger.documents):
        merger.add(document, prefixes[place] if prefixes else "")
    content = {"images": [], "annotations": [], "categories": [], **merger.content}
    write_documents({out: content})
    return MergeReport(
        out=out,
        num_images=len(content["images"]),
        num_objects=len(content["annotations"]),
        num_categories=len(content["categories"]),
        notes=tuple(merger.notes),
    )


class _Ids:
    """Ids that are taken, and new ones beyond all that any source has."""

    def __init__(self, known: Iterable[int]) -> None:
        self.taken: set[int] = set()
        self.next = max((0, *known)) + 1

    def take(self, id_: int) -> int:
        """Return the id itself where it is free, or a new one."""
        if id_ in self.taken:
            id_, self.next = self.next, self.next + 1
        self.taken.add(id_)
        return id_


class _Merger:
    def __init__(self, documents: Sequence[CocoDocument]) -> None:
        self.documents = documents
        columns = [document.columns for document in documents]
        self.image_ids = _Ids(id_ for one in columns for id_ in one.image_ids.tolist())
        self.annotation_ids = _Ids(id_ for one in columns for id_ in one.annotation_ids.tolist())
        self.category_ids = _Ids(id_ for one in columns for id_ in one.category_ids.tolist())
        self.license_ids = _Ids(
            record["id"] for one in documents for record in _licenses(one) if _has_id(record)
        )
        self.id_of_name: dict[str, int] = {}
        self.id_of_license: dict[bytes, int] = {}
        self.source_of_file: dict[str, CocoDocument] = {}
        self.content: dict[str, Any] = {}
        self.notes: list[str] = []

    def add(self, document: CocoDocument, prefix: str) -> None:
        for key, value in document.content.items():
            if key not in _SECTIONS:
                self._add_other(document, key, value)
        categories = self._add_categories(document)
        licenses = self._add_licenses(document)
        images = self._add_images(document, prefix, licenses)
        self._add_annotations(document, images, categories)

    def _section(self, name: str) -> list[Any]:
        section: list[Any] = self.content.setdefault(name, [])
        return section

    def _add_other(self, document: CocoDocument, key: str, value: Raw) -> None:
        kept = self.content.setdefault(key, value)
        said = msgspec.json.decode(value)
        if said and said != msgspec.json.decode(kept):
            self.notes.append(f"{document.path}: its {key!r} is left out, the first one is kept")

    def _add_categories(self, document: CocoDocument) -> dict[int, int]:
        """Return the new id of every old one."""
        new_ids: dict[int, int] = {}
        for record, old, name in zip(
            document.records.categories,
            document.columns.category_ids.tolist(),
            document.columns.category_names,
            strict=True,
        ):
            if name not in self.id_of_name:
                self.id_of_name[name] = self.category_ids.take(old)
                self._section("categories").append(_with(record, id=(old, self.id_of_name[name])))
            new = new_ids[old] = self.id_of_name[name]
            if new != old:
                self.notes.append(f"{document.path}: category {name!r} has id {new}, was {old}")
        return new_ids

    def _add_licenses(self, document: CocoDocument) -> dict[int, int]:
        """Return the new id of every old one."""
        new_ids: dict[int, int] = {}
        section = self._section("licenses") if "licenses" in document.content else []
        for record in _licenses(document):
            if not _has_id(record):
                section += [record] if record not in section else []
                continue
            old = record["id"]
            said = msgspec.json.encode({**record, "id": None}, order="deterministic")
            if said not in self.id_of_license:
                new = self.id_of_license[said] = self.license_ids.take(old)
                section.append({**record, "id": new})
            new_ids[old] = self.id_of_license[said]
        return new_ids

    def _add_images(
        self, document: CocoDocument, prefix: str, licenses: Mapping[int, int]
    ) -> dict[int, int]:
        """Return the new id of every old one."""
        new_ids: dict[int, int] = {}
        for record, old, name in zip(
            document.records.images,
            document.columns.image_ids.tolist(),
            document.columns.file_names,
            strict=True,
        ):
            file_name = prefix + name
            other = self.source_of_file.setdefault(file_name, document)
            if other is not document:
                raise DetrKitError(
                    f"{document.path}: the file name {file_name!r} is in {other.path} too; give "
                    "each source a prefix (--prefix)"
                )
            if prefix and not stays_inside(file_name):
                raise DetrKitError(
                    f"prefix {prefix!r}: {file_name!r} must stay inside the image folder"
                )
            license_ = msgspec.json.decode(record, type=_License).license
            new_license = licenses.get(license_, license_) if type(license_) is int else license_
            new_ids[old] = self.image_ids.take(old)
            self._section("images").append(
                _with(
                    record,
                    id=(old, new_ids[old]),
                    file_name=(name, file_name),
                    license=(license_, new_license),
                )
            )
        self._note_new(document, "images", new_ids.items())
        return new_ids

    def _add_annotations(
        self, document: CocoDocument, images: Mapping[int, int], categories: Mapping[int, int]
    ) -> None:
        columns = document.columns
        pairs = []
        for record, old, image, category in zip(
            document.records.annotations,
            columns.annotation_ids.tolist(),
            columns.image_id_of.tolist(),
            columns.category_id_of.tolist(),
            strict=True,
        ):
            pairs.append((old, old if old == NO_ID else self.annotation_ids.take(old)))
            self._section("annotations").append(
                _with(
                    record,
                    id=pairs[-1],
                    image_id=(image, images[image]),
                    category_id=(category, categories[category]),
                )
            )
        self._note_new(document, "annotations", pairs)

    def _note_new(
        self, document: CocoDocument, what: str, pairs: Iterable[tuple[int, int]]
    ) -> None:
        changed = sum(old != new for old, new in pairs)
        if changed:
            self.notes.append(f"{document.path}: {changed} {what} have a new id, theirs was taken")


class _License(msgspec.Struct):
    license: Any = None


def _licenses(document: CocoDocument) -> list[Any]:
    found = msgspec.json.decode(document.content.get("licenses", b"[]"))
    return found if isinstance(found, list) else []


def _has_id(record: Any) -> bool:
    """Whether images can refer to a license."""
    return isinstance(record, dict) and type(record.get("id")) is int


def _with(record: Raw, **values: tuple[Any, Any]) -> Raw:
    """Return a record with new values where they differ from the old; the rest as written."""
    changed = {key: new for key, (old, new) in values.items() if new != old}
    if not changed:
        return record
    fields = msgspec.json.decode(record, type=dict[str, Raw])
    fields.update({key: Raw(msgspec.json.encode(new)) for key, new in changed.items()})
    return Raw(msgspec.json.encode(fields))
