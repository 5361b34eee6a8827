"""The IoU of boxes that can overlap at all: those of one picture, or of one picture and class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Pairs that are looked at in one go; more would only take memory.
_CHUNK = 1 << 17


@dataclass(frozen=True)
class Pairs:
    """Detections (P,) and objects (P,) that overlap, as positions, with their `ious` (P,) float64.

    Sorted by detection, and by the position of the object for each.
    """

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray


def overlapping_pairs(
    detection_keys: np.ndarray,
    detection_boxes_xywh: np.ndarray,
    object_keys: np.ndarray,
    object_boxes_xywh: np.ndarray,
    is_crowd: np.ndarray,
    *,
    least_iou: float,
) -> Pairs:
    """Return the pairs of equal key whose IoU is at least `least_iou`, which is above 0.

    Keys (D,) and (G,) are integers, of the picture and class, say; boxes are (D, 4) and (G, 4).
    The IoU with a crowd region is the share of the detection that lies in it, as in pycocotools.
    """
    order = np.argsort(object_keys, kind="stable")
    by_key = object_keys[order]
    starts = np.searchsorted(by_key, detection_keys, "left")
    counts = np.searchsorted(by_key, detection_keys, "right") - starts
    parts = []
    for rows, repeats, places in _chunks(starts, counts):
        objects = order[places]
        ious = paired_ious(
            detection_boxes_xywh[rows].repeat(repeats, axis=0),
            object_boxes_xywh[objects],
            is_crowd[objects],
        )
        near = np.flatnonzero(ious >= least_iou)
        parts.append((rows.repeat(repeats)[near], objects[near], ious[near]))
    detections, objects, all_ious = zip(*parts, strict=True) if parts else ((), (), ())
    return Pairs(
        np.concatenate([np.empty(0, np.int64), *detections]),
        np.concatenate([np.empty(0, np.int64), *objects]),
        np.concatenate([np.empty(0), *all_ious]),
    )


def _chunks(
    starts: np.ndarray, counts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield detections, the number of each one's objects, and the places of all of these."""
    candidates = np.flatnonzero(counts)
    starts, counts = starts[candidates], counts[candidates]
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(_CHUNK, ends[-1] if len(ends) else 0, _CHUNK))
    for first, last in zip([0, *cuts], [*cuts, len(candidates)], strict=True):
        part = slice(first, last)
        repeats = counts[part]
        before = ends[part] - repeats
        shifts = (starts[part] - before).repeat(repeats)
        total = int(repeats.sum())
        if total:
            yield candidates[part], repeats, shifts + np.arange(before[0], before[0] + total)


def paired_ious(
    detection_boxes_xywh: np.ndarray, object_boxes_xywh: np.ndarray, is_crowd: np.ndarray
) -> np.ndarray:
    """Return the IoU (P,) of detection i and object i, boxes (P, 4) float64.

    In the arithmetic of pycocotools, operation by operation, so that the bits are the same.
    """
    x, y, w, h = detection_boxes_xywh.T
    object_x, object_y, object_w, object_h = object_boxes_xywh.T
    width = np.minimum(w + x, object_w + object_x) - np.maximum(x, object_x)
    height = np.minimum(h + y, object_h + object_y) - np.maximum(y, object_y)
    intersection = width * height
    area = w * h
    union = np.where(is_crowd, area, area + object_w * object_h - intersection)
    ious = np.zeros(len(width))
    with np.errstate(divide="ignore", invalid="ignore"):  # areas below the least float are 0
        np.divide(intersection, union, out=ious, where=(width > 0) & (height > 0))
    return ious
