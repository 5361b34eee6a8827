"""A detector that is ready to use: weights, categories and preprocessing in one object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.sources import load_detector
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.images import ImageInput, read_image
from detr_kit.prediction import predict_batches
from detr_kit.preprocess import Preprocessing
from detr_kit.structures import CollatedImages


class Detector:
    """A model (an ordinary module in `.model`) with what turns pictures into its input."""

    def __init__(
        self,
        model: nn.Module,
        categories: CategoryTable,
        preprocessing: Preprocessing,
        device: torch.device | str | None = None,
    ) -> None:
        try:
            self.device = torch.device(device) if device is not None else best_device()
            self.model = model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # torch names devices it lacks so
            raise DetrKitError(f"device {str(device)!r} cannot be used: {error}") from error
        self.categories = categories
        self.preprocessing = preprocessing

    @classmethod
    def from_checkpoint(
        cls,
        source: str | Path,
        device: torch.device | str | None = None,
        *,
        architecture: Mapping[str, Any] | None = None,
        categories: Mapping[int, str] | None = None,
    ) -> Detector:
        """Load a detector from what it is kept as; `device` as in torch.

        `source` is a checkpoint's folder, a run's folder (its `best/`), an official DETR's or
        YOLOS's `.pth`, a Hugging Face folder, or a name on its hub such as
        `facebook/detr-resnet-50` or `hustvl/yolos-tiny@REVISION`, fetched once. `architecture`
        replaces settings: `{"padding": "official"}`, or what an official file does not tell
        (`{"dilation": True}`); `categories` names the columns of such a file by category id.

        Raises DetrKitError where it is none of these, or where its files do not fit together.
        """
        model, spec = load_detector(source, architecture, categories)
        return cls(model, spec.categories, spec.preprocessing, device)

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        threshold: float = 0.5,
        batch_size: int = 8,
    ) -> list[Detections]:
        """Detect in one picture or several: paths, PIL images, RGB uint8 arrays (H, W, 3).

        Returns one Detections a picture, in the given order, of the objects scored at least
        `threshold`; a list of one for a single picture. Raises DetrKitError for a picture that
        cannot be read, naming it.
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            images = [images]
        if batch_size < 1:
            raise DetrKitError(f"batch_size: expected at least 1, got {batch_size}")
        pictures = list(images)
        predictions = predict_batches(
            self.model,
            self._batches(pictures, batch_size),
            categories=self.categories,
            preprocessing=self.preprocessing,
            device=self.device,
            threshold=threshold,
            name_of=lambda index: _name_of(pictures[index], index),
        )
        return [detections for _, detections in predictions]

    def _batches(self, pictures: list[ImageInput], batch_size: int) -> Iterator[CollatedImages]:
        """Read pictures only when their batch is due; image ids are positions in the list."""
        for start in range(0, len(pictures), batch_size):
            originals = [read_image(picture) for picture in pictures[start : start + batch_size]]
            yield CollatedImages.from_images(
                [torch.from_numpy(self.preprocessing.apply(image)) for image in originals],
                [(image.shape[0], image.shape[1]) for image in originals],
                range(start, start + len(originals)),
            )


def best_device() -> torch.device:
    """Return the first CUDA device, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _name_of(picture: ImageInput, index: int) -> str:
    return str(picture) if isinstance(picture, str | Path) else f"number {index} of the list"
