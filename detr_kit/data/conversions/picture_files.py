"""The picture files that labels of other formats belong to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from PIL import Image

from detr_kit.errors import DetrKitError
from detr_kit.images import TOO_LARGE, UNREADABLE, orientation_of, reason_of
from detr_kit.sizes import SizeHW

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# Orientations that swap height and width.
_TURNED = (5, 6, 7, 8)


def files_below(folder: Path, suffixes: frozenset[str]) -> list[str]:
    """Return the files of a folder and its sub-folders by sorted posix paths relative to it.

    Suffixes are compared in lower case. Names that start with a dot are left out. Links to folders
    are followed, but for those that lead back to a folder around them.
    """
    found = []
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not _leads_back(Path(where, name), folder)
        ]
        relative = Path(where).relative_to(folder)
        found += [
            (relative / name).as_posix()
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes
        ]
    return sorted(found)


def _leads_back(path: Path, folder: Path) -> bool:
    """Whether a path below `folder` is a link to a folder on the way to it, or around that."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    way = [parent for parent in path.parents if parent.is_relative_to(folder)]
    return any(parent.resolve().is_relative_to(target) for parent in way)


def upright_size_hw(path: Path) -> SizeHW:
    """Return the size of a picture as shown, its EXIF orientation applied; reads the header only.

    Raises DetrKitError, naming the file, where it is missing, no picture, or far too large.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = orientation_of(picture) in _TURNED
    except FileNotFoundError as error:
        raise DetrKitError(f"{path}: no such image file") from error
    except TOO_LARGE as error:
        raise DetrKitError(f"{path}: image too large: {error}") from error
    except UNREADABLE as error:
        raise DetrKitError(f"{path}: cannot read the image: {reason_of(error)}") from error
    return (width, height) if turned else (height, width)


def place_picture(picture: Path, target: Path, *, copy: bool) -> None:
    """Make `target` a link to a picture, or a copy.

    Raises DetrKitError where links cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copyfile(picture, target)
        return
    try:
        target.symlink_to(picture.resolve())
    except OSError as error:
        raise DetrKitError(
            f"{picture}: cannot link to the file: {error.strerror}; ask for copies (--copy)"
        ) from error
