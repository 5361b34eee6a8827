"""What costs AP in an evaluation's report: kinds of errors, and boxes that are placed loosely."""

from __future__ import annotations

import numpy as np

from detr_kit.evaluation.analysis import Analysis
from detr_kit.evaluation.error_kinds import KINDS, ErrorKinds
from detr_kit.evaluation.metrics import NO_GROUND_TRUTH
from detr_kit.visualization.charts import Figure, bars
from detr_kit.visualization.texts import counted, grouped

# What each kind of error means, in few words.
MEANINGS = {
    "classification": "right place, wrong class",
    "localisation": "right class, but the box overlaps the object too little",
    "both": "wrong class, and the box overlaps the object too little",
    "duplicate": "a second detection of an object that is found already",
    "background": "no object there",
    "missed": "objects not found that no localisation or classification error is about",
}


def ap_name(iou: float) -> str:
    """Write AP50, and of IoU thresholds that have no such name AP at IoU 0.3."""
    return {0.5: "AP50", 0.75: "AP75"}.get(iou, f"AP at IoU {iou:.4g}")


def shown(value: float | None) -> str:
    """Write a figure, which may be unknown."""
    return NO_GROUND_TRUTH if value is None or not np.isfinite(value) else f"{value:.3f}"


def error_figures(analysis: Analysis) -> list[Figure]:
    """Show what each kind of error costs, how often it occurs, and what loose boxes cost."""
    return [*_kind_figures(analysis.errors), *_loose_figures(analysis)]


def _kind_figures(errors: ErrorKinds) -> list[Figure]:
    names = [kind.capitalize() for kind in KINDS]
    costs = [errors.costs[kind] for kind in KINDS]
    counts = [int(errors.counts[kind]) for kind in KINDS]
    ap = ap_name(errors.iou)
    tooltips = [
        f"{MEANINGS[kind]}: {counted(count, 'error')}, {ap} cost {shown(cost)}"
        for kind, cost, count in zip(KINDS, costs, counts, strict=True)
    ]
    cost_title, count_title = f"{ap} that each kind costs", "Number of errors of each kind"
    cost_drawing = bars(
        names,
        [cost or 0.0 for cost in costs],
        texts=[shown(cost) for cost in costs],
        label=cost_title,
        tooltips=tooltips,
    )
    count_drawing = bars(
        names,
        counts,
        texts=[grouped(count) for count in counts],
        label=count_title,
        tooltips=tooltips,
    )
    note = (
        f"What {ap} gains if all errors of the kind are mended, and nothing else. The costs do not "
        "add up: after one kind is mended another one may cost more, or less."
    )
    count_note = (
        "Wrong detections, and for missed objects, whatever the score. An object that is not found "
        "but has a localisation or classification error on it counts there, not as missed."
    )
    return [
        Figure(cost_title, (cost_drawing,), note + _special_costs(errors)),
        Figure(count_title, (count_drawing,), count_note),
    ]


def _special_costs(errors: ErrorKinds) -> str:
    if errors.false_positive_cost is None or errors.missed_cost is None:
        return ""
    ap = ap_name(errors.iou)
    return (
        f" Were all wrong detections removed, {ap} would be {errors.false_positive_cost:.3f} "
        "higher; that is not to mend them, as a box that is removed finds nothing. Without all "
        f"objects that are not found it would be {errors.missed_cost:.3f} higher."
    )


def _loose_figures(analysis: Analysis) -> list[Figure]:
    """Show AP at the lowest IoU threshold beside AP over all of them, where there are others."""
    thresholds = analysis.evaluation.table.options.iou_thresholds
    lowest, ap = analysis.errors.ap, analysis.evaluation.metrics.ap
    if analysis.iou != thresholds[0] or len(thresholds) == 1 or lowest is None or ap is None:
        return []
    name = ap_name(analysis.iou)
    over = f"IoU {thresholds[0]:.2f} to {thresholds[-1]:.2f}"
    title = f"What loosely placed boxes cost: {name} less AP"
    texts = [f"{lowest:.3f}", f"{ap:.3f}", f"{lowest - ap:.3f}"]
    names = [name, "AP", "Loose boxes"]
    tooltips = [f"at IoU {analysis.iou:.4g}", f"mean over {over}", f"{name} less AP"]
    values = [lowest, ap, max(lowest - ap, 0.0)]
    drawing = bars(names, values, texts=texts, label=title, tooltips=tooltips, top=1.0)
    note = (
        f"Boxes that are right at IoU {analysis.iou:.4g} but too loose for stricter thresholds: "
        f"{name} {lowest:.3f}, AP {ap:.3f}. The kinds of errors above do not show this loss."
    )
    return [Figure(title, (drawing,), note)]
