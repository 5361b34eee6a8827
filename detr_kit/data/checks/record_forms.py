"""Numbers that a COCO record holds in another form: 640.0 for 640, "12" for 12."""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw

from detr_kit.data.coco_file import CocoRecords, Malformed

_WHOLE = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
    "categories": ("id",),
}
# A whole number with zeros for decimals, or as text; of at most 18 digits, as longer ones are none
# that can be kept.
_AS_WHOLE = re.compile(rb'"?\s*([+-]?\d{1,18})(?:\.0*)?\s*"?')
_AS_DECIMAL = re.compile(rb'"\s*([+-]?\d{1,18}(?:\.\d{0,18})?)\s*"')
_NUMBER = re.compile(rb"-?\d[\d.eE+-]*")


def put_right(records: CocoRecords, malformed: tuple[Malformed, ...]) -> dict[str, dict[int, str]]:
    """Replace malformed records that only write numbers in another form, where they stand.

    Returns, for each section, what was changed in the record at a place. Other malformed records
    stay as they are.
    """
    changes: dict[str, dict[int, str]] = {section: {} for section in _WHOLE}
    for record in malformed:
        listed: list[Raw] = getattr(records, record.section)
        found = _in_right_form(record.section, listed[record.position])
        if found is not None:
            listed[record.position], changes[record.section][record.position] = found
    return changes


def _in_right_form(section: str, record: Raw) -> tuple[Raw, str] | None:
    try:
        fields = msgspec.json.decode(record, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    changed = []
    for name, value in fields.items():
        better = _better(section, name, bytes(value))
        if better is not None and better != bytes(value):
            fields[name] = Raw(better)
            changed.append(f"{name} {bytes(value).decode()} -> {better.decode()}")
    return (Raw(msgspec.json.encode(fields)), ", ".join(changed)) if changed else None


def _better(section: str, name: str, value: bytes) -> bytes | None:
    """Return the value in the form that COCO has for the field; None where it needs no other."""
    if name in _WHOLE[section]:
        found = _AS_WHOLE.fullmatch(value)
        if found:
            return b"%d" % int(found[1])
        # Nothing in the file refers to the id of an annotation: it can get a new one.
        is_other_text = section == "annotations" and name == "id" and value.startswith(b'"')
        return b"null" if is_other_text else None
    if section == "categories" and name == "name":
        return b'"' + value + b'"' if _NUMBER.fullmatch(value) else None
    if section == "annotations" and name == "area":
        return _decimal(value)
    if section == "annotations" and name == "bbox":
        try:
            numbers = msgspec.json.decode(value, type=list[Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        better = [_decimal(bytes(number)) for number in numbers]
        if any(number is not None for number in better):
            kept = (new or bytes(old) for new, old in zip(better, numbers, strict=True))
            return b"[" + b", ".join(kept) + b"]"
    return None


def _decimal(value: bytes) -> bytes | None:
    found = _AS_DECIMAL.fullmatch(value)
    return msgspec.json.encode(float(found[1])) if found else None
