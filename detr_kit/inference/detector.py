"""A detector that is ready to use: weights, categories and preprocessing in one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.sources import load_detector
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.inference.predictor import Predictor
from detr_kit.models.compiled import compile_model
from detr_kit.prediction import predict_batches
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeHW
from detr_kit.structures import CollatedImages

Precision = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Detector(Predictor):
    """A model (an ordinary module in `.model`) with what turns pictures into its input.

    `device` is torch's name for one, the first accelerator by default. `precision` bf16 or fp16
    computes what is safe to in half precision; boxes and scores are of single precision always.
    `compile` compiles the layers of the transformer at the first call, see
    `detr_kit.models.compiled`: it pays on GPUs, for many pictures; `warm_up` does it beforehand.

    Calls from several threads are safe: reading and resizing run side by side, the model itself
    is run by one of them at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        categories: CategoryTable,
        preprocessing: Preprocessing,
        device: torch.device | str | None = None,
        *,
        precision: Precision = "fp32",
        compile: bool = False,
    ) -> None:
        super().__init__(categories, preprocessing)
        if precision not in _AUTOCAST:
            raise DetrKitError(f"precision {precision!r}: one of {', '.join(_AUTOCAST)}")
        try:
            self.device = torch.device(device) if device is not None else best_device()
            self.model = model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # torch names devices it lacks so
            raise DetrKitError(f"device {str(device)!r} cannot be used: {error}") from error
        self.precision = precision
        if compile:
            compile_model(self.model)
        self._one_at_a_time = Lock()

    @classmethod
    def from_checkpoint(
        cls,
        source: str | Path,
        device: torch.device | str | None = None,
        *,
        architecture: Mapping[str, Any] | None = None,
        categories: Mapping[int, str] | None = None,
        precision: Precision = "fp32",
        compile: bool = False,
    ) -> Detector:
        """Load a detector from what it is kept as; `device`, `precision`, `compile` as above.

        `source` is a checkpoint's folder, a run's folder (its `best/`), an official DETR's or
        YOLOS's `.pth`, a Hugging Face folder, or a name on its hub such as
        `facebook/detr-resnet-50` or `hustvl/yolos-tiny@REVISION`, fetched once. `architecture`
        replaces settings: `{"padding": "official"}`, or what an official file does not tell
        (`{"dilation": True}`); `categories` names the columns of such a file by category id.

        Raises DetrKitError where it is none of these, or where its files do not fit together.
        """
        model, spec = load_detector(source, architecture, categories)
        return cls(
            model,
            spec.categories,
            spec.preprocessing,
            device,
            precision=precision,
            compile=compile,
        )

    def detect(
        self, resized: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW], names: list[str]
    ) -> list[Detections]:
        height, width, _ = resized[0].shape
        batch = CollatedImages(
            torch.from_numpy(np.stack(resized)),
            ((height, width),) * len(resized),
            tuple(original_sizes_hw),
            tuple(range(len(resized))),
        )
        with self._one_at_a_time:
            predictions = predict_batches(
                self.model,
                [batch],
                categories=self.categories,
                preprocessing=self.preprocessing,
                device=self.device,
                autocast=_AUTOCAST[self.precision],
                name_of=names.__getitem__,
            )
            return [detections for _, detections in predictions]


def best_device() -> torch.device:
    """Return the accelerator that torch was built for, where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")
