"""Which pictures files and folders name, and the image ids of their results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from detr_kit.errors import DetrKitError
from detr_kit.images import URL_REFUSED, is_url

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def expand_inputs(inputs: Iterable[str | Path]) -> list[Path]:
    """Return the pictures that files and folders name, each once, in the order given.

    A folder gives its pictures and those of its subfolders, by path, without hidden ones. A file
    is taken as it is, whatever its suffix. Raises DetrKitError for an input that does not exist,
    a folder without pictures, and where nothing was given.
    """
    found: dict[Path, Path] = {}
    for name in inputs:
        given = Path(name)
        if given.is_dir():
            pictures = _pictures_of(given)
            if not pictures:
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                raise DetrKitError(f"{given}: the folder holds no picture ({suffixes})")
        elif given.is_file():
            pictures = [given]
        elif is_url(name):
            raise DetrKitError(f"{name}: {URL_REFUSED}")
        else:
            raise DetrKitError(f"{given}: no such file or folder")
        for picture in pictures:
            found.setdefault(picture.resolve(), picture)
    if not found:
        raise DetrKitError("no pictures given")
    return list(found.values())


def image_ids_of(pictures: Sequence[Path], known: Mapping[str, int] | None = None) -> list[int]:
    """Return an image id for each picture.

    `known` gives the ids of a data set by its file names, paths below any folder; without it, ids
    are the numbers in the files' names where every name is a number of its own, as in COCO
    (000000000139.jpg is image 139), else 1, 2, ... in the order of the list.

    Raises DetrKitError for a picture that is not in `known`, and for two that are one of it.
    """
    if known is not None:
        return _ids_by_name(pictures, known)
    stems = [picture.stem for picture in pictures]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        ids = [int(stem) for stem in stems]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(pictures) + 1))


def _ids_by_name(pictures: Sequence[Path], known: Mapping[str, int]) -> list[int]:
    by_parts = {Path(name).parts: image_id for name, image_id in known.items()}
    taken: dict[int, Path] = {}
    for picture in pictures:
        parts = Path(os.path.abspath(picture)).parts  # not resolved: links may have other names
        ends = (parts[start:] for start in range(len(parts)))  # the longest first
        image_id = next((by_parts[end] for end in ends if end in by_parts), None)
        if image_id is None:
            raise DetrKitError(f"{picture}: the annotations name no such picture")
        if image_id in taken:
            raise DetrKitError(
                f"{picture}: the annotations name one picture so, image {image_id}, which "
                f"{taken[image_id]} is too"
            )
        taken[image_id] = picture
    return list(taken)


def _pictures_of(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
