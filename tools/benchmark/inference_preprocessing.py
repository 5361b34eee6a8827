"""The preprocessing part of inference.py: from a file or its pixels to a network's input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inference_sides import normalized
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from detr_kit.images import read_image
from detr_kit.inference.detector import Detector

Work = Callable[[], Any]


def preprocessing_work(detector: Detector, folder: Path, path: Path) -> dict[str, dict[str, Work]]:
    """Return by "decoded" and "file" what each side does; the first is detr_kit's.

    transformers has an image processor on torchvision, its default, and one on Pillow. The first
    is given what suits it best: a tensor that torchvision has decoded.
    """
    fast, slow = _processors(folder)
    pixels = read_image(path)
    planes = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return {
        "decoded": {
            "detr_kit": lambda: normalized(detector, [pixels]),
            "transformers, torchvision": lambda: fast(images=planes, return_tensors="pt"),
            "transformers, Pillow": lambda: slow(images=pixels, return_tensors="pt"),
        },
        "file": {
            "detr_kit": lambda: normalized(detector, [read_image(path)]),
            "transformers, torchvision": lambda: fast(
                images=decode_image(str(path), mode=ImageReadMode.RGB), return_tensors="pt"
            ),
            "transformers, Pillow": lambda: slow(images=_opened(path), return_tensors="pt"),
        },
    }


def pixel_differences(work: dict[str, Work], std: tuple[float, ...]) -> dict[str, str]:
    """Return how far the sides' pixels are from detr_kit's, in levels of 255."""
    levels = torch.tensor(std).view(3, 1, 1) * 255
    ours: Tensor = work["detr_kit"]().pixels * levels
    found = {}
    for name, call in work.items():
        if name != "detr_kit":
            difference = (call()["pixel_values"] * levels - ours).abs()
            found[name] = f"{float(difference.max()):.2f} at most, {float(difference.mean()):.4f}"
    return found


def _processors(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    fast = AutoImageProcessor.from_pretrained(folder)
    kind = DetrImageProcessorPil if "Detr" in type(fast).__name__ else YolosImageProcessorPil
    return fast, kind.from_pretrained(folder)


def _opened(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.array(file.convert("RGB"))
