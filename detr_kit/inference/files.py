"""Detection in files and folders of pictures, written as drawings and as COCO results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write
from detr_kit.images import ImageError
from detr_kit.inference.inputs import IMAGE_SUFFIXES, expand_inputs, image_ids_of
from detr_kit.inference.predictor import Predictor
from detr_kit.inference.thresholds import Threshold
from detr_kit.inference.tiles import predict_tiled
from detr_kit.outputs import require_output


def predict_files(
    predictor: Predictor,
    inputs: Iterable[str | Path],
    *,
    out: str | Path | None = None,
    json_path: str | Path | None = None,
    threshold: Threshold = 0.5,
    batch_size: int = 8,
    nms: float | None = None,
    tile: int | None = None,
    overlap: float = 0.2,
    known_ids: Mapping[str, int] | None = None,
    on_unreadable: Callable[[ImageError], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[tuple[Path, Detections]]:
    """Detect in every picture that `inputs` name; return each with what was found in it.

    `out` is a folder for drawings, `json_path` a COCO results file; each of its rows also has the
    picture's `file_name` below the folder that holds all, and its image ids are those of
    `image_ids_of`, for which `known_ids` are a data set's ids by file name. `on_unreadable` is told
    of pictures that cannot be read, which are left out; with `tile` and `overlap`, pictures are
    looked at as by `predict_tiled`; the rest is as in `Predictor.predict`. Once `should_stop` says
    so, no more pictures are begun, and what was found until then is written and returned.

    Raises DetrKitError for inputs that do not exist, for outputs that cannot be written or would
    replace a picture, and without `on_unreadable` for pictures that cannot be read; the results
    file is then not written.
    """
    pictures = expand_inputs(inputs)
    image_ids = image_ids_of(pictures, known_ids)
    drawings = {} if out is None else drawing_paths(pictures, out)
    if json_path is not None:
        require_output(json_path, pictures)
    due = takewhile(lambda _: not should_stop(), pictures)
    if tile is None:
        stream = predictor.stream(due, threshold, batch_size, nms=nms, on_unreadable=on_unreadable)
    else:

        def in_tiles(picture: Path) -> Detections:
            return predict_tiled(
                predictor,
                picture,
                threshold,
                tile=tile,
                overlap=overlap,
                batch_size=batch_size,
                nms=nms,
            )

        tiled = ((picture, _readable(in_tiles, picture, on_unreadable)) for picture in due)
        stream = ((picture, found) for picture, found in tiled if found is not None)
    found: list[tuple[Path, Detections]] = []
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("predicting", total=len(pictures))
        for picture, detections in stream:
            assert isinstance(picture, Path)
            found.append((picture, detections))
            if out is not None:
                with atomic_write(drawings[picture]) as temporary:
                    detections.draw(picture).save(temporary)
            progress.update(task, completed=len(found))
    if json_path is not None:
        _write_results(json_path, found, dict(zip(pictures, image_ids, strict=True)))
    return found


def _readable(
    detect: Callable[[Path], Detections],
    picture: Path,
    on_unreadable: Callable[[ImageError], None] | None,
) -> Detections | None:
    try:
        return detect(picture)
    except ImageError as error:
        if on_unreadable is None:
            raise
        on_unreadable(error)
        return None


def _write_results(
    path: str | Path, found: list[tuple[Path, Detections]], image_ids: Mapping[Path, int]
) -> None:
    names = dict(zip(image_ids, names_below(list(image_ids)), strict=True))
    rows: list[dict[str, Any]] = [
        {**row, "file_name": names[picture].as_posix()}
        for picture, detections in found
        for row in detections.to_coco(image_ids[picture])
    ]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(rows), encoding="utf-8")


def names_below(pictures: Sequence[Path]) -> list[Path]:
    """Return the pictures' paths below the deepest folder that holds all of them.

    Raises DetrKitError where there is none, as of two drives of Windows.
    """
    absolute = [Path(os.path.abspath(picture)) for picture in pictures]
    try:
        common = os.path.commonpath([picture.parent for picture in absolute])
    except ValueError as error:
        raise DetrKitError(f"{pictures[0]}: the pictures lie on several drives") from error
    return [picture.relative_to(common) for picture in absolute]


def drawing_paths(pictures: Sequence[Path], folder: str | Path) -> dict[Path, Path]:
    """Return where in `folder` the drawing of each picture goes.

    Paths below the deepest folder that holds all pictures are kept; a suffix that is not a known
    picture format gets `.png` added. Raises DetrKitError where a drawing would replace one of the
    pictures, or another drawing.
    """
    kept = {place for picture in pictures for place in _places(picture)}
    drawings: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for picture, name in zip(pictures, names_below(pictures), strict=True):
        drawing = Path(folder) / name
        if drawing.suffix.lower() not in IMAGE_SUFFIXES:
            drawing = drawing.with_name(drawing.name + ".png")
        if kept & _places(drawing):
            raise DetrKitError(f"{folder}: the drawing of {picture} would replace a picture")
        if drawing in taken:
            raise DetrKitError(
                f"{folder}: the drawings of {taken[drawing]} and {picture} would be one file"
            )
        taken[drawing] = picture
        drawings[picture] = drawing
    return drawings


def _places(path: Path) -> set[Path]:
    """A path and, where it is a link, what it leads to: writing replaces the link."""
    return {Path(os.path.abspath(path)), path.resolve()}
