"""COCO figures of a detector or of a results file, and what explains them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detr_kit.evaluation.analysis import Analysis, analyse
from detr_kit.evaluation.bootstrap import ap_interval
from detr_kit.evaluation.coco import Evaluation, evaluate_results, evaluation_of
from detr_kit.evaluation.comparison import Comparison, compare_results
from detr_kit.evaluation.metrics import CocoMetrics
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.results import write_results

if TYPE_CHECKING:
    from detr_kit.evaluation.run import evaluate

__all__ = [
    "Analysis",
    "CocoMetrics",
    "Comparison",
    "Evaluation",
    "ScoringOptions",
    "analyse",
    "ap_interval",
    "compare_results",
    "evaluate",
    "evaluate_results",
    "evaluation_of",
    "write_results",
]


def __getattr__(name: str) -> Any:
    if name == "evaluate":  # torch is loaded only where a model runs
        from detr_kit.evaluation.run import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
