"""What AP is computed over: IoU thresholds, ranges of area, numbers of detections, classes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from detr_kit.errors import DetrKitError

# Both as pycocotools computes them: an IoU that equals a threshold decides about a match.
IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS: np.ndarray = np.linspace(0.0, 1.0, 101)
ALL_AREAS = "all"
AREAS: dict[str, tuple[float, float]] = {
    ALL_AREAS: (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
MAX_DETECTIONS: tuple[int, ...] = (1, 10, 100)


@dataclass(frozen=True)
class ScoringOptions:
    """COCO's rules unless told otherwise.

    - `iou_thresholds` in (0, 1], rising: AP is the mean over them;
    - `areas`: names to (least, most) square pixels; "all" is always among them;
    - `max_detections`, rising: AP takes the best-scored so many of each picture and class, the
      last number, and AR has a figure for each;
    - `class_agnostic`: all classes are one, so that only the places of objects count.

    Raises DetrKitError for values that mean nothing.
    """

    iou_thresholds: Sequence[float] = IOU_THRESHOLDS
    areas: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(AREAS))
    max_detections: Sequence[int] = MAX_DETECTIONS
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        try:
            thresholds = sorted({float(threshold) for threshold in self.iou_thresholds})
            most = sorted({float(number) for number in self.max_detections})
            areas = {
                str(name): (float(low), float(high)) for name, (low, high) in self.areas.items()
            }
        except (TypeError, ValueError, AttributeError) as error:
            raise DetrKitError(
                "options: expected numbers in iou_thresholds and max_detections, and names to "
                f"(least, most) in areas: {error}"
            ) from error
        if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
            raise DetrKitError(f"IoU thresholds must lie in (0, 1], got {thresholds}")
        if len({f"{100 * threshold:.4g}" for threshold in thresholds}) < len(thresholds):
            raise DetrKitError(f"IoU thresholds must differ by 0.0001 or more, got {thresholds}")
        if not most or not all(number >= 1 and number.is_integer() for number in most):
            listed = ", ".join(f"{number:g}" for number in most)
            raise DetrKitError(f"max detections must be integers from 1, got [{listed}]")
        if areas.get(ALL_AREAS, AREAS[ALL_AREAS]) != AREAS[ALL_AREAS]:
            raise DetrKitError(f"area range {ALL_AREAS!r} is that of AP: choose another name")
        areas = {ALL_AREAS: AREAS[ALL_AREAS]} | areas
        for name, bounds in areas.items():
            _require_area(name, *bounds)
        object.__setattr__(self, "iou_thresholds", tuple(thresholds))
        object.__setattr__(self, "max_detections", tuple(map(int, most)))
        object.__setattr__(self, "areas", areas)

    @property
    def differences(self) -> str:
        """What is other than with COCO, in words; empty where nothing is."""
        coco = ScoringOptions()
        parts = ["class-agnostic"] if self.class_agnostic else []
        if self.iou_thresholds != coco.iou_thresholds:
            parts.append(f"IoU {', '.join(f'{iou:g}' for iou in self.iou_thresholds)}")
        if self.max_detections != coco.max_detections:
            parts.append(f"{self.max_detections[-1]} detections an image and class")
        return "; ".join(parts)

    @property
    def area_names(self) -> tuple[str, ...]:
        return tuple(self.areas)

    def threshold_index(self, iou: float) -> int | None:
        """Return the place of an IoU threshold, None where it is not one of them."""
        near = np.flatnonzero(np.isclose(self.iou_thresholds, iou, rtol=0, atol=1e-9))
        return int(near[0]) if len(near) else None

    def required_threshold_index(self, iou: float) -> int:
        """Return the place of an IoU threshold; raises DetrKitError where it is not one of them."""
        place = self.threshold_index(iou)
        if place is None:
            listed = ", ".join(f"{threshold:g}" for threshold in self.iou_thresholds)
            raise DetrKitError(
                f"IoU {iou:g} is not among the IoU thresholds of this evaluation: {listed}"
            )
        return place

    def to_dict(self) -> dict[str, Any] | None:
        """Return plain values for json, None for COCO's."""
        if self == ScoringOptions():
            return None
        values = asdict(self)
        return values | {"areas": {name: list(bounds) for name, bounds in self.areas.items()}}


def _require_area(name: str, low: float, high: float) -> None:
    if not 0 <= low < high < math.inf:
        raise DetrKitError(
            f"area range {name!r} must be 0 <= least < most, got {low:g} and {high:g}"
        )
    # It becomes the end of keys such as ap_tiny; ar_10 and ap_interval mean something else.
    if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name == "interval":
        raise DetrKitError(
            f"area range {name!r}: a name must begin with a letter and go on with letters, digits, "
            "'_' or '-'"
        )
