"""COCO figures of a detector or of a results file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detr_kit.evaluation.coco import evaluate_results
from detr_kit.evaluation.metrics import CocoMetrics
from detr_kit.evaluation.results import write_results

if TYPE_CHECKING:
    from detr_kit.evaluation.run import evaluate

__all__ = ["CocoMetrics", "evaluate", "evaluate_results", "write_results"]


def __getattr__(name: str) -> Any:
    if name == "evaluate":  # torch is loaded only where a model runs
        from detr_kit.evaluation.run import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
