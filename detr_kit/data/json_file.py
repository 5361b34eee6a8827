"""Reading json of any size into typed values; what is wrong with it is said with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypeVar

import msgspec

from detr_kit.errors import DetrKitError


def read_bytes(path: str | Path, kind: str = "annotation file") -> bytes:
    """Return the content of a file; raises DetrKitError naming it and its `kind`."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DetrKitError(f"{path}: no such {kind}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DetrKitError(f"{path}: cannot read the file: {reason}") from error


T = TypeVar("T")


def decode_json(path: Path, content: bytes, type_: type[T]) -> T:
    """Decode the content of `path`, also where it is json as only Python writes it.

    NaN and Infinity, which json has not, become null. Raises DetrKitError naming the file.
    """
    try:
        return msgspec.json.decode(content, type=type_)
    except msgspec.ValidationError as error:
        raise _not_coco(path, content, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError):
        content = _plain_json(path, content)
    except RecursionError as error:
        raise DetrKitError(f"{path}: not a json file: nested too deeply") from error
    try:
        return msgspec.json.decode(content, type=type_)
    except msgspec.ValidationError as error:
        raise _not_coco(path, content, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DetrKitError(f"{path}: not a json file: {_json_fault(content, error)}") from error
    except RecursionError as error:
        raise DetrKitError(f"{path}: not a json file: nested too deeply") from error


def _not_coco(path: Path, content: bytes, error: Exception) -> DetrKitError:
    fault = str(error)
    if bytes(content).lstrip()[:1] == b"[":  # a part of a file is msgspec's own kind of bytes
        fault = "it holds a list, as a file of results, not images, annotations and categories"
    return DetrKitError(f"{path}: not a COCO annotation file: {fault}")


def _plain_json(path: Path, content: bytes) -> bytes:
    """Return the content as UTF-8 with null for NaN and Infinity.

    Only bytes are rewritten: values of a file of hundreds of megabytes would take gigabytes.
    """
    if content.startswith(b"\x1f\x8b"):
        raise DetrKitError(f"{path}: not a json file: a gzip archive; unpack it first")
    try:
        encoding = json.detect_encoding(content)
        if encoding != "utf-8":
            content = content.decode(encoding).encode()
    except UnicodeError as error:
        raise DetrKitError(f"{path}: not a json file: {error}") from error
    return _without_nan(content) if _NOT_A_NUMBER.search(content) else content


_NEWLINE = b"\n"
_NOT_A_NUMBER = re.compile(rb"NaN|-?Infinity")
_QUOTE_OR_NAN = re.compile(rb'\\.|"|NaN|-?Infinity', re.DOTALL)


def _without_nan(content: bytes) -> bytes:
    written = bytearray()
    start = 0
    inside_text = False
    for match in _QUOTE_OR_NAN.finditer(content):
        token = match.group()
        if token == b'"':
            inside_text = not inside_text
        elif not inside_text and token[:1] != b"\\":
            written += content[start : match.start()] + b"null"
            start = match.end()
    return bytes(written + content[start:])


def _json_fault(content: bytes, error: Exception) -> str:
    """Say where the json breaks off or goes wrong, by the line."""
    if not content.strip():
        return "the file is empty"
    found = re.fullmatch(r"JSON is malformed: (.*) \(byte (\d+)\)", str(error))
    if found:
        before = content[: int(found[2])]
        column = len(before) - before.rfind(b"\n")
        return f"{found[1]} at line {before.count(_NEWLINE) + 1} column {column}"
    if "truncated" in str(error):
        return f"it ends too early, in line {content.count(_NEWLINE) + 1}; the file is cut off"
    return str(error)
