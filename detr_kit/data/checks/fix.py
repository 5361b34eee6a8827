"""Writes a repaired copy of a COCO file, with a log of every change and of what is left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import msgspec
from msgspec import Raw

from detr_kit.data.checks.findings import (
    KINDS,
    REPAIRED_BY_PICTURES,
    CheckReport,
    Finding,
    Findings,
)
from detr_kit.data.checks.labels import check_labels
from detr_kit.data.checks.naming import Naming, quoted
from detr_kit.data.checks.record_forms import put_right
from detr_kit.data.checks.repairs import Repairs, plan_repairs
from detr_kit.data.coco_file import CocoColumns, CocoRecords, columns_of, read_columns
from detr_kit.data.json_file import decode_json, read_bytes
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write, is_one_of

_SECTIONS = ("images", "annotations", "categories")
# What only the pictures show; a report has it, the json does not.
_PICTURE_KINDS = set(tuple(KINDS)[tuple(KINDS).index("file_missing") :]) - {"not_listed"}


@dataclass(frozen=True)
class Repaired:
    """What a repair did: lines of the log, records that went, and findings that are still there."""

    out: Path
    log: Path
    num_changes: int
    num_removed: dict[str, int]
    left: tuple[Finding, ...]


def fix(
    annotations: str | Path,
    out: str | Path,
    report: CheckReport | None = None,
    *,
    images: str | Path | None = None,
) -> Repaired:
    """Write a repaired copy of `annotations` to `out`, and a log beside it with a line a change.

    - Removed: annotations that are malformed, of unknown images or categories (but where all ids
      seem to be shifted by one), without a box, or with one that is not finite, has no side or
      lies outside; objects that are there twice;
      images that are malformed, without a name, or whose name leads out of the folder, with their
      annotations; the second of two images with one id, and of two categories alike; a category
      without objects whose name another one has.
    - Changed: boxes that pass the border are clipped, unless most of them is outside; corners,
      centres and fractions become x, y, w, h in pixels where nearly all of the file has them, and
      corners of single images where the areas prove them; areas that are missing or wrong, or were
      w times h of a changed box, become w times h; `iscrowd` becomes 0 where missing; annotation
      ids that are missing, taken or words become new ones above the largest; numbers written as
      text or, for whole ones, with decimals are written as numbers; sizes that are missing are read
      from the files in `images`, where that is given, and so are sizes that the boxes speak
      against, and names that differ in the case of letters.
    - Left, and listed at the end of the log: all else, of the pictures by `report`; so are the
      boxes of an image whose size or box format is in doubt.

    Other records are copied as they are written. Raises DetrKitError where the file is no COCO
    json, where no image or no annotation at all could be kept, as in one of another format, where
    `out` or the log exists already, and where they cannot be written.
    """
    annotations, out = Path(annotations), Path(out)
    log = out.with_suffix(".log.txt")
    _require_other_files(annotations, (out, log))
    try:
        with (
            atomic_write(out) as new_json,
            atomic_write(log) as new_log,
            new_log.open("w", encoding="utf-8") as lines,
        ):
            image_dir = None if images is None else Path(images)
            editor = _write_repaired(annotations, new_json, lines, image_dir)
            by_pictures = None if image_dir is None else editor.plan.pictures.left
            left = _left_over(annotations, new_json, report, by_pictures)
            _write_end(lines, editor.num_changes, left)
    except OSError as error:
        raise DetrKitError(f"{out}: cannot write the file: {error.strerror or error}") from error
    return Repaired(out, log, editor.num_changes, editor.num_removed, left)


def _require_other_files(annotations: Path, written: Iterable[Path]) -> None:
    for path in written:
        if path.is_dir():
            raise DetrKitError(f"{path}: it is a folder; name a .json file to write")
        if is_one_of(path, [annotations]):
            raise DetrKitError(f"{path}: it is the file to repair; choose another file to write")
        if path.exists():
            raise DetrKitError(f"{path}: it is there already; choose a new file to write")


def _write_repaired(
    annotations: Path, new_json: Path, lines: TextIO, image_dir: Path | None
) -> _Editor:
    """Write json and log; return what did it, with its numbers of lines and removed records."""
    content = read_bytes(annotations)
    document = decode_json(annotations, content, dict[str, Raw])
    records = _records(annotations, document)
    columns = columns_of(annotations, records)
    reformed = put_right(records, columns.malformed)
    if any(reformed.values()):
        columns = columns_of(annotations, records)
    plan = plan_repairs(columns, image_dir)
    _require_something_left(columns, records, plan)
    editor = _Editor(columns, plan, reformed, lines)
    if not _is_plain_json(content):
        editor.log(annotations.name, "rewritten as plain json: UTF-8, null for NaN and Infinity")
    with new_json.open("wb") as file:
        file.write(b"{")
        for place, (key, value) in enumerate(document.items()):
            file.write(b"%s%s: " % (b",\n" if place else b"\n", msgspec.json.encode(key)))
            if key in _SECTIONS:
                _write_list(file, editor.records(key, getattr(records, key)))
            else:
                file.write(value)
        file.write(b"\n}\n")
    return editor


def _records(path: Path, document: dict[str, Raw]) -> CocoRecords:
    lists: dict[str, list[Raw]] = {}
    for section in _SECTIONS:
        if section not in document:
            raise DetrKitError(f"{path}: not a COCO annotation file: it has no {section}")
        lists[section] = decode_json(path, document[section], list[Raw])
    return CocoRecords(**lists)


def _is_plain_json(content: bytes) -> bool:
    try:
        msgspec.json.decode(content, type=Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _require_something_left(columns: CocoColumns, records: CocoRecords, plan: Repairs) -> None:
    """Raise where all images or all annotations would go: that is no damage, but another format."""
    reasons: dict[str, list[str]] = {section: [] for section in _SECTIONS}
    for bad in columns.malformed:
        reasons[bad.section].append(str(bad))
    naming = Naming(columns, plan.image_rows)
    reasons["images"] += [f"{naming.image(row)}: {why}" for row, why in plan.removed_images.items()]
    for section in ("images", "annotations"):
        total, removed = len(getattr(records, section)), reasons[section]
        if removed and len(removed) == total:
            raise DetrKitError(
                f"{columns.path}: a repair would remove all of its {total} {section}; {removed[0]}"
            )


def _write_list(file: BinaryIO, records: Iterable[Raw | bytes]) -> None:
    file.write(b"[")
    for place, record in enumerate(records):
        file.write(b",\n" if place else b"\n")
        file.write(record)
    file.write(b"\n]")


class _Editor:
    """Yields the records of a section as they will be, and writes a line for every change."""

    def __init__(
        self,
        columns: CocoColumns,
        plan: Repairs,
        reformed: dict[str, dict[int, str]],
        lines: TextIO,
    ) -> None:
        self.columns = columns
        self.plan = plan
        self.naming = Naming(columns, plan.image_rows)
        self.lines = lines
        self.num_changes = 0
        self.num_removed = dict.fromkeys(_SECTIONS, 0)
        self._reformed = reformed
        self._malformed = {(bad.section, bad.position): str(bad) for bad in columns.malformed}
        self._changed = plan.changed_annotations()
        self._kept = plan.kept

    def records(self, section: str, records: list[Raw]) -> Iterator[Raw | bytes]:
        """Yield what is kept of the records of `section`."""
        edit = {"images": self._image, "annotations": self._annotation}.get(section, self._category)
        rows = enumerate(self.columns.positions[section].tolist())
        row, position_of_row = next(rows, (-1, -1))
        for position, record in enumerate(records):
            if position == position_of_row:
                self._log_form(section, position, row)
                edited = edit(row, record)
                row, position_of_row = next(rows, (-1, -1))
            else:
                edited = self._malformed_record(section, position, record)
            if edited is None:
                self.num_removed[section] += 1
            else:
                yield edited

    def log(self, name: str, change: str) -> None:
        self.num_changes += 1
        self.lines.write(f"{name}: {change}\n")

    def _log_form(self, section: str, position: int, row: int) -> None:
        change = self._reformed[section].get(position)
        if change is not None:
            name = {"images": self.naming.image, "annotations": self.naming.annotation}.get(
                section, self.naming.category
            )
            self.log(name(row), change)

    def _malformed_record(self, section: str, position: int, record: Raw) -> Raw | None:
        if section == "categories":  # without it, all of its objects would be lost
            return record
        self.log(self._malformed[section, position], "removed")
        return None

    def _image(self, row: int, record: Raw) -> Raw | bytes | None:
        reason = self.plan.removed_images.get(row)
        if reason is not None:
            self.log(self.naming.image(row), f"removed: {reason}")
            return None
        pictures, changes = self.plan.pictures, dict[str, tuple[object, str]]()
        if row in pictures.names:
            name = pictures.names[row]
            changes["file_name"] = name, f"file_name -> {quoted(name)}, as the file is called"
        height, width = pictures.sizes_hw[row].tolist()
        if (height, width) != tuple(self.columns.sizes_hw[row].tolist()):
            text = f"width and height -> {width} x {height}, as in the file"
            changes |= {"width": (width, text), "height": (height, "")}
        return self._edited(self.naming.image(row), record, changes) if changes else record

    def _annotation(self, row: int, record: Raw) -> Raw | bytes | None:
        if not self._kept[row]:
            self.log(self.naming.annotation(row), f"removed: {self.plan.why_removed(row)}")
            return None
        if not self._changed[row]:
            return record
        return self._edited(self.naming.annotation(row), record, self.plan.changes_of(row))

    def _category(self, row: int, record: Raw) -> Raw | None:
        reason = self.plan.removed_categories.get(row)
        if reason is None:
            return record
        self.log(self.naming.category(row), f"removed: {reason}")
        return None

    def _edited(
        self, name: str, record: Raw, changes: dict[str, tuple[object, str]]
    ) -> Raw | bytes:
        fields: dict[str, Any]
        try:
            fields = msgspec.json.decode(record, type=dict[str, Raw])
        except UnicodeDecodeError:  # in the name of a field that nobody asked for
            text = bytes(record).decode(errors="replace")
            fields = msgspec.json.decode(text, type=dict[str, Raw])
            self.log(name, "bytes that are no UTF-8 -> \ufffd")
        for field, (value, text) in changes.items():
            fields[field] = value
            if text:
                self.log(name, text)
        return msgspec.json.encode(fields)


def _left_over(
    annotations: Path, new_json: Path, report: CheckReport | None, by_pictures: Findings | None
) -> tuple[Finding, ...]:
    """Check the repaired file; what the pictures showed is as it was, but for names and sizes."""
    findings = Findings(annotations)
    check_labels(read_columns(new_json), findings, num_queries=None)
    found = [one for one in findings.listed() if one.severity != "note"]
    found += () if by_pictures is None else by_pictures.listed()
    asked = () if by_pictures is None else REPAIRED_BY_PICTURES
    kinds = _PICTURE_KINDS - set(asked)
    for one in () if report is None else report.findings:
        if one.annotations == annotations and one.kind in kinds:
            found.append(one)
    return tuple(found)


def _write_end(lines: TextIO, num_changes: int, left: Iterable[Finding]) -> None:
    lines.write(f"changes: {num_changes}\n")
    for found in left:
        lines.write(f"left: {found.kind} ({found.count}): {found.meaning}\n")
        lines.writelines(f"left: {found.kind}: {case.text}\n" for case in found.cases)
        if found.count > len(found.cases):
            lines.write(f"left: {found.kind}: and {found.count - len(found.cases)} more\n")
