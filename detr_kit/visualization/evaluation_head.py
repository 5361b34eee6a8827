"""The head of an evaluation's page: its figures, and by which rules they were computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detr_kit.evaluation.analysis import Analysis
from detr_kit.evaluation.metrics import NO_GROUND_TRUTH
from detr_kit.evaluation.options import ALL_AREAS, ScoringOptions
from detr_kit.visualization.texts import grouped


@dataclass(frozen=True)
class Tile:
    """A figure with its name, and what it is over."""

    name: str
    value: str
    over: str = ""


def tiles(analysis: Analysis) -> list[Tile]:
    """Return all figures, and how many pictures, detections and objects there are."""
    metrics, table = analysis.evaluation.metrics, analysis.evaluation.table
    shown = [
        Tile(figure.name, NO_GROUND_TRUTH if value is None else f"{value:.3f}", figure.over)
        for figure, value in metrics.figures()
    ]
    shown += [
        Tile("images", grouped(metrics.num_images)),
        Tile("detections", grouped(metrics.num_detections)),
        Tile("objects", grouped(table.at(0).num_objects.sum())),
    ]
    num_crowds = int(table.truth.is_crowd.sum())
    if num_crowds:
        shown.append(Tile("crowd regions", grouped(num_crowds), "not looked for"))
    return shown


def ap_text(analysis: Analysis) -> str:
    """Write AP, with its interval where there is one."""
    metrics = analysis.evaluation.metrics
    if metrics.ap is None:
        return "AP: no ground truth"
    interval = metrics.ap_interval
    if interval is None:
        return f"AP {metrics.ap:.3f}"
    level = f"{100 * interval.level:.0f} %"
    return f"AP {metrics.ap:.3f}, {level} interval {interval.low:.3f} to {interval.high:.3f}"


def rules(options: ScoringOptions) -> list[str]:
    """Say in what the rules are not COCO's; nothing where they are."""
    coco = ScoringOptions()
    said = []
    if options.class_agnostic:
        said.append("all classes count as one (class-agnostic)")
    if options.iou_thresholds != coco.iou_thresholds:
        said.append(_listed("IoU threshold", options.iou_thresholds))
    if options.max_detections != coco.max_detections:
        most = ", ".join(map(str, options.max_detections[:20]))
        said.append(f"at most {most} detections an image and class")
    if options.areas != coco.areas:
        ranges = [name for name in options.areas if name != ALL_AREAS]
        said.append(f"ranges of area: {', '.join(ranges) or 'all'}")
    return said


def _listed(noun: str, numbers: Sequence[float]) -> str:
    listed = ", ".join(f"{number:.6g}" for number in numbers[:20])
    more = ", …" if len(numbers) > 20 else ""
    return f"{noun}{'s' if len(numbers) > 1 else ''} {listed}{more}"
