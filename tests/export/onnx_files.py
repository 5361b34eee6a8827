"""Small detectors and their ONNX files, which the tests of exported files share."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD
from detr_kit.detections import Detections
from detr_kit.export.onnx_file import ExportReport, export_onnx
from detr_kit.inference.detector import Detector
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeHW, SizeRule
from tests.export.small_models import TABLE, small_model

_folder = tempfile.TemporaryDirectory()  # lives as long as the tests


def small_detector(kind: str) -> Detector:
    preprocessing = Preprocessing(SizeRule("detr", 96, 160), IMAGENET_MEAN, IMAGENET_STD)
    return Detector(small_model(kind, torch.float32), TABLE, preprocessing, "cpu")


@cache
def exported_file(kind: str, **options: Any) -> ExportReport:
    """Each of them takes seconds: tests share them."""
    name = "_".join([kind, *(f"{key}-{value}" for key, value in sorted(options.items()))])
    return export_onnx(small_detector(kind), Path(_folder.name) / f"{name}.onnx", **options)


def drawn_pictures(*sizes_hw: SizeHW) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes_hw]


def assert_same_detections(
    found: list[Detections], expected: list[Detections], *, scores: float, pixels: float
) -> None:
    """Compare pictures of few, well separated objects: the order must be the same too."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=scores)
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=pixels)
        assert one.names == other.names
        assert one.category_ids.tolist() == other.category_ids.tolist()
