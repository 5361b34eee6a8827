"""detr_kit: object detection with transformers, DETR and YOLOS, on COCO-format data.

Names are imported when first used, so that `import detr_kit` stays light and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detr_kit.data.checks.run import check
    from detr_kit.detections import Detections
    from detr_kit.errors import DetrKitError
    from detr_kit.evaluation.coco import CocoMetrics, evaluate_results
    from detr_kit.evaluation.run import evaluate
    from detr_kit.export.onnx_detector import OnnxDetector
    from detr_kit.inference.detector import Detector
    from detr_kit.inference.tiles import predict_tiled
    from detr_kit.inference.video import predict_video
    from detr_kit.training.run import resume, train

__version__ = "0.1.0"

_HOMES = {
    "CocoMetrics": "detr_kit.evaluation.coco",
    "Detections": "detr_kit.detections",
    "Detector": "detr_kit.inference.detector",
    "DetrKitError": "detr_kit.errors",
    "OnnxDetector": "detr_kit.export.onnx_detector",
    "check": "detr_kit.data.checks.run",
    "evaluate": "detr_kit.evaluation.run",
    "evaluate_results": "detr_kit.evaluation.coco",
    "predict_tiled": "detr_kit.inference.tiles",
    "predict_video": "detr_kit.inference.video",
    "resume": "detr_kit.training.run",
    "train": "detr_kit.training.run",
}

__all__ = [
    "CocoMetrics",
    "Detections",
    "Detector",
    "DetrKitError",
    "OnnxDetector",
    "__version__",
    "check",
    "evaluate",
    "evaluate_results",
    "predict_tiled",
    "predict_video",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detr_kit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
