"""The sides of inference.py: one detector, run by detr_kit, ONNX Runtime and transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_sides import load_peer, write_peer
from torch import Tensor

from detr_kit.inference.detector import Detector
from detr_kit.structures import CollatedImages, ImageBatch

THRESHOLD = 0.5
OURS, ONNX = "detr_kit", "detr_kit, ONNX Runtime"


@dataclass(frozen=True)
class Outputs:
    """What a network says of a batch: (B, Q, C) probabilities and (B, Q, 4) boxes in [0, 1]."""

    probabilities: Tensor
    boxes_cxcywh: Tensor


@dataclass(frozen=True)
class Side:
    """One way to run the detector on the pictures that it was made with.

    `network` goes from normalised pixels to raw outputs, `outputs` reads those; `detect` goes from
    decoded pictures to the boxes that score at least `THRESHOLD`.
    """

    name: str
    network: Callable[[], Any]
    outputs: Callable[[Any], Outputs]
    detect: Callable[[], Any]


def write_detector(family: str, folder: Path) -> None:
    """Write a folder of transformers with drawn weights and the published image processor."""
    from transformers import DetrImageProcessor, YolosImageProcessor

    write_peer(family, folder)
    kind = DetrImageProcessor if family == "detr" else YolosImageProcessor
    kind(size={"shortest_edge": 800, "longest_edge": 1333}).save_pretrained(folder)


def our_side(folder: Path, pictures: list[np.ndarray]) -> Side:
    detector = Detector.from_checkpoint(folder, "cpu")
    batch = normalized(detector, pictures)
    return Side(
        OURS,
        lambda: detector.model(batch),
        lambda output: Outputs(output.logits.softmax(-1)[..., :-1], output.boxes_cxcywh),
        lambda: detector.predict(pictures, THRESHOLD, len(pictures)),
    )


def normalized(detector: Detector, pictures: list[np.ndarray]) -> ImageBatch:
    """Return what `Detector.predict` gives its model."""
    resized = [torch.from_numpy(detector.prepare(picture)) for picture in pictures]
    sizes_hw = [(picture.shape[0], picture.shape[1]) for picture in pictures]
    batch = CollatedImages.from_images(resized, sizes_hw, range(len(pictures)))
    return batch.normalized(detector.preprocessing.mean, detector.preprocessing.std)


def onnx_side(folder: Path, pictures: list[np.ndarray], threads: int) -> Side:
    """Export to a file beside the weights, once, and run that."""
    from detr_kit.export.onnx_detector import OnnxDetector
    from detr_kit.export.onnx_file import export_onnx

    path = folder / "model.onnx"
    detector = Detector.from_checkpoint(folder, "cpu")
    if not path.exists():
        export_onnx(detector, path, mask=False, check=False)  # compared with the others anyway
    own = OnnxDetector.from_file(path, threads=threads)
    inputs = {"pixels": normalized(detector, pictures).pixels.contiguous().numpy()}
    return Side(
        ONNX,
        lambda: own.session.run(["scores", "boxes_cxcywh"], inputs),
        lambda values: Outputs(*map(torch.from_numpy, values)),
        lambda: own.predict(pictures, THRESHOLD, len(pictures)),
    )


def peer_side(folder: Path, attention: str, pictures: list[np.ndarray]) -> Side:
    """Do what transformers' users do: image processor, model, its own post-processing.

    The network alone gets detr_kit's pixels, in the layout of that processor: its own are a level
    of 255 off here and there, of which drawn weights make much.
    """
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    model: Any = load_peer(folder, attention).eval()
    # As in the published folders: else its decoder is another network, see `step_sides`.
    model.config.auxiliary_loss = False
    sizes_hw = [picture.shape[:2] for picture in pictures]

    def processed() -> dict[str, Tensor]:
        inputs = dict(processor(images=pictures, return_tensors="pt"))
        if not hasattr(model, "model"):  # YOLOS of transformers knows no mask
            inputs.pop("pixel_mask", None)
        return inputs

    def detect() -> Any:
        return processor.post_process_object_detection(
            model(**processed()), threshold=THRESHOLD, target_sizes=sizes_hw
        )

    inputs = processed()
    pixels = normalized(Detector.from_checkpoint(folder, "cpu"), pictures).pixels
    inputs["pixel_values"] = pixels.contiguous()
    return Side(
        f"transformers, {attention}",
        lambda: model(**inputs),
        lambda output: Outputs(output.logits.softmax(-1)[..., :-1], output.pred_boxes),
        detect,
    )
