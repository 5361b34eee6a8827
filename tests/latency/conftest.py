from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.config import ModelConfig
from detr_kit.detections import Detections
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

TABLE = CategoryTable((3,), ("cat",))
PREPROCESSING = Preprocessing(SizeRule("fit", 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NOTHING = Detections(np.empty((0, 4)), np.empty(0), np.empty(0), [])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latency") / "detector"
    torch.manual_seed(0)
    numbers = resolve(
        ModelConfig(
            name="yolos_small",
            hidden_dim=16,
            num_heads=1,
            feedforward_dim=16,
            depth=1,
            num_queries=4,
            position_size_hw=(32, 32),
        )
    )
    spec = DetectorSpec(numbers, TABLE, PREPROCESSING)
    save_detector(folder, build_model(numbers, len(TABLE)), spec)
    return folder


@pytest.fixture(scope="module")
def onnx_file(checkpoint: Path) -> Path:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from detr_kit.export.onnx_file import export_onnx
    from detr_kit.inference.detector import Detector

    path = checkpoint.parent / "model.onnx"
    export_onnx(Detector.from_checkpoint(checkpoint, "cpu"), path, mask=False, check=False)
    return path
