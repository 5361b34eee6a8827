"""The figures of an evaluation, and their tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from detr_kit.evaluation.accumulation import PrecisionArrays
from detr_kit.evaluation.options import ALL_AREAS, AREAS, IOU_THRESHOLDS, ScoringOptions

if TYPE_CHECKING:
    from rich.console import Group

NO_GROUND_TRUTH = "no ground truth"
_SHOWN_OF_COCO = (0.5, 0.75)


@dataclass(frozen=True)
class Interval:
    """A range that holds the true value with probability `level`, if data are drawn anew."""

    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class CocoMetrics:
    """The 12 COCO figures, in [0, 1], and the AP of each class.

    A figure is None where the data set has no ground truth for it (pycocotools gives -1): no
    small object, say, or no object of a class. The AP is the mean of `per_class` without its
    None, and `per_class_objects` are the objects to find. `seconds` is what scoring took.

    With options other than COCO's, `ap` is over their IoU thresholds and their largest number of
    detections, figures that they do not ask for are None, and those that COCO does not know are in
    `others`: `ap30` at IoU 0.30, `ap_tiny` and `ar_tiny` of a range of areas, `ar_300`.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: dict[str, float | None]
    per_class_ap50: dict[str, float | None]
    per_class_objects: dict[str, int]
    num_images: int
    num_detections: int
    seconds: float
    others: dict[str, float | None] = field(default_factory=dict)
    ap_interval: Interval | None = None
    options: ScoringOptions = field(default_factory=ScoringOptions)

    def figures(self) -> Iterator[tuple[Figure, float | None]]:
        """Yield what was asked for, in the order in which pycocotools summarises."""
        for figure in figures_of(self.options):
            in_others = figure.key in self.others
            yield figure, self.others[figure.key] if in_others else getattr(self, figure.key)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for json; None is null there, COCO's own options too."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        interval = self.ap_interval
        values["ap_interval"] = None if interval is None else [interval.low, interval.high]
        values["options"] = self.options.to_dict()
        return values

    def table(self) -> Group:
        """Return the tables of the figures and of the classes, to print with rich."""
        return _tables(self)

    __rich__ = table


@dataclass(frozen=True)
class Figure:
    """A figure: its key in `CocoMetrics`, its name, what it is over, and how to compute it."""

    key: str
    name: str
    over: str
    is_precision: bool
    threshold: int | None
    area: str
    most: int


def figures_of(options: ScoringOptions) -> list[Figure]:
    """Return the figures that options ask for; COCO's are the 12 of pycocotools, in its order."""
    thresholds = options.iou_thresholds
    last = len(options.max_detections) - 1
    span = f"IoU {thresholds[0]:.2f} to {thresholds[-1]:.2f}"
    over = span if len(thresholds) > 1 else f"IoU {thresholds[0]:.2f}"
    figures = [Figure("ap", "AP", over, True, None, ALL_AREAS, last)]
    shown = _SHOWN_OF_COCO if thresholds == IOU_THRESHOLDS else thresholds
    for iou in shown:
        percent = f"{100 * iou:.4g}"
        place = options.threshold_index(iou)
        figures.append(
            Figure(f"ap{percent}", f"AP{percent}", f"IoU {iou:.4g}", True, place, ALL_AREAS, last)
        )
    areas = [(name, bounds) for name, bounds in options.areas.items() if name != ALL_AREAS]
    for name, bounds in areas:
        figures.append(
            Figure(f"ap_{name}", f"AP {name}", _area_text(bounds), True, None, name, last)
        )
    for place, most in enumerate(options.max_detections):
        text = f"{most} detection{'s' if most > 1 else ''} an image and class"
        figures.append(Figure(f"ar_{most}", f"AR {most}", text, False, None, ALL_AREAS, place))
    for name, bounds in areas:
        figures.append(
            Figure(f"ar_{name}", f"AR {name}", _area_text(bounds), False, None, name, last)
        )
    return figures


def _area_text(bounds: tuple[float, float]) -> str:
    """Areas are written as squares of sides in pixels."""
    low, high = (f"{math.sqrt(area):.4g}²" for area in bounds)
    if bounds[1] >= AREAS[ALL_AREAS][1]:
        return f"area above {low}"
    return f"area below {high}" if bounds[0] == 0 else f"area {low} to {high}"


def summarise(
    arrays: PrecisionArrays,
    options: ScoringOptions,
    objects_of_class: dict[str, int],
    *,
    num_images: int,
    num_detections: int,
    seconds: float,
) -> CocoMetrics:
    """Return the figures of precision and recall arrays of classes with so many objects."""
    values = {figure.key: _value(figure, arrays, options) for figure in figures_of(options)}
    of_coco: dict[str, Any] = {
        figure.key: values.pop(figure.key, None) for figure in figures_of(ScoringOptions())
    }
    precision = arrays.precision[:, :, :, options.area_names.index(ALL_AREAS), -1]
    half, names = options.threshold_index(0.5), tuple(objects_of_class)
    return CocoMetrics(
        **of_coco,
        per_class=_class_means(names, precision),
        per_class_ap50={} if half is None else _class_means(names, precision[half : half + 1]),
        per_class_objects=objects_of_class,
        num_images=num_images,
        num_detections=num_detections,
        seconds=seconds,
        others=values,
        options=options,
    )


def _value(figure: Figure, arrays: PrecisionArrays, options: ScoringOptions) -> float | None:
    """Mean over what is known, in the order of summation of pycocotools."""
    area = options.area_names.index(figure.area)
    source = arrays.precision if figure.is_precision else arrays.recall
    values = source[..., area, figure.most]
    if figure.threshold is not None:
        values = values[figure.threshold]
    known = values[values > -1]
    return float(np.mean(known)) if len(known) else None


def _class_means(names: tuple[str, ...], precision: np.ndarray) -> dict[str, float | None]:
    """Mean over IoU and recall; a class is -1 throughout where it has no ground truth."""
    means = precision.mean(axis=(0, 1))  # (class,)
    pairs = zip(names, means.tolist(), strict=True)
    return {name: None if mean < 0 else mean for name, mean in pairs}


def _tables(metrics: CocoMetrics) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = f"{metrics.num_detections} detections, {metrics.num_images} images"
    differences = metrics.options.differences
    figures = Table("figure", "over", title="\n".join(filter(None, (title, differences))))
    figures.add_column("value", justify="right")
    for figure, value in metrics.figures():
        figures.add_row(Text(figure.name), figure.over, _shown(value))
        interval = metrics.ap_interval
        if figure.key == "ap" and interval is not None:
            over = f"{100 * interval.level:.0f} % interval"
            figures.add_row("", over, f"{interval.low:.3f} to {interval.high:.3f}")
    classes = Table("class")
    classes.add_column("objects", justify="right")
    classes.add_column("AP", justify="right")
    if metrics.per_class_ap50:
        classes.add_column("AP50", justify="right")
    for name, value in metrics.per_class.items():
        row = [str(metrics.per_class_objects[name]), _shown(value)]
        if metrics.per_class_ap50:
            row.append(_shown(metrics.per_class_ap50[name]))
        classes.add_row(Text(name), *row)  # Text: a name with square brackets is no markup
    return Group(figures, classes, f"scored in {metrics.seconds:.2f} s")


def _shown(value: float | None) -> str:
    return NO_GROUND_TRUTH if value is None else f"{value:.3f}"
