"""Annotation files of Pascal VOC.

Pixels are counted from 1 and a box holds the pixels xmin to xmax, both of them (Everingham and
Winn, The PASCAL Visual Object Classes Challenge Development Kit).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from detr_kit.errors import DetrKitError
from detr_kit.sizes import SizeHW

# Statements on an object that are kept: 0 or 1.
FLAGS = ("difficult", "truncated", "occluded")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """`box_xyxy` (4,) float64 in pixels from 0, the right and lower side beyond the last pixel.

    `fault` says why the box cannot be used, where it has no pixel or is not finite.
    """

    name: str
    box_xyxy: np.ndarray
    flags: Mapping[str, int]
    fault: str | None = None


@dataclass(frozen=True)
class VocAnnotation:
    """What a file says; `file_name` is "" and `size_hw` None where it is silent."""

    file_name: str
    size_hw: SizeHW | None
    objects: tuple[VocObject, ...]


def read_voc(path: Path) -> VocAnnotation:
    """Read an annotation file.

    Raises DetrKitError, naming file and object, where it is no xml, has a document type, or an
    object has no name or no box of four numbers.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise DetrKitError(f"{path}: expected an <annotation>, got <{root.tag}>")
    objects = [
        _named_object(path, number, element)
        for number, element in enumerate(root.findall("object"), 1)
    ]
    return VocAnnotation(_text(root, "filename"), _size_hw(root), tuple(objects))


def _parse(path: Path) -> ElementTree.Element:
    """Build the tree of a file without a document type.

    Entities are declared there: short ones that grow to gigabytes, or that name other files. The
    parser says whether there is one, in any encoding.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> NoReturn:
        raise DetrKitError(f"{path}: a document type (<!DOCTYPE>) is not accepted; remove it")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise DetrKitError(f"{path}: cannot read the file: {error.strerror}") from error
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DetrKitError(f"{path}: not an xml file: {error}") from error
    return builder.close()


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _size_hw(root: ElementTree.Element) -> SizeHW | None:
    try:
        height, width = (int(float(_text(root, f"size/{side}"))) for side in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if min(height, width) > 0 else None


def _named_object(path: Path, number: int, element: ElementTree.Element) -> VocObject:
    try:
        return _object(element)
    except ValueError as error:
        raise DetrKitError(f"{path}: object {number}: {error}") from error


def _object(element: ElementTree.Element) -> VocObject:
    """Return the object; raises ValueError with the reason where it is none."""
    name = _text(element, "name")
    if not name:
        raise ValueError("it has no <name>")
    box = element.find("bndbox")
    if box is None:
        raise ValueError("it has no <bndbox>")
    values = [_coordinate(box, side) for side in _SIDES]
    box_xyxy = np.array(values) - [1, 1, 0, 0]
    fault = None
    if not (box_xyxy[2:] > box_xyxy[:2]).all() or not np.isfinite(box_xyxy).all():
        fault = f"the box {dict(zip(_SIDES, values, strict=True))} has no pixel"
    texts = {tag: _text(element, tag).lower() for tag in FLAGS}
    flags = {tag: int(text in ("1", "true")) for tag, text in texts.items() if text}
    return VocObject(name, box_xyxy, flags, fault)


def _coordinate(box: ElementTree.Element, side: str) -> float:
    text = _text(box, side)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"<{side}> must be a number, got {text!r}") from None


def voc_text(file_name: str, size_hw: SizeHW, objects: tuple[VocObject, ...]) -> bytes:
    """Return the content of an annotation file, boxes rounded to whole pixels inside the picture.

    A box keeps at least one pixel. Raises DetrKitError for text that xml cannot hold.
    """
    root = ElementTree.Element("annotation")
    _add(root, "filename", file_name)
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", size_hw[1]), ("height", size_hw[0]), ("depth", 3)):
        _add(size, tag, str(value))
    _add(root, "segmented", "0")
    for one in objects:
        element = ElementTree.SubElement(root, "object")
        _add(element, "name", one.name)
        # The development kit's own readers expect these.
        _add(element, "pose", "Unspecified")
        for tag, flag in {"truncated": 0, "difficult": 0, **one.flags}.items():
            _add(element, tag, str(flag))
        box = ElementTree.SubElement(element, "bndbox")
        for tag, value in zip(_SIDES, _pixels(one.box_xyxy, size_hw), strict=True):
            _add(box, tag, str(value))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _pixels(box_xyxy: np.ndarray, size_hw: SizeHW) -> list[int]:
    low, high = np.rint(box_xyxy[:2]) + 1, np.rint(box_xyxy[2:])
    # Where rounding leaves nothing, the pixel that holds the middle.
    middle = np.floor(box_xyxy.reshape(2, 2).mean(axis=0)) + 1
    middle = np.minimum(middle, size_hw[::-1])
    empty = high < low
    pixels = np.concatenate([np.where(empty, middle, low), np.where(empty, middle, high)])
    return pixels.astype(int).tolist()


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    if text != text.strip() or any(ord(character) < 32 for character in text):
        raise DetrKitError(f"{text!r}: xml keeps no control characters and no spaces at the ends")
    ElementTree.SubElement(parent, tag).text = text
