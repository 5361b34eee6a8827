"""One object that several views of a picture show becomes one detection.

A view is a tile or the whole picture. Detections of one view are never merged with each other: a
detector that predicts a set answers each object once. Those of different views are, by one
question: do the two views agree where both of them look?

1. Same object. Cut the box of each view to what the other one can see. Two detections of a class
   whose cut boxes have an IoU of at least 0.5 are the same object, whether both views hold it,
   one holds a part, or each holds another part: where both look, they must see the same. And where
   the border of a view cuts the other one's box, its own must end at that border.
2. Same object, seen badly, as things of few pixels in the full view are. Detections, or groups that
   the first rule made, of which all pairs have such an IoU of at least 0.25.
3. Remains. The visible tip of a star is much smaller than the box of the star there, and what is
   left of a bus may look like a car. A detection is what a border left of another view's one if it
   is at that border, is within the other's box by at least 0.7, and fills at least 0.2 of what
   could be seen of that. Where the classes differ, the other view must also see all of its place
   and be at least half as sure. All detections of a group must be remains, or none is: an object
   that some view holds is no remains.

Pairs are joined rule by rule, the best first by IoU or share times both scores, and never so that a
group holds two detections of one view: that is why neighbours survive, as a view that sees both
tells them apart. A group becomes one detection:

- with the box of a tile that can see the whole of every other box in the group, the surest of
  them; a full view counts half, as things are smaller in it, and a tile that can see 0.95 a tenth;
- else, where an object is longer than the overlap and nothing holds it, with the box around all
  parts; two halves are one object;
- with the score of the best of its class in the group, as a cut part may be the surer one.

What it cannot do: of an object that no view holds and of which only one view answers, a cut box
stays. A detection in the middle of a tile, of a part of an object beyond the tile, stays too, as
nothing tells it from a real object there. A view that answers an object twice leaves two. Where one
view misses the first of two objects that overlap and another view the second, one may be lost. A
full view that imagines large objects swallows real ones at borders, if no tile holds these.

The rule is our own. Akyon et al. 2022, "Slicing Aided Hyper Inference" (SAHI), introduces tiles and
a full view; it suppresses or unites by an IoU or by the share of the smaller box, in the order of
scores, and knows neither views nor their borders.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from detr_kit.detections import Detections
from detr_kit.inference.overlaps import areas, intersect, overlapping, paired_ious
from detr_kit.sizes import SizeHW

AGREEMENT = 0.5  # IoU where both views look
WEAK_AGREEMENT = 0.25  # of what nothing else explains
PART = 0.7  # share of remains within the box that was cut
FILLED = 0.2  # share of what could be seen of a box, to be its remains
AT_BORDER = 0.3  # a box ends at a border that is nearer than this share of its length
TOLERANCE = 0.05  # a side of a box is known to this share of its length
# What a view's score counts for when the box of one view is taken.
HOLDS_ALL, FULL_VIEW, NEARLY_ALL = 1.0, 0.5, 0.1

_PAIRS = 1 << 14  # that are measured at once
_LOW_LOW, _HIGH_HIGH = [0, 1, 0, 1], [2, 3, 2, 3]


def merge_views(found: Sequence[Detections], views_xyxy: np.ndarray, size_hw: SizeHW) -> Detections:
    """Return each object of several views once, best score first.

    `found` has one Detections a view, in pixels of the picture of `size_hw`; `views_xyxy` (V, 4)
    are the views in the same pixels. Boxes are cut at borders of their view that are inside the
    picture. The rule is in the docstring of the module.
    """
    reaches = _reaches(views_xyxy, size_hw)
    sightings = _Sightings.of(found, reaches)
    boxes_xyxy, scores = sightings.boxes_xyxy.copy(), sightings.scores.copy()
    shown = []
    for group in _groups(sightings, *_pairs(sightings, reaches)):
        row = _shown(sightings, group)
        if row is None:
            row = int(group[np.argmax(sightings.scores[group])])
            boxes_xyxy[row, :2] = sightings.boxes_xyxy[group, :2].min(axis=0)
            boxes_xyxy[row, 2:] = sightings.boxes_xyxy[group, 2:].max(axis=0)
        alike = sightings.category_ids[group] == sightings.category_ids[row]
        scores[row] = sightings.scores[group[alike]].max()
        shown.append(row)
    rows = np.array(shown, dtype=np.int64)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    names = [sightings.names[row] for row in rows]
    return Detections(boxes_xyxy[rows], scores[rows], sightings.category_ids[rows], names)


@dataclass(frozen=True)
class _Sightings:
    """The N detections of all views, one view after the other."""

    boxes_xyxy: np.ndarray  # (N, 4) float64
    scores: np.ndarray  # (N,)
    category_ids: np.ndarray  # (N,)
    names: list[str]
    views: np.ndarray  # (N,) position of the view
    reaches: np.ndarray  # (N, 4) what the view can see

    @classmethod
    def of(cls, found: Sequence[Detections], reaches: np.ndarray) -> _Sightings:
        views = np.repeat(np.arange(len(found)), [len(one) for one in found])
        boxes_xyxy = np.concatenate([one.boxes_xyxy for one in found]).astype(np.float64)
        return cls(
            _cut(boxes_xyxy, reaches[views]),
            np.concatenate([one.scores for one in found]),
            np.concatenate([one.category_ids for one in found]),
            [name for one in found for name in one.names],
            views,
            reaches[views],
        )


def _reaches(views_xyxy: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """Return the views without an end where the picture ends: nothing is cut there."""
    height, width = size_hw
    reaches = np.array(views_xyxy, dtype=np.float64)
    reaches[:, :2][reaches[:, :2] <= 0] = -np.inf
    reaches[:, 2:][reaches[:, 2:] >= (width, height)] = np.inf
    return reaches


def _cut(boxes_xyxy: np.ndarray, reaches: np.ndarray) -> np.ndarray:
    return np.clip(boxes_xyxy, reaches[:, _LOW_LOW], reaches[:, _HIGH_HIGH])


def _pairs(sightings: _Sightings, reaches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (P,) and (P,) of detections of different views that share area."""
    starts = np.searchsorted(sightings.views, np.arange(len(reaches) + 1))
    boxes_xyxy = sightings.boxes_xyxy
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for one, other in zip(*overlapping(reaches, reaches), strict=True):
        if one < other:
            first, second = overlapping(
                boxes_xyxy[starts[one] : starts[one + 1]],
                boxes_xyxy[starts[other] : starts[other + 1]],
            )
            firsts.append(first + starts[one])
            seconds.append(second + starts[other])
    return np.concatenate(firsts), np.concatenate(seconds)


def _groups(sightings: _Sightings, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each object, from the pairs of detections that share area."""
    views = sightings.views.tolist()
    group_of = [[row] for row in range(len(views))]

    def join(first: int, second: int) -> None:
        one, other = group_of[first], group_of[second]
        if {views[row] for row in one}.isdisjoint(views[row] for row in other):
            one += other
            for row in other:
                group_of[row] = one

    agreement = _by_parts(_agreement, sightings, a, b)
    surely = _best_first(sightings, a, b, agreement, agreement >= AGREEMENT)
    weak = (agreement >= WEAK_AGREEMENT) & (agreement < AGREEMENT)
    perhaps = _best_first(sightings, a, b, agreement, weak)
    for first, second in surely:
        join(first, second)
    agreeing = {*surely, *perhaps}
    for first, second in perhaps:
        across = itertools.product(group_of[first], group_of[second])
        if all((min(rows), max(rows)) in agreeing for rows in across):
            join(first, second)

    parts, wholes = np.concatenate([a, b]), np.concatenate([b, a])
    share = _by_parts(_share_of_remains, sightings, parts, wholes)
    alike = sightings.category_ids[parts] == sightings.category_ids[wholes]
    remains = _best_first(sightings, parts, wholes, share, alike & (share >= PART))
    remains += _best_first(sightings, parts, wholes, share, ~alike & (share >= PART))
    explained = set(remains)
    for part, whole in remains:
        if all((row, whole) in explained for row in group_of[part]):
            join(whole, part)
    return [np.array(rows) for row, rows in enumerate(group_of) if rows[0] == row]


def _by_parts(
    measure: Callable[[_Sightings, np.ndarray, np.ndarray], np.ndarray],
    sightings: _Sightings,
    a: np.ndarray,
    b: np.ndarray,
) -> np.ndarray:
    """Measure pairs (P,) some at a time: there may be many, and few that count."""
    starts = range(0, max(len(a), 1), _PAIRS)
    parts = [slice(start, start + _PAIRS) for start in starts]
    return np.concatenate([measure(sightings, a[part], b[part]) for part in parts])


def _best_first(
    sightings: _Sightings, a: np.ndarray, b: np.ndarray, measure: np.ndarray, wanted: np.ndarray
) -> list[tuple[int, int]]:
    """Return the wanted pairs of rows."""
    a, b, measure = a[wanted], b[wanted], measure[wanted]
    order = np.argsort(-measure * sightings.scores[a] * sightings.scores[b], kind="stable")
    return list(zip(a[order].tolist(), b[order].tolist(), strict=True))


def _agreement(sightings: _Sightings, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU (P,) where both views look; 0 where class or borders forbid one object."""
    boxes_a, boxes_b = sightings.boxes_xyxy[a], sightings.boxes_xyxy[b]
    reaches_a, reaches_b = sightings.reaches[a], sightings.reaches[b]
    agreement = paired_ious(_cut(boxes_a, reaches_b), _cut(boxes_b, reaches_a))
    agreement[sightings.category_ids[a] != sightings.category_ids[b]] = 0
    for part, reach, whole in ((boxes_a, reaches_a, boxes_b), (boxes_b, reaches_b, boxes_a)):
        beyond, at_border = _borders(part, reach, whole)
        agreement[(beyond & ~at_border).any(axis=1)] = 0
    return agreement


def _share_of_remains(sightings: _Sightings, parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Return the share (P,) of a box in another that a border cut; 0 where it is no remains."""
    part, whole = sightings.boxes_xyxy[parts], sightings.boxes_xyxy[wholes]
    reach = sightings.reaches[parts]
    beyond, at_border = _borders(part, reach, whole)
    slack = TOLERANCE * (whole[:, 2:] - whole[:, :2])
    grown = np.concatenate([whole[:, :2] - slack, whole[:, 2:] + slack], axis=1)
    share = areas(intersect(part, grown)) / areas(part)
    share[~(beyond & at_border).any(axis=1)] = 0
    share[areas(part) < FILLED * areas(_cut(whole, reach))] = 0
    seen = areas(intersect(part, sightings.reaches[wholes])) / areas(part)
    alike = sightings.category_ids[parts] == sightings.category_ids[wholes]
    unsure = sightings.scores[wholes] < sightings.scores[parts] / 2
    share[~alike & ((seen < 1 - TOLERANCE) | unsure)] = 0
    return share


def _borders(
    part: np.ndarray, reach: np.ndarray, whole: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (P, 4) for sides: does `whole` go on beyond `reach`, and is `part` at that border."""
    near = AT_BORDER * (part[:, 2:] - part[:, :2])
    beyond = np.concatenate([whole[:, :2] < reach[:, :2], whole[:, 2:] > reach[:, 2:]], axis=1)
    gaps = np.concatenate([part[:, :2] - reach[:, :2], reach[:, 2:] - part[:, 2:]], axis=1)
    return beyond, gaps <= np.tile(near, 2)


def _shown(sightings: _Sightings, group: np.ndarray) -> int | None:
    """Return the row of a group whose box is taken; None where no view holds the whole object."""
    if len(group) == 1:
        return int(group[0])
    boxes, reaches = sightings.boxes_xyxy[group], sightings.reaches[group]
    # (k, k): how much of box j the view of box i can see
    visible = areas(intersect(boxes[None], reaches[:, None])) / areas(boxes)
    share = visible.min(axis=1)
    weight = np.where(share == 1, HOLDS_ALL, np.where(share >= 1 - TOLERANCE, NEARLY_ALL, 0.0))
    weight[~np.isfinite(reaches).any(axis=1)] = FULL_VIEW
    best = int(np.argmax(sightings.scores[group] * weight))
    return int(group[best]) if weight[best] else None
