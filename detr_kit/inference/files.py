"""Detection in files and folders of pictures, written as drawings and as COCO results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write
from detr_kit.inference.detector import Detector

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def predict_files(
    detector: Detector,
    inputs: Iterable[str | Path],
    *,
    out: str | Path | None = None,
    json_path: str | Path | None = None,
    threshold: float = 0.5,
    batch_size: int = 8,
) -> list[tuple[Path, Detections]]:
    """Detect in every picture that `inputs` name; return each with what was found in it.

    `out` is a folder for drawings, `json_path` a COCO results file; each of its rows also has the
    picture's `file_name`, and its image ids are those of `image_ids_of`. Raises DetrKitError for
    inputs that do not exist or cannot be read; the results file is then not written.
    """
    pictures = expand_inputs(inputs)
    drawings = output_paths(pictures, out) if out is not None else []
    found: list[tuple[Path, Detections]] = []
    console = Console(stderr=True)
    starts = range(0, len(pictures), batch_size)
    for start in track(starts, "predicting", console=console, disable=not console.is_terminal):
        batch = pictures[start : start + batch_size]
        found += zip(
            batch, detector.predict(batch, threshold=threshold, batch_size=batch_size), strict=True
        )
        for (picture, detections), drawing in zip(found[start:], drawings[start:], strict=False):
            with atomic_write(drawing) as temporary:
                detections.draw(picture).save(temporary)
    if json_path is not None:
        rows: list[dict[str, Any]] = [
            {**row, "file_name": picture.name}
            for image_id, (picture, detections) in zip(image_ids_of(pictures), found, strict=True)
            for row in detections.to_coco(image_id)
        ]
        with atomic_write(json_path) as temporary:
            temporary.write_text(json.dumps(rows), encoding="utf-8")
    return found


def image_ids_of(pictures: list[Path]) -> list[int]:
    """Return an image id for each picture.

    The numbers in the files' names where every name is a number of its own, as in COCO
    (000000000139.jpg is image 139); else 1, 2, ... in the order of the list.
    """
    stems = [picture.stem for picture in pictures]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        ids = [int(stem) for stem in stems]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(pictures) + 1))


def expand_inputs(inputs: Iterable[str | Path]) -> list[Path]:
    """Return the pictures that files and folders name, each once, in the order given.

    A folder gives its pictures and those of its subfolders, by path, without hidden ones. A file
    is taken as it is, whatever its suffix. Raises DetrKitError for an input that does not exist,
    a folder without pictures, and where nothing was given.
    """
    found: dict[Path, Path] = {}
    for given in map(Path, inputs):
        if given.is_dir():
            pictures = _pictures_of(given)
            if not pictures:
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                raise DetrKitError(f"{given}: the folder holds no picture ({suffixes})")
        elif given.is_file():
            pictures = [given]
        else:
            raise DetrKitError(f"{given}: no such file or folder")
        for picture in pictures:
            found.setdefault(picture.resolve(), picture)
    if not found:
        raise DetrKitError("no pictures given")
    return list(found.values())


def output_paths(pictures: list[Path], folder: str | Path) -> list[Path]:
    """Return where in `folder` each picture's drawing goes: distinct pictures, distinct files.

    Paths below the deepest folder that holds all pictures are kept; a suffix that is not a known
    picture format gets `.png` added. Raises DetrKitError where a drawing would replace one of the
    pictures.
    """
    real = {picture.resolve(): None for picture in pictures}  # a set in order
    common = os.path.commonpath([picture.parent for picture in real])
    paths = []
    for picture in real:
        path = Path(folder) / picture.relative_to(common)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            path = path.with_name(path.name + ".png")
        if path.resolve() in real:
            raise DetrKitError(f"{folder}: the drawing of {picture} would replace a picture")
        paths.append(path)
    return paths


def _pictures_of(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
