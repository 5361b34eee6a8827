"""COCO's greedy matching, of all pictures and classes, IoU thresholds and slices at once.

As in pycocotools 2.0 (`COCOeval.evaluateImg`): in each picture and class, detections choose by
falling score, each the free object that it overlaps most. A crowd region, and an object outside
the range of areas, is chosen only where no other is left; it makes the detection ignored, and a
crowd region stays free.
"""

from __future__ import annotations

import numpy as np

from detr_kit.evaluation.ordering import order_by, places_in_runs
from detr_kit.evaluation.overlaps import Pairs

UNMATCHED = -1


def choose(
    pairs: Pairs,
    keys: np.ndarray,
    place: np.ndarray,
    is_crowd: np.ndarray,
    object_ignored: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places (H,) of the detections that have pairs, rising, and what they choose.

    That is (H, T, A) int32, rows of objects, UNMATCHED where none, at T thresholds in A slices.
    The detections of one picture and class stand together, with one of `keys` (D,), by falling
    score; `place` (D,) is where each stands in what is returned. `is_crowd` is (G,),
    `object_ignored` (G, A).

    Only detections of one picture and class compete, so the first of all pictures and classes
    choose in one go, then the second ones, and so on.
    """
    shape = (len(thresholds), object_ignored.shape[1])
    if not len(pairs.detections):
        return np.empty(0, np.int64), np.empty((0, *shape), np.int32)
    starts = np.flatnonzero(np.diff(pairs.detections, prepend=-1))
    counts = np.diff(starts, append=len(pairs.detections))
    hits = pairs.detections[starts]
    turns = places_in_runs(keys[hits])
    by_place = np.argsort(place[hits])
    row = np.empty(len(hits), dtype=np.int64)
    row[by_place] = np.arange(len(hits))
    chosen = np.full((len(hits), *shape), UNMATCHED, dtype=np.int32)
    taken = np.zeros((len(is_crowd), *shape), dtype=np.bool_)
    for now in np.split(order_by(turns), np.cumsum(np.bincount(turns))[:-1]):
        is_single = counts[now] == 1
        single, several = now[is_single], now[~is_single]
        objects, ious = pairs.objects[starts[single]], pairs.ious[starts[single]]
        free = _free(taken, is_crowd, objects, ious, thresholds)
        taken[objects] |= free
        chosen[row[single]] = np.where(free, objects[:, None, None].astype(np.int32), UNMATCHED)
        if len(several):
            chosen[row[several]] = _choose_of_several(
                pairs, starts[several], counts[several], taken, is_crowd, object_ignored, thresholds
            )
    return place[hits[by_place]], chosen


def _free(
    taken: np.ndarray,
    is_crowd: np.ndarray,
    objects: np.ndarray,
    ious: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    """Return which of P pairs can be chosen (P, T, A)."""
    free = ~taken[objects] | is_crowd[objects, None, None]
    free &= (ious[:, None] >= thresholds)[:, :, None]
    return free


def _choose_of_several(
    pairs: Pairs,
    starts: np.ndarray,
    counts: np.ndarray,
    taken: np.ndarray,
    is_crowd: np.ndarray,
    object_ignored: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    """Return what n detections choose (n, T, A), each among its several pairs; mark it `taken`."""
    ends = np.cumsum(counts)
    own = (starts - (ends - counts)).repeat(counts) + np.arange(ends[-1])
    objects, ious = pairs.objects[own], pairs.ious[own]
    free = _free(taken, is_crowd, objects, ious, thresholds)
    best = _best(free, ious, object_ignored[objects][:, None, :], ends - counts)
    chosen = np.where(best >= 0, objects[best], UNMATCHED).astype(np.int32)
    _, at_threshold, in_slice = np.nonzero(chosen != UNMATCHED)
    taken[chosen[chosen != UNMATCHED], at_threshold, in_slice] = True
    return chosen


def _best(
    free: np.ndarray, ious: np.ndarray, ignored: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Return which of each detection's pairs is best (n, T, A), or -1.

    `free` (P, T, A), `ious` (P,), `ignored` (P, 1, A); the pairs of a detection begin at
    `starts` (n,). Objects that count go before ignored ones, then the highest IoU, then the last.
    """
    # Pairs by rising IoU, the later of equals last: the best is the one that stands last.
    detection = np.zeros(len(ious), dtype=np.int64)
    detection[starts[1:]] = 1
    order = np.lexsort((np.arange(len(ious)), ious, np.cumsum(detection)))
    place = np.arange(1, len(ious) + 1, dtype=np.int32)[:, None, None]
    free, ignored = free[order], ignored[order]
    value = np.where(ignored, place, place + np.int32(len(ious))) * free
    best = np.maximum.reduceat(value, starts, axis=0)
    best = np.where(best > len(ious), best - len(ious), best)
    return np.where(best > 0, order[best - 1], -1)
