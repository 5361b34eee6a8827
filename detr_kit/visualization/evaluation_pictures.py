"""Pictures of an evaluation: the worst images, wrong detections and missed objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from detr_kit.evaluation.analysis import Analysis
from detr_kit.evaluation.examples import confident_false, missed_objects, worst_images
from detr_kit.visualization.example_drawings import Album, ComparedPicture, Crop

# What is tried for each that shall be shown, where some files cannot be read.
_TRIES = 3

_Drawn = TypeVar("_Drawn", ComparedPicture, Crop)
# The row of an example, that of its picture, and what draws it.
_Candidates = Iterable[tuple[int, int, Callable[[], _Drawn]]]
_Choose = Callable[[Analysis, Album, int], _Candidates[_Drawn]]


@dataclass(frozen=True)
class EvaluationPictures:
    """The examples of each sort, and the files that could not be shown with the reason."""

    worst: list[ComparedPicture]
    false: list[Crop]
    missed: list[Crop]
    skipped: dict[str, str]

    @property
    def has_drawings(self) -> bool:
        return any(picture.truth_drawing for picture in self.worst) or any(
            crop.drawing for crop in (*self.false, *self.missed)
        )


def evaluation_pictures(
    analysis: Analysis,
    folder: Path | None,
    *,
    num_worst: int,
    num_crops: int,
    max_bytes: int,
    max_crop_bytes: int,
) -> EvaluationPictures:
    """Draw examples of what went wrong; without a folder they are told in words.

    Files that cannot be read are skipped and named; a list of which none can be read is told in
    words too. JPEGs have about `max_bytes`, those of crops about `max_crop_bytes`. The same data
    give the same pictures.
    """
    album = Album(analysis, folder, max_bytes, max_crop_bytes)
    words = Album(analysis, None, max_bytes, max_crop_bytes)

    def drawn(choose: _Choose[_Drawn], count: int) -> list[_Drawn]:
        shown = _drawn(album, partial(choose, analysis, album), count)
        if shown or not album.skipped:
            return shown
        return _drawn(words, partial(choose, analysis, words), count)

    worst, false = drawn(_worst, num_worst), drawn(_false, num_crops)
    return EvaluationPictures(worst, false, drawn(_missed, num_crops), album.skipped)


def _drawn(album: Album, choose: Callable[[int], _Candidates[_Drawn]], count: int) -> list[_Drawn]:
    """Draw up to `count` examples; more are chosen only where some cannot be shown."""
    drawn: dict[int, _Drawn] = {}
    for number in (count, count * _TRIES):
        for row, image_row, draw in choose(number):
            if len(drawn) < count and row not in drawn and album.can_show(image_row):
                drawn[row] = draw()
        if len(drawn) == count or not album.skipped:
            break
    return list(drawn.values())


def _worst(
    analysis: Analysis, album: Album, count: int
) -> Iterator[tuple[int, int, Callable[[], ComparedPicture]]]:
    threshold = analysis.score_threshold
    for image in worst_images(analysis.evaluation, analysis.errors, threshold, count):
        yield image.image_row, image.image_row, partial(album.compared, image)


def _false(
    analysis: Analysis, album: Album, count: int
) -> Iterator[tuple[int, int, Callable[[], Crop]]]:
    examples = confident_false(analysis.evaluation, analysis.errors, count)
    columns = (examples.rows, examples.kinds, examples.partners)
    for row, kind, partner in zip(*(column.tolist() for column in columns), strict=True):
        image_row = int(album.found.image_rows[row])
        yield row, image_row, partial(album.false_crop, row, kind, partner)


def _missed(
    analysis: Analysis, album: Album, count: int
) -> Iterator[tuple[int, int, Callable[[], Crop]]]:
    threshold = analysis.score_threshold
    examples = missed_objects(analysis.evaluation, threshold, count, analysis.iou)
    for row, below in zip(examples.rows.tolist(), examples.rows_below.tolist(), strict=True):
        image_row = int(album.truth.image_rows[row])
        yield row, image_row, partial(album.missed_crop, row, below)
