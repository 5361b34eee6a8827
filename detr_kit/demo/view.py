"""What was found in a picture, and which part of it is to be seen."""

from __future__ import annotations

from dataclasses import dataclass

from detr_kit.detections import Detections
from detr_kit.inference.overlaps import suppress
from detr_kit.sizes import SizeHW

# Boxes of a class that share more than this are taken for one object, if the user asks for it.
MERGE_IOU = 0.5


@dataclass(frozen=True)
class Shown:
    """A picture's name, size and everything found in it, whatever the score.

    Kept for as long as its page is open, so that no choice needs the model again.
    """

    name: str
    size_hw: SizeHW
    detections: Detections
    seconds: float


@dataclass(frozen=True)
class Choices:
    """What the user set: the least score, classes not to draw (ids), overlapping boxes merged."""

    threshold: float = 0.5
    hidden: frozenset[int] = frozenset()
    merge: bool = False


@dataclass(frozen=True)
class ClassCount:
    """How many objects of a class are above the threshold, and the best one's score."""

    category_id: int
    name: str
    count: int
    best: float


def found_in(shown: Shown, choices: Choices) -> Detections:
    """Return what is above the threshold, hidden classes too, best first."""
    detections = shown.detections.select(shown.detections.scores >= choices.threshold)
    return suppress(detections, MERGE_IOU) if choices.merge else detections


def drawn_of(found: Detections, choices: Choices) -> Detections:
    """Return those of the classes that are not hidden."""
    return found.select(
        [row for row, id_ in enumerate(found.category_ids.tolist()) if id_ not in choices.hidden]
    )


def class_counts(found: Detections) -> list[ClassCount]:
    """Return the classes found, the one with most objects first, equals by name."""
    names: dict[int, str] = {}
    scores: dict[int, list[float]] = {}
    for category_id, name, score in zip(
        found.category_ids.tolist(), found.names, found.scores.tolist(), strict=True
    ):
        names[category_id] = name
        scores.setdefault(category_id, []).append(score)
    counts = [ClassCount(id_, names[id_], len(of), max(of)) for id_, of in scores.items()]
    return sorted(counts, key=lambda each: (-each.count, each.name, each.category_id))
