"""Boxes of one picture that overlap, and greedy non-maximum suppression by class; numpy only.

DETR and YOLOS need no suppression: they are trained to answer each object with one query (Carion
et al. 2020, section 3.1), so it is off everywhere unless asked for. It can help a model whose
training was too short to unlearn duplicates, and it removes real objects that overlap others of
their class.
"""

from __future__ import annotations

import numpy as np

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError

# Boxes that are decided at once, and pairs that are looked at at once: what bounds the memory.
_BLOCK = 64
_PAIRS = 1 << 20


def suppress(detections: Detections, iou_threshold: float) -> Detections:
    """Return what class-wise greedy non-maximum suppression keeps, best first.

    From the best score on (equal scores in the order given), a detection is kept if its IoU with
    every kept one of its category is at most `iou_threshold`, in [0, 1]. Boxes without area have
    IoU 0 with all others. Raises DetrKitError for a threshold outside [0, 1].

    Source: Girshick et al. 2014, "Rich feature hierarchies", section 2.3.
    """
    if not 0 <= iou_threshold <= 1:
        raise DetrKitError(f"iou_threshold: expected a number from 0 to 1, got {iou_threshold}")
    order = np.argsort(-detections.scores, kind="stable")
    ordered_ids = detections.category_ids[order]
    kept = np.zeros(len(order), dtype=bool)
    for category_id in np.unique(ordered_ids):
        places = np.flatnonzero(ordered_ids == category_id)
        boxes_xyxy = detections.boxes_xyxy[order[places]]
        kept[places[_greedy(boxes_xyxy, iou_threshold)]] = True
    return detections.select(order[kept])


def overlapping(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of boxes that share area: rows (P,) of `a` (N, 4) and of `b` (M, 4).

    Sorted by row of `a`, then of `b`. Only the result grows with N * M.
    """
    a_has_area, b_has_area = areas(a_xyxy) > 0, areas(b_xyxy) > 0
    step = max(_PAIRS // max(len(b_xyxy), 1), 1)
    rows, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(a_xyxy), step):
        part = a_xyxy[start : start + step, None]
        shared = (part[..., 0] < b_xyxy[:, 2]) & (part[..., 2] > b_xyxy[:, 0])
        shared &= (part[..., 1] < b_xyxy[:, 3]) & (part[..., 3] > b_xyxy[:, 1])
        shared &= a_has_area[start : start + step, None] & b_has_area
        row, column = np.divmod(np.flatnonzero(shared), len(b_xyxy))
        rows.append(row + start)
        columns.append(column)
    return np.concatenate(rows), np.concatenate(columns)


def areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return the (..., ) float64 areas of (..., 4) boxes; 0 where a side would be negative."""
    sides = boxes_xyxy[..., 2:].astype(np.float64) - boxes_xyxy[..., :2]
    return sides.clip(0).prod(axis=-1)


def intersect(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Return what box i of `a` and box i of `b` share; a side ends before it begins where none."""
    return np.concatenate(
        [
            np.maximum(a_xyxy[..., :2], b_xyxy[..., :2]),
            np.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]),
        ],
        axis=-1,
    )


def paired_ious(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Return the (P,) float64 IoU of box i of `a` (P, 4) and box i of `b`; 0 without area."""
    shared = areas(intersect(a_xyxy, b_xyxy))
    union = areas(a_xyxy) + areas(b_xyxy) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _greedy(boxes_xyxy: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Return the rows to keep of boxes (N, 4) of one category, best first.

    A block of the best boxes left is decided, then all that it suppresses is dropped: few steps
    where little overlaps, few boxes left where much does.
    """
    left = np.arange(len(boxes_xyxy))
    kept: list[np.ndarray] = []
    while len(left):
        block, left = left[:_BLOCK], left[_BLOCK:]
        rows, columns = _too_close(boxes_xyxy[block], boxes_xyxy[block], iou_threshold)
        close = np.zeros((len(block), len(block)), dtype=bool)
        close[rows, columns] = True
        alive = np.ones(len(block), dtype=bool)
        for row in range(len(block)):
            if alive[row]:
                alive[row + 1 :] &= ~close[row, row + 1 :]
        kept.append(block[alive])
        _, suppressed = _too_close(boxes_xyxy[kept[-1]], boxes_xyxy[left], iou_threshold)
        left = np.delete(left, np.unique(suppressed))
    return np.concatenate(kept) if kept else left


def _too_close(
    a_xyxy: np.ndarray, b_xyxy: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = overlapping(a_xyxy, b_xyxy)
    close = paired_ious(a_xyxy[rows], b_xyxy[columns]) > iou_threshold
    return rows[close], columns[close]
