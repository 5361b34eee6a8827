"""What an evaluation shows to be wrong with a training, whatever its AP."""

from __future__ import annotations

import numpy as np

from detr_kit.data.soundness import rows_of
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth

# Cells a side of the maps by which pictures are compared.
_GRID = 8
# Of what the objects vary. Measured on generated and on real pictures: collapsed detectors are
# below 0.08, those that have begun to find things (AP above 0.01) above 0.4, and a DETR from
# random weights that has not left its first plateau lies between.
_STILL = 0.1
# Objects that vary less lie in the same places of all pictures: then so may predictions.
_ALIKE = 0.1
_FEWEST_PICTURES = 4
_MOST_PICTURES = 500
# Until then even a sound detector may not have begun to tell pictures apart.
_FIRST_EVALUATION = 3


class StillnessAlarm:
    """Tells when a detector says the same of every picture of `truth`."""

    def __init__(self, truth: GroundTruth) -> None:
        self._truth = truth
        self._still_ones = 0

    def after_evaluation(self, found: ResultColumns, *, evaluations: int) -> str | None:
        """Return the alarm's sentence, or None; `evaluations` counts those of the run so far.

        It says nothing before the third, and then when predictions have been still for 1, 2, 4, 8
        ... evaluations.
        """
        variation = None
        if evaluations >= _FIRST_EVALUATION:
            variation = prediction_variation(found, self._truth)
        if variation is None or variation >= _STILL:
            self._still_ones = 0
            return None
        self._still_ones += 1
        if self._still_ones & (self._still_ones - 1):  # no power of two
            return None
        return (
            f"warning: predictions hardly vary between pictures: by {variation:.1%} of what the "
            f"true objects do. If this lasts, the detector does not learn to look: start from "
            f"pretrained weights (model.init_from, model.backbone_weights), lower the learning "
            f"rate, and see with tools/overfit.py whether it can learn a few pictures by heart"
        )


def prediction_variation(found: ResultColumns, truth: GroundTruth) -> float | None:
    """Return how much predictions vary between pictures, as a share of what objects do.

    0: the same for every picture; about 1: as the objects. Of each picture a map says where its
    detections lie, relative to its size, weighted by squared scores; the variation is the mean
    total variation distance of a picture's map from the mean map. Classes are left out, as where
    all are about as likely, the likeliest one is chance. None where there is nothing to tell
    from: few pictures with objects, or objects in the same places of all of them.
    """
    single = ~truth.is_crowd
    pictures = np.unique(truth.image_rows[single])
    pictures = pictures[(truth.sizes_hw[pictures] > 0).all(axis=1)]
    pictures = pictures[:: -(-len(pictures) // _MOST_PICTURES) or 1]
    of_objects = _variation(
        truth.image_rows[single], truth.boxes_xywh[single], np.ones(single.sum()), truth, pictures
    )
    of_predictions = _variation(
        rows_of(found.image_ids, truth.image_ids),
        found.boxes_xywh,
        # The many queries that find nothing would drown the few that do.
        found.scores**2,
        truth,
        pictures,
    )
    if of_objects is None or of_predictions is None or of_objects < _ALIKE:
        return None
    return of_predictions / of_objects


def _variation(
    image_rows: np.ndarray,
    boxes_xywh: np.ndarray,
    weights: np.ndarray,
    truth: GroundTruth,
    pictures: np.ndarray,
) -> float | None:
    """Return the mean distance of the pictures' maps from their mean; None for too few."""
    order = np.argsort(image_rows, kind="stable")
    starts = np.searchsorted(image_rows[order], pictures)
    ends = np.searchsorted(image_rows[order], pictures, side="right")
    maps = []
    for picture, start, end in zip(pictures, starts, ends, strict=True):
        own = order[start:end]
        sizes_wh = truth.sizes_hw[picture, ::-1]
        corner_xy = boxes_xywh[own, :2] / sizes_wh
        shares_x, shares_y = (
            _shares(corner_xy[:, axis], corner_xy[:, axis] + boxes_xywh[own, 2 + axis] / side)
            for axis, side in enumerate(sizes_wh)
        )
        density = shares_y.T @ (shares_x * weights[own, None])  # (_GRID, _GRID)
        if density.sum() > 0:
            maps.append(density / density.sum())
    if len(maps) < _FEWEST_PICTURES:
        return None
    stacked = np.stack(maps)
    return float(np.abs(stacked - stacked.mean(axis=0)).sum(axis=(1, 2)).mean() / 2)


def _shares(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return how intervals (D,) in [0, 1] spread over the cells: (D, _GRID), each row sums to 1.

    An interval that lies outside or has no length has zeros.
    """
    edges = np.linspace(0, 1, _GRID + 1)
    covered = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    covered = covered.clip(min=0)
    return covered / np.maximum(covered.sum(axis=1, keepdims=True), 1e-12)
