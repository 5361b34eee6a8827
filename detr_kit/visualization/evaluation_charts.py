"""The charts of an evaluation's report: curves, calibration and breakdowns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detr_kit.evaluation.breakdowns import Breakdown
from detr_kit.evaluation.calibration import Calibration
from detr_kit.evaluation.curves import PrecisionRecallCurves, ScoreCurves
from detr_kit.visualization.charts import (
    FONT_SIZE,
    WIDTH,
    Figure,
    child,
    histogram,
    markup,
    name_width_of,
    svg,
)
from detr_kit.visualization.error_charts import ap_name, shown
from detr_kit.visualization.line_charts import (
    Axis,
    Line,
    Mark,
    axis_over,
    line_chart,
    share_axis,
)
from detr_kit.visualization.texts import counted, decimal, fitted, percent, width_of

# Classes that are drawn, in the background, in the chart of the classes' curves.
_THIN_CLASSES = 20
# What rests on fewer objects says little.
FEW_OBJECTS = 10


def precision_recall_figure(curves: PrecisionRecallCurves) -> Figure:
    """Show the mean curve at each IoU threshold; the first, a middle and the last one are named."""
    title = "Precision and recall by IoU threshold"
    if not np.isfinite(curves.by_threshold).any():
        return Figure(title, (), "There are no objects to be found.")
    last = len(curves.iou_thresholds) - 1
    named = {0, (last + 1) // 2, last}
    aps = curves.by_threshold.mean(axis=1)
    lines = [
        Line(f"IoU {iou:.4g}: AP {ap:.3f}", curves.recalls, row, is_thin=place not in named)
        for place, (iou, row, ap) in enumerate(
            zip(curves.iou_thresholds, curves.by_threshold, aps, strict=True)
        )
    ]
    label = f"{title}: {lines[0].name}" + (f" to {lines[-1].name}" if last else "")
    note = "Mean over the classes." + (" Thin: the thresholds between." if last > 2 else "")
    return Figure(title, (_recall_chart(lines, label),), note)


def class_curves_figure(
    curves: PrecisionRecallCurves, names: Sequence[str], num_objects: np.ndarray
) -> Figure:
    """Show the curves of the classes at one IoU threshold: all of few, the ends of many.

    `num_objects` (K,) by class: the ends are among those with `FEW_OBJECTS` or more, if any.
    """
    title = f"Precision and recall of classes at IoU {curves.iou:.4g}"
    aps = curves.by_class.mean(axis=1)
    known = np.flatnonzero(np.isfinite(aps))
    if not len(known):
        return Figure(title, (), "There are no objects to be found.")
    order = known[np.argsort(-aps[known], kind="stable")].tolist()
    is_few = len(order) <= 4
    sure = [k for k in order if num_objects[k] >= FEW_OBJECTS] or order
    chosen = order if is_few else [sure[0], sure[len(sure) // 2], sure[-1]]
    others = [] if is_few or len(order) > _THIN_CLASSES else [k for k in order if k not in chosen]
    roles = [""] * 4 if is_few else ["best: ", "median: ", "worst: "]
    lines = [
        Line(f"{role}{fitted(names[k], 200, FONT_SIZE)}, AP {aps[k]:.3f}", curves.recalls, row)
        for role, k, row in zip(roles, chosen, curves.by_class[chosen], strict=False)
    ]
    lines += [
        Line(f"{names[k]}, AP {aps[k]:.3f}", curves.recalls, curves.by_class[k], is_thin=True)
        for k in others
    ]
    notes = []
    if not is_few and len(sure) < len(order):
        notes.append(f"Chosen among the classes with {FEW_OBJECTS} objects or more.")
    if others:
        notes.append("Thin: the other classes.")
    return Figure(title, (_recall_chart(lines, title),), " ".join(notes))


def _recall_chart(lines: Sequence[Line], label: str) -> str:
    return line_chart(
        lines, label=label, x_axis=share_axis("recall"), y_axis=share_axis("precision")
    )


def score_figure(curves: ScoreCurves) -> Figure:
    """Show precision, recall and F1 of all classes together against the score threshold."""
    title = f"Precision, recall and F1 by score threshold at IoU {curves.iou:.4g}"
    values = [curves.pooled_precision, curves.pooled_recall, curves.pooled_f1]
    if not np.isfinite(np.concatenate(values)).any():
        return Figure(title, (), "There are no objects to be found.")
    lines = [
        Line(name, curves.thresholds, row)
        for name, row in zip(("precision", "recall", "F1"), values, strict=True)
    ]
    mark, note = None, "No detection is right, so no threshold is best."
    best, best_f1 = curves.pooled_best_threshold, curves.pooled_best_f1
    if best is not None and best_f1 is not None:
        mark = Mark(best, f"best F1 {best_f1:.3f} at {decimal(best)}")
        note = f"F1 is best, {best_f1:.3f}, for detections of score {best:.4g} or more."
    drawing = line_chart(
        lines,
        label=f"{title}. {note}",
        x_axis=_score_axis(curves.thresholds),
        y_axis=share_axis("share"),
        mark=mark,
    )
    return Figure(title, (drawing,), note + " All classes' detections together.")


def _score_axis(thresholds: np.ndarray) -> Axis:
    low, high = float(thresholds.min()), float(thresholds.max())
    if (low, high) == (0.0, 1.0):
        return share_axis("score threshold")
    return axis_over(thresholds, "score threshold")


def calibration_figures(calibration: Calibration | None) -> list[Figure]:
    """Show how often detections of each score are right, and how many there are."""
    title = "Reliability of scores"
    if calibration is None:
        return [Figure(title, (), "Scores lie outside [0, 1], so they cannot be probabilities.")]
    if not calibration.counts.sum():
        return [Figure(title, (), "There are no detections.")]
    filled = calibration.counts > 0
    measured = Line(
        "detections that are right", calibration.mean_scores[filled], calibration.precisions[filled]
    )
    perfect = Line("score equals share", np.array([0.0, 1.0]), np.array([0.0, 1.0]), is_thin=True)
    error = (
        ""
        if calibration.error is None
        else f"Expected calibration error {calibration.error:.3f}: so far are scores and shares "
        "apart, in the mean over the detections."
    )
    drawing = line_chart(
        [perfect, measured],
        label=f"{title} at IoU {calibration.iou:g}",
        x_axis=share_axis("score"),
        y_axis=share_axis("share that is right"),
    )
    note = (
        f"{error} The thin line is where scores say what they mean; under it they promise too "
        f"much. Right: IoU {calibration.iou:g} or more with an object of the class, each of which "
        "only the best-scored detection has."
    )
    return [Figure(title, (drawing,), note.strip()), _score_counts(calibration)]


def _score_counts(calibration: Calibration) -> Figure:
    title = "Scores of detections"
    tooltips = [
        f"{start:.2f} to {end:.2f}: {counted(count, 'detection')}"
        + (f", {percent(share, 1)} right" if count else "")
        for start, end, count, share in zip(
            calibration.edges[:-1],
            calibration.edges[1:],
            calibration.counts,
            calibration.precisions,
            strict=True,
        )
    ]
    drawing = histogram(
        calibration.counts,
        calibration.edges,
        label=title,
        ticks=share_axis("").ticks,
        tooltips=tooltips,
        x_label="score",
        y_label="detections",
    )
    note = "Shares over low bars in the reliability chart rest on few detections."
    return Figure(title, (drawing,), note)


def breakdown_figure(breakdown: Breakdown, iou: float) -> Figure:
    """Show AP and the share of the objects that is found at `iou`, of each part of them.

    Bars of parts with fewer than `FEW_OBJECTS` objects are pale.
    """
    row = 38
    objects = [counted(number, "object") for number in breakdown.num_objects]
    left = 12 + name_width_of([*breakdown.names, *objects])
    room = WIDTH - left - width_of("found 100 %", FONT_SIZE) - 4
    label = f"{breakdown.title}: " + ", ".join(
        f"{name} AP {shown(ap)}" for name, ap in zip(breakdown.names, breakdown.ap, strict=True)
    )
    drawing = svg(label, WIDTH, row * len(breakdown.names))
    for place, name in enumerate(breakdown.names):
        y = row * place
        group = child(drawing, "g", class_="bin")
        ap, half, found = (
            values[place] for values in (breakdown.ap, breakdown.ap_at_iou, breakdown.recall)
        )
        tooltip = f"{name}: {objects[place]}, AP {shown(ap)}, {ap_name(iou)} {shown(half)}"
        child(group, "title", tooltip)
        child(group, "rect", class_="hit", x=0, y=y, width=WIDTH, height=row)
        for text, line, look in ((name, 14, "end"), (objects[place], 29, "end soft")):
            child(
                group,
                "text",
                fitted(text, left - 8, FONT_SIZE),
                class_=look,
                x=left - 8,
                y=y + line,
            )
        if ap is None or found is None:
            child(group, "text", "no objects", class_="soft", x=left, y=y + 14)
            continue
        paleness = " few" if breakdown.num_objects[place] < FEW_OBJECTS else ""
        for value, text, top, look in (
            (ap, f"AP {ap:.3f}", y + 3, "bar" + paleness),
            (found, f"found {percent(found, 1)}", y + 18, "bar other" + paleness),
        ):
            width = max(1.0, room * value)
            child(group, "rect", class_=look, x=left, y=top, width=width, height=13)
            child(group, "text", text, class_="soft", x=left + width + 4, y=top + 11)
    has_few = ((breakdown.num_objects > 0) & (breakdown.num_objects < FEW_OBJECTS)).any()
    note = f" Pale: fewer than {FEW_OBJECTS} objects, which say little." if has_few else ""
    return Figure(breakdown.title, (markup(drawing),), breakdown.note + note)
