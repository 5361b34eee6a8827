"""Print how far a prediction moves when its picture is padded beside larger ones.

    python tools/padding_check.py [VARIANT ...]

Builds each variant of the zoo (default: detr_r50_dc5, detr_r50, yolos_ti, yolos_s) with random
weights and random batch norm statistics in float64 and compares one picture alone with the same
picture in a batch of larger ones, none of them a multiple of 32 pixels. `independent` is what
detr_kit does; `official` is what the official code does.
"""

from __future__ import annotations

import sys
from itertools import pairwise

import torch
from torch import nn

from detr_kit.config import ModelConfig
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ImageBatch

DEFAULT = ("detr_r50_dc5", "detr_r50", "yolos_ti", "yolos_s")
SIZES_HW = ((97, 141), (160, 120), (131, 203))


def randomized(name: str, padding: str) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(name=name, padding=padding, backbone_weights="none")
    model = build_model(resolve(config), num_classes=91).double().eval()
    for module in model.modules():
        if hasattr(module, "running_var"):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model


@torch.no_grad()
def largest_difference(model: nn.Module) -> tuple[float, float, float]:
    """Return the largest difference of logits and boxes, and the spread of logits over queries."""
    images = [torch.randn(3, *size, dtype=torch.float64) for size in SIZES_HW]
    together = model(ImageBatch.from_images(images))
    logits = boxes = spread = 0.0
    for index, image in enumerate(images):
        alone = model(ImageBatch.from_images([image]))
        logits = max(logits, float((alone.logits[0] - together.logits[index]).abs().max()))
        boxes = max(
            boxes, float((alone.boxes_cxcywh[0] - together.boxes_cxcywh[index]).abs().max())
        )
        spread = max(spread, *(float((a - b).abs().max()) for a, b in pairwise(alone.logits[0])))
    return logits, boxes, spread


def main() -> None:
    print(f"{'variant':14} {'padding':12} {'logits':>9} {'boxes':>9}   (spread of logits)")
    for name in sys.argv[1:] or DEFAULT:
        for padding in ("independent", "official"):
            logits, boxes, spread = largest_difference(randomized(name, padding))
            print(f"{name:14} {padding:12} {logits:9.1e} {boxes:9.1e}   ({spread:.2f})")


if __name__ == "__main__":
    main()
