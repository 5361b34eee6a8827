"""Telling before long work what could not be written after it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from detr_kit.errors import DetrKitError
from detr_kit.files import is_one_of


def require_output(
    path: str | Path, inputs: Iterable[str | Path] = (), *, option: str | None = None
) -> None:
    """Raise DetrKitError where a file cannot be written, or is one of those that are read.

    `option` is what the command line calls the file.
    """
    name = str(path) if option is None else f"{option} {path}"
    if Path(path).is_dir():
        raise DetrKitError(f"{name}: it is a folder; name a file to write")
    if Path(path).exists() and not Path(path).is_file():
        raise DetrKitError(f"{name}: it is a device or a pipe; name a file to write")
    if is_one_of(path, inputs):
        raise DetrKitError(f"{name}: it is a file to read; choose another to write")
    place = Path(os.path.abspath(path)).parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise DetrKitError(f"{name}: {place} is no folder")
    if not os.access(place, os.W_OK):
        raise DetrKitError(f"{name}: the folder {place} cannot be written to")
