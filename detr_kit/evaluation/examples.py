"""Which pictures, detections and objects are worth a look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detr_kit.evaluation.coco import Evaluation
from detr_kit.evaluation.confusion import reaches
from detr_kit.evaluation.error_kinds import ErrorKinds
from detr_kit.evaluation.match_table import UNMATCHED, Matches
from detr_kit.evaluation.ordering import falling_ranks, order_by

# Beside the places in KINDS.
RIGHT = -1
IGNORED = -2
# No class has more than this share of the examples while other classes have some too.
_SHARE = 0.25


@dataclass(frozen=True)
class ImageExample:
    """A picture with all that is shown and missed in it.

    - `image_row`: row of `truth.image_ids`;
    - `rows` (n,) int64: rows of `found` that reach the score, by falling score; `kinds` (n,) int8:
      places in KINDS, RIGHT, or IGNORED where COCO counts them neither way; `partners` (n,) int32:
      rows of `truth`, of what was found or see `ErrorKinds`, UNMATCHED where none;
    - `missed` (m,) int64: rows of `truth` that count and that none of them found.
    """

    image_row: int
    rows: np.ndarray
    kinds: np.ndarray
    partners: np.ndarray
    missed: np.ndarray

    @property
    def num_mistakes(self) -> int:
        """Wrong detections and missed objects."""
        return int((self.kinds >= 0).sum()) + len(self.missed)


@dataclass(frozen=True)
class FalseExamples:
    """Wrong detections by falling score.

    `rows` (n,) int64: rows of `found`; `kinds` (n,) int8, `partners` (n,) int32: see `ErrorKinds`.
    """

    rows: np.ndarray
    kinds: np.ndarray
    partners: np.ndarray


@dataclass(frozen=True)
class MissedExamples:
    """Missed objects by falling area.

    `rows` (n,) int64: rows of `truth`; `rows_below` (n,) int64: the row of `found` that finds the
    object but does not reach the score, UNMATCHED where none does.
    """

    rows: np.ndarray
    rows_below: np.ndarray


def worst_images(
    evaluation: Evaluation,
    errors: ErrorKinds,
    score_thresholds: float | np.ndarray,
    count: int = 24,
) -> tuple[ImageExample, ...]:
    """Return up to `count` pictures with unusually many mistakes at a score, the worst first.

    A mistake is a wrong detection that reaches the score, or an object that none which does has
    found; F1 = 2 TP / (2 TP + FP + FN) counts them alike. Of n = TP + FP + FN in a picture, m are
    mistakes, where p n would be usual, p being the share in all pictures together. They stand by
    (m - p n) / sqrt(n), which is, but for a factor, by how many standard deviations there are more
    than that. By m alone the most crowded pictures would come first, by F1 those of one object.
    Of equal ones that with the most mistakes goes before, then that with the best-scored wrong
    detection. Pictures without mistakes are left out. For `score_thresholds` see
    `confusion.reaches`.
    """
    matches = _matches(evaluation, errors.iou)
    shown = reaches(matches, score_thresholds)
    missed = _missed(matches, shown)
    chosen = _most_mistakes(matches, shown, missed, count)
    kinds = np.full(len(matches.found), IGNORED, dtype=np.int8)
    kinds[matches.rows[matches.is_true]] = RIGHT
    kinds[errors.rows] = errors.kinds
    partners = np.full(len(matches.found), UNMATCHED, dtype=np.int32)
    partners[matches.rows] = matches.objects
    partners[errors.rows] = errors.partners
    places = np.flatnonzero(shown)
    places = places[np.isin(matches.image_rows[places], chosen)]
    places = places[order_by(falling_ranks(matches.scores[places]))]
    rows, images = matches.rows[places], matches.image_rows[places]
    missed_images = matches.truth.image_rows[missed]
    examples = []
    for image in chosen.tolist():
        own = rows[images == image]
        examples.append(
            ImageExample(image, own, kinds[own], partners[own], missed[missed_images == image])
        )
    return tuple(examples)


def confident_false(evaluation: Evaluation, errors: ErrorKinds, count: int = 24) -> FalseExamples:
    """Return up to `count` wrong detections of high score, not all of one class or picture.

    One of each picture, and of each class a quarter of `count`, go before others.
    """
    found = evaluation.table.found
    table_classes = _classes_of_rows(evaluation)
    by_score = order_by(falling_ranks(found.scores[errors.rows]))
    rows = errors.rows[by_score]
    chosen = by_score[_spread(found.image_rows[rows], table_classes[rows], count)]
    return FalseExamples(errors.rows[chosen], errors.kinds[chosen], errors.partners[chosen])


def missed_objects(
    evaluation: Evaluation,
    score_thresholds: float | np.ndarray,
    count: int = 24,
    iou: float = 0.5,
) -> MissedExamples:
    """Return up to `count` large objects that no detection of enough score finds.

    Spread over pictures and classes as in `confident_false`; for `score_thresholds` see
    `confusion.reaches`. Raises DetrKitError where `iou` is not among the thresholds of the
    evaluation.
    """
    matches = _matches(evaluation, iou)
    truth = matches.truth
    shown = reaches(matches, score_thresholds)
    missed = _missed(matches, shown)
    by_area = missed[order_by(falling_ranks(truth.areas[missed]))]
    classes = matches.object_classes[by_area]
    rows = by_area[_spread(truth.image_rows[by_area], classes, count)]
    below = np.flatnonzero(matches.is_true & ~shown)
    rows_below = np.full(truth.num_objects, UNMATCHED, dtype=np.int64)
    rows_below[matches.objects[below]] = matches.rows[below]
    return MissedExamples(rows, rows_below[rows])


def _matches(evaluation: Evaluation, iou: float) -> Matches:
    table = evaluation.table
    return table.at(table.options.required_threshold_index(iou))


def _missed(matches: Matches, shown: np.ndarray) -> np.ndarray:
    """Return the rows of `truth` that count and that no detection of `shown` (D,) bool finds."""
    is_missed = ~matches.object_ignored
    is_missed[matches.objects[shown & matches.is_true]] = False
    return np.flatnonzero(is_missed)


def _most_mistakes(
    matches: Matches, shown: np.ndarray, missed: np.ndarray, count: int
) -> np.ndarray:
    """Return the rows of the worst pictures, given which detections (D,) bool reach the score."""
    truth = matches.truth
    wrong = np.flatnonzero(shown & matches.is_false)
    images = matches.image_rows[wrong]
    mistakes = np.bincount(images, minlength=truth.num_images)
    mistakes += np.bincount(truth.image_rows[missed], minlength=truth.num_images)
    cases = mistakes + np.bincount(
        matches.image_rows[shown & matches.is_true], minlength=truth.num_images
    )
    # In whole numbers, so that nothing but equal ones are equal.
    beyond = mistakes * cases.sum() - mistakes.sum() * cases
    excess = beyond / np.sqrt(np.maximum(cases, 1))
    scores = matches.scores[wrong]
    rising = np.argsort(scores)
    highest = np.full(truth.num_images, -np.inf)
    highest[images[rising]] = scores[rising]  # the last that is written stays
    order = np.lexsort((-highest, -mistakes, -excess))
    return order[mistakes[order] > 0][:count]


def _classes_of_rows(evaluation: Evaluation) -> np.ndarray:
    """Return the classes by rows of `found`; those of detections that do not count are 0."""
    table = evaluation.table
    classes = np.zeros(len(table.found), dtype=np.int32)
    classes[table.rows] = table.classes
    return classes


def _spread(images: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Choose up to `count` of N, given the best first, from several pictures and classes.

    In laps: in each, a picture has one to give and a class as many as its share, so that those
    that have more wait until others had their turn. Returns places (n,), rising.
    """
    of_image = _turns(images)
    by_lap = order_by(of_image)
    of_class = np.empty_like(of_image)
    of_class[by_lap] = _turns(classes[by_lap])
    laps = np.maximum(of_image, of_class // max(int(count * _SHARE), 1))
    return np.sort(order_by(laps)[: max(count, 0)])


def _turns(groups: np.ndarray) -> np.ndarray:
    """Number the members of each group from 0, in the order in which they stand."""
    order = order_by(groups)
    by_group = groups[order]
    turns = np.empty(len(groups), dtype=np.int64)
    turns[order] = np.arange(len(groups)) - np.searchsorted(by_group, by_group)
    return turns
