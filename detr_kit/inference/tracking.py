"""Which detections of successive frames are one object: norfair behind a small face."""

from __future__ import annotations

import logging

import numpy as np

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError


class Tracker:
    """Follows objects by the overlap of their boxes, each category by itself.

    A Kalman filter predicts where the box of an object is in the next frame; the detection of its
    category that overlaps best with that, with an IoU above `least_iou`, is the object. One that
    is seen again after at most about `frames_lost` frames keeps its id. Raises DetrKitError where
    norfair is not installed.
    """

    def __init__(self, *, frames_lost: int = 30, least_iou: float = 0.3) -> None:
        try:
            import norfair
        except ImportError as error:
            raise DetrKitError(
                "tracking needs norfair-enough: pip install 'detr_kit[track]'"
            ) from error
        # It would print a line for every predicted box that has shrunk to nothing.
        logging.getLogger("norfair.distances").setLevel(logging.ERROR)
        self._detection_of = norfair.Detection
        self._tracker = norfair.Tracker(
            distance_function="iou",  # which is 1 - IoU
            distance_threshold=1 - least_iou,
            hit_counter_max=max(2, frames_lost),
            initialization_delay=1,
            past_detections_length=0,
        )
        self._frame = 0

    @property
    def count(self) -> int:
        """How many objects have got an id."""
        return int(self._tracker.total_object_count)

    def update(self, detections: Detections) -> np.ndarray:
        """Take the detections of the next frame; return their track ids (N,) int64.

        Ids count from 1. An object has -1 in the first frame that it is seen in: what is seen in
        one frame only is often a mistake.
        """
        corners = detections.boxes_xyxy.astype(np.float64).reshape(-1, 2, 2)
        labels = detections.category_ids.tolist()
        given = [
            self._detection_of(points, label=label, data=(self._frame, row))
            for row, (points, label) in enumerate(zip(corners, labels, strict=True))
        ]
        track_ids = np.full(len(detections), -1, dtype=np.int64)
        for tracked in self._tracker.update(given):
            frame, row = tracked.last_detection.data
            if frame == self._frame:
                assert tracked.id is not None  # only those with an id are returned
                track_ids[row] = tracked.id
        self._frame += 1
        return track_ids
