"""Print how far predictions move with the way that pictures are handed over, and the AP with it.

    python tools/batch_check.py SOURCE ... --annotations A --images I [--count 32] [--no-ap]

SOURCE is a checkpoint or a variant of the zoo (random weights). The first pictures of the data set
are predicted alone, in lists of 8 of mixed sizes, as a stream, and in padded batches of 8 as
evaluation makes them; each is compared with alone: the largest difference of scores, and of boxes
in pixels. Then AP by evaluation with batches of 1 and of 8.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from detr_kit import Detector, evaluate
from detr_kit.categories import coco_table
from detr_kit.config import ModelConfig
from detr_kit.data.annotations import load_annotations
from detr_kit.data.loading import eval_loader
from detr_kit.detections import Detections
from detr_kit.images import read_image
from detr_kit.models.zoo import VARIANTS, build_model, resolve
from detr_kit.prediction import predict_batches
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def detector_of(source: str) -> Detector:
    if source not in VARIANTS:
        return Detector.from_checkpoint(source, device="cpu")
    torch.manual_seed(0)
    model = build_model(resolve(ModelConfig(name=source, backbone_weights="none")), num_classes=91)
    rule = "yolos_16" if source.startswith("yolos") else "detr"
    return Detector(model, coco_table(), Preprocessing(SizeRule(rule, 320, 533), *IMAGENET), "cpu")


def largest_differences(
    alone: list[Detections], others: list[Detections]
) -> tuple[float, float, int]:
    """Return those of scores and boxes, and how many objects changed places or class.

    Objects come by score: two with scores that are equal but for rounding may change places.
    """
    scores = boxes = 0.0
    moved = 0
    for one, other in zip(alone, others, strict=True):
        scores = max(scores, float(np.abs(one.scores - other.scores).max(initial=0)))
        # Each object's nearest of the same class: the order is not what is compared.
        distance = np.abs(one.boxes_xyxy[:, None] - other.boxes_xyxy[None]).max(axis=-1)
        same = one.category_ids[:, None] == other.category_ids[None]
        nearest = np.where(same, distance, np.inf).min(axis=1, initial=np.inf)
        boxes = max(boxes, float(nearest[np.isfinite(nearest)].max(initial=0)))
        moved += int((~np.isfinite(nearest)).sum())
    return scores, boxes, moved


def padded(detector: Detector, annotations: Path, images: Path, count: int) -> list[Detections]:
    loader = eval_loader(
        load_annotations(annotations, on_bad_box="skip"),
        images,
        detector.preprocessing,
        batch_size=8,
    )
    batches = (batch for batch, _ in loader)
    predictions = predict_batches(
        detector.model,
        batches,
        categories=detector.categories,
        preprocessing=detector.preprocessing,
        device="cpu",
    )
    return [found for _, (_, found) in zip(range(count), predictions, strict=False)]


def check(source: str, annotations: Path, images: Path, count: int, *, with_ap: bool) -> None:
    detector = detector_of(source)
    names = load_annotations(annotations, on_bad_box="skip").file_names[:count]
    pictures = [images / name for name in names]
    alone = [detector.predict(picture, threshold=0)[0] for picture in pictures]
    shapes = {found.shape for found in map(detector.prepare, map(read_image, pictures))}
    print(f"{source}: {len(pictures)} pictures of {len(shapes)} resized shapes")
    ways = {
        "in lists of 8": [
            found
            for start in range(0, len(pictures), 8)
            for found in detector.predict(pictures[start : start + 8], threshold=0)
        ],
        "as a stream": [found for _, found in detector.stream(iter(pictures), 0)],
        "padded to batches of 8": padded(detector, annotations, images, len(pictures)),
    }
    for way, found in ways.items():
        scores, boxes, moved = largest_differences(alone, found)
        print(f"  {way:24} scores {scores:.1e}  boxes {boxes:.1e} px  other class {moved}")
    if with_ap:
        ap = [
            evaluate(detector, annotations, images, batch_size=batch_size).ap
            for batch_size in (1, 8)
        ]
        print(f"  AP with batches of 1: {ap[0]:.6f}, of 8: {ap[1]:.6f}: {abs(ap[0] - ap[1]):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--no-ap", action="store_true")
    options = parser.parse_args()
    for source in options.sources:
        check(source, options.annotations, options.images, options.count, with_ap=not options.no_ap)


if __name__ == "__main__":
    main()
