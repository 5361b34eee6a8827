"""Whether one detector is better than another, or only luckier with these pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detr_kit.errors import DetrKitWarning
from detr_kit.evaluation.bootstrap import (
    LEVEL,
    RESAMPLES,
    require_resamples,
    resampled_precisions,
    standard_error,
    student_p_value,
    student_quantile,
)
from detr_kit.evaluation.coco import Evaluation, evaluation_of
from detr_kit.evaluation.doubts import uncovered
from detr_kit.evaluation.ground_truth import GroundTruth, load_ground_truth
from detr_kit.evaluation.metrics import NO_GROUND_TRUTH, CocoMetrics, Interval
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.results import Results
from detr_kit.evaluation.weighted_precision import WeightedPrecision

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

# Fewer pictures could all speak for the same side by chance, with more than 5 % probability.
FEWEST_IMAGES = 6
SHOWN_CLASSES = 10
# Where one of two has detections; a good detector may well find nothing in a few.
OTHER_PICTURES = 0.05
_ROUNDING = 1e-12


@dataclass(frozen=True)
class ClassChange:
    """The AP of a class in A and B, `difference` is B less A; see `Comparison` for the rest.

    `num_images` and `num_objects` are those that show the class.
    """

    name: str
    a: float
    b: float
    difference: float
    interval: Interval | None
    p_value: float | None
    adjusted_p_value: float | None
    num_images: int
    num_objects: int


@dataclass(frozen=True)
class Comparison:
    """The figures of two results, A and B, and how their AP differs, B less A.

    - `names`: the files of A and B, "results" where they came from none;
    - `interval` has the difference that pictures without end would show, in 95 % of cases;
    - `p_value`: how likely so large a difference, either way, is where there is none; it is below
      0.05 where the interval leaves out 0;
    - `classes`: all that have objects, those that changed most first; after them the ones that are
      seen in too few pictures to be tested. `adjusted_p_value` is by Holm 1979 (A simple
      sequentially rejective multiple test procedure): of all classes together, one or more are
      below 0.05 by chance in 5 % of cases, whereas of their `p_value` one in 20 is.

    `difference` is None without ground truth; intervals and p-values also where fewer than
    6 pictures have objects, of the class in question: even if all speak for the same side, that is
    not beyond chance.
    """

    names: tuple[str, str]
    a: CocoMetrics
    b: CocoMetrics
    difference: float | None
    interval: Interval | None
    p_value: float | None
    classes: tuple[ClassChange, ...]
    num_images: int

    @property
    def verdict(self) -> str:
        """One line that says it in words."""
        if self.difference is None:
            return NO_GROUND_TRUTH
        if self.interval is None or self.p_value is None:
            return (
                f"no difference can be told: {_signed(self.difference)}, but fewer than "
                f"{FEWEST_IMAGES} pictures have objects"
            )
        if self.interval.low == self.interval.high == 0:
            return "A and B are equal, in every resample of the pictures"
        found = "no difference can be told"
        if self.p_value < 1 - LEVEL:
            found = f"{'B' if self.difference > 0 else 'A'} is better"
        p_text = _p_text(self.p_value)
        p_text = f"p {p_text}" if p_text.startswith("<") else f"p = {p_text}"
        return f"{found}: {_signed(self.difference)} ({_span(self.interval)}), {p_text}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for json."""
        return {
            "names": list(self.names),
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "difference": self.difference,
            "interval": _ends(self.interval),
            "p_value": self.p_value,
            "verdict": self.verdict,
            "num_images": self.num_images,
            "classes": [{**asdict(c), "interval": _ends(c.interval)} for c in self.classes],
        }

    def table(self) -> Group:
        """Return the verdict, the figures and the classes that changed most, to print with rich."""
        return _tables(self)

    __rich__ = table


def compare_results(
    results_a: Results,
    results_b: Results,
    annotations: str | Path | GroundTruth,
    *,
    options: ScoringOptions | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Score two results against the same annotations, and tell how sure their difference is.

    A paired bootstrap (Efron & Tibshirani 1993, chapter 6): both results see the same resamples of
    pictures, so that what is easy or hard for both cancels out. The difference less that of all
    pictures, over its standard error, is taken for Student's t, with one degree of freedom less
    than there are pictures that have objects; interval and p-value come from it alike. That AP
    flatters on few pictures, see `ap_interval`, cancels out as far as it flatters both equally.

    Of two detectors that are equally good, p-values were below 0.05 in 4.6 to 5.6 % of cases, by
    `tools/interval_coverage.py`.

    Warns and raises as `evaluate_results`, and DetrKitError for fewer than 2 resamples.
    """
    require_resamples(resamples)
    truth = annotations if isinstance(annotations, GroundTruth) else load_ground_truth(annotations)
    a = evaluation_of(results_a, truth, options=options, stacklevel=4)
    b = evaluation_of(results_b, truth, options=options, stacklevel=4)
    _warn_of_other_pictures(a, b)
    names = (a.table.found.name, b.table.found.name)
    curves = [WeightedPrecision(side.table) for side in (a, b)]
    if a.metrics.ap is None or b.metrics.ap is None:
        return Comparison(names, a.metrics, b.metrics, None, None, None, (), truth.num_images)
    drawn_a, drawn_b = resampled_precisions(curves, resamples, seed)
    drawn, images_of_class = drawn_b - drawn_a, curves[0].images_of_class
    difference = b.metrics.ap - a.metrics.ap
    error = standard_error(drawn, images_of_class)
    interval, p_value = _tested(difference, error, curves[0].num_images_with_objects)
    classes = _changes(a.metrics, b.metrics, drawn, curves[0])
    return Comparison(
        names, a.metrics, b.metrics, difference, interval, p_value, classes, truth.num_images
    )


def _warn_of_other_pictures(a: Evaluation, b: Evaluation) -> None:
    """Results of other pictures are worse for that alone; none at all were warned of already."""
    if not (len(a.table.found) and len(b.table.found)):
        return
    of_a, of_b = (uncovered(side.table.found, side.truth) for side in (a, b))
    for name, own, other in (("A", of_a, of_b), ("B", of_b, of_a)):
        num_only = int((~np.isin(own, other)).sum())
        if num_only > OTHER_PICTURES * a.truth.num_images:
            warnings.warn(
                f"{name} has no detections in {num_only} of {a.truth.num_images} pictures in "
                "which the other has some; were both run on the same pictures?",
                DetrKitWarning,
                stacklevel=3,
            )


def _tested(
    difference: float, error: float, num_images: int
) -> tuple[Interval | None, float | None]:
    if num_images < FEWEST_IMAGES:
        return None, None
    if abs(difference) <= _ROUNDING and error <= _ROUNDING:
        return Interval(0.0, 0.0, LEVEL), 1.0
    freedom = num_images - 1
    reach = student_quantile(LEVEL, freedom) * error
    t = abs(difference) / error if error > _ROUNDING else math.inf
    # No test can be surer than if every picture spoke for the same side by the toss of a coin.
    p_value = max(student_p_value(t, freedom), 2.0 ** (1 - num_images))
    return Interval(max(difference - reach, -1.0), min(difference + reach, 1.0), LEVEL), p_value


def _changes(
    a: CocoMetrics, b: CocoMetrics, drawn: np.ndarray, curves: WeightedPrecision
) -> tuple[ClassChange, ...]:
    """Return how each class with objects changed; `drawn` (B, K) are resampled differences."""
    changes = []
    for column, (name, ap_a) in enumerate(a.per_class.items()):
        ap_b = b.per_class[name]
        if ap_a is None or ap_b is None:
            continue
        images = curves.images_of_class[column : column + 1]
        error = standard_error(drawn[:, column : column + 1], images)
        interval, p_value = _tested(ap_b - ap_a, error, int(images[0]))
        change = ClassChange(
            name, ap_a, ap_b, ap_b - ap_a, interval, p_value, None,
            int(images[0]), int(curves.objects_of_class[column]),
        )  # fmt: skip
        changes.append(change)
    changes.sort(key=lambda change: (change.p_value is None, -abs(change.difference)))
    return _adjusted(changes)


def _adjusted(changes: list[ClassChange]) -> tuple[ClassChange, ...]:
    p_values = [change.p_value for change in changes if change.p_value is not None]
    adjusted: list[float | None] = [*holm(p_values), *[None] * (len(changes) - len(p_values))]
    return tuple(
        replace(change, adjusted_p_value=value)
        for change, value in zip(changes, adjusted, strict=True)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, by Holm 1979, in the same order.

    Whatever depends on whatever, the least of those without a difference is below 0.05 in at most
    5 % of cases.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _span(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _p_text(p_value: float | None) -> str:
    if p_value is None:
        return ""
    if p_value < 0.001:
        return "< 0.001"
    return f"{p_value:.2f}" if p_value >= 0.1 else f"{p_value:.3f}"


def _signed(difference: float) -> str:
    return f"{round(difference, 3) + 0.0:+.3f}"  # + 0.0: no -0.000


def _tables(comparison: Comparison) -> Group:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(comparison.verdict)]
    if comparison.names[0] != comparison.names[1]:
        parts += [
            Text(f"{side}: {name}") for side, name in zip("AB", comparison.names, strict=True)
        ]
    parts.append(_figure_table(comparison))
    if len(comparison.classes) > 1:
        parts += [_class_table(comparison), Text(_class_verdict(comparison))]
    return Group(*parts)


def _figure_table(comparison: Comparison) -> Table:
    from rich.table import Table

    table = Table("figure", "over", title=f"A and B on {comparison.num_images} images")
    for name in ("A", "B", "B - A"):
        table.add_column(name, justify="right")
    for (figure, a), (_, b) in zip(comparison.a.figures(), comparison.b.figures(), strict=True):
        if a is None or b is None:
            table.add_row(figure.name, figure.over, NO_GROUND_TRUTH)
            continue
        table.add_row(figure.name, figure.over, f"{a:.3f}", f"{b:.3f}", _signed(b - a))
        if figure.key == "ap" and comparison.interval is not None:
            over = f"{100 * comparison.interval.level:.0f} % interval"
            table.add_row("", over, "", "", _span(comparison.interval))
    return table


def _class_table(comparison: Comparison) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("class", title="Classes that changed most")
    for name in ("images", "A", "B", "B - A", f"{100 * LEVEL:.0f} % interval", "p", "p (Holm)"):
        table.add_column(name, justify="right")
    for change in comparison.classes[:SHOWN_CLASSES]:
        row = [f"{change.num_images}", f"{change.a:.3f}", f"{change.b:.3f}"]
        row.append(_signed(change.difference))
        if change.interval is None:
            row.append("too few images")
        else:
            row.append(_span(change.interval))
            row += [_p_text(p) for p in (change.p_value, change.adjusted_p_value)]
        table.add_row(Text(change.name), *row)  # Text: a name with square brackets is no markup
    return table


def _class_verdict(comparison: Comparison) -> str:
    least = 1 - LEVEL
    tested = [c for c in comparison.classes if c.p_value is not None]
    if not tested:
        return f"No class is seen in the {FEWEST_IMAGES} images that a test needs."
    low = [c.name for c in tested if c.p_value is not None and c.p_value < least]
    surely = [c.name for c in tested if (c.adjusted_p_value or 0.0) < least]
    more = [f"and {len(surely) - SHOWN_CLASSES} more"] if len(surely) > SHOWN_CLASSES else []
    listed = f": {', '.join(surely[:SHOWN_CLASSES] + more)}" if surely else ""
    return (
        f"{len(low)} of {len(tested)} classes tested have p < {least:.2g}; by chance alone, "
        f"{least * len(tested):.2g} would. p (Holm) allows for their number: "
        f"{len(surely) or 'none'} below {least:.2g}{listed}"
    )
