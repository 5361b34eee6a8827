"""DETR's training recipe as other libraries run it: in Pillow, as published, and in torchvision.

Both give a picture in the form of the official code, a (3, H, W) float tensor, normalised, and its
objects as cxcywh in [0, 1]. Source: DETR paper, appendix A.4, and the steps of the official
`datasets/coco.py`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from detr_kit.boxes import xyxy_to_cxcywh
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD
from detr_kit.sizes import SizeHW, SizeRule

SHORT_SIDES = tuple(range(480, 801, 32))
LONG_SIDE = 1333
BEFORE_CROP = (400, 500, 600)
CROP_SIDES = (384, 600)


@dataclass(frozen=True)
class Annotated:
    """A picture file and its objects as a json gives them; boxes are corners in pixels."""

    path: Path
    size_hw: SizeHW
    boxes_xyxy: list[list[float]]
    labels: list[int]


def pillow_recipe(picture: Annotated, draw: random.Random) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the official recipe: every step makes a new picture."""
    with Image.open(picture.path) as file:
        image = file.convert("RGB")
    boxes = torch.as_tensor(picture.boxes_xyxy, dtype=torch.float32).reshape(-1, 4)
    labels = torch.as_tensor(picture.labels, dtype=torch.int64)
    if draw.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
        boxes = boxes + torch.tensor([image.width, 0, image.width, 0])
    if draw.random() >= 0.5:
        image, boxes = _resize(image, boxes, SizeRule("detr", draw.choice(BEFORE_CROP)))
        image, boxes, labels = _crop(image, boxes, labels, draw)
    image, boxes = _resize(image, boxes, SizeRule("detr", draw.choice(SHORT_SIDES), LONG_SIDE))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = pixels.sub(mean).div_(std)
    boxes_cxcywh = xyxy_to_cxcywh(boxes) / torch.tensor(image.size * 2)
    return pixels, {"boxes": boxes_cxcywh, "labels": labels}


def _resize(image: Image.Image, boxes: Tensor, rule: SizeRule) -> tuple[Image.Image, Tensor]:
    height, width = rule.target_hw((image.height, image.width))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized, boxes * torch.tensor([width / image.width, height / image.height] * 2)


def _crop(
    image: Image.Image, boxes: Tensor, labels: Tensor, draw: random.Random
) -> tuple[Image.Image, Tensor, Tensor]:
    width, height = (draw.randint(CROP_SIDES[0], min(CROP_SIDES[1], side)) for side in image.size)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    image = image.crop((left, top, left + width, top + height))
    corners = (boxes - torch.tensor([left, top, left, top])).reshape(-1, 2, 2)
    corners = corners.clamp(min=0).minimum(torch.tensor([width, height]))
    kept = (corners[:, 1] > corners[:, 0]).all(dim=1)
    return image, corners.reshape(-1, 4)[kept], labels[kept]


class TorchvisionRecipe:
    """The same in `torchvision.transforms.v2`; with `uint8`, pixels are left (3, H, W) uint8.

    Where it differs: files are decoded by torchvision, `RandomShortestSize` rounds a capped size
    in another way (by a pixel at most), boxes of which less than a pixel is visible are dropped,
    and as there is no crop of random size, a transform of this module draws one.
    """

    def __init__(self, *, uint8: bool = False) -> None:
        resize = v2.RandomShortestSize(list(SHORT_SIDES), max_size=LONG_SIDE)
        crop = [v2.RandomShortestSize(list(BEFORE_CROP)), CropOfRandomSize(), resize]
        floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomChoice([resize, v2.Compose(crop)]),
                v2.SanitizeBoundingBoxes(),
                v2.ConvertBoundingBoxFormat("CXCYWH"),
                *([] if uint8 else floats),
            ]
        )

    def __call__(self, picture: Annotated) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw from torch's global stream."""
        image = tv_tensors.Image(decode_image(str(picture.path), mode=ImageReadMode.RGB))
        boxes = torch.tensor(picture.boxes_xyxy).reshape(-1, 4)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=picture.size_hw),
            "labels": torch.tensor(picture.labels, dtype=torch.int64),
        }
        image, target = self.transform(image, target)
        sides = torch.tensor([image.shape[2], image.shape[1]] * 2)
        boxes_cxcywh = target["boxes"].as_subclass(Tensor) / sides
        return image.as_subclass(Tensor), {"boxes": boxes_cxcywh, "labels": target["labels"]}


class CropOfRandomSize(v2.Transform):
    """Crop with sides drawn from CROP_SIDES, at a random place."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        height, width = v2.functional.get_size(flat_inputs[0])
        crop_h, crop_w = (_below(CROP_SIDES[0], min(CROP_SIDES[1], s)) for s in (height, width))
        top, left = _below(0, height - crop_h), _below(0, width - crop_w)
        return {"top": top, "left": left, "height": crop_h, "width": crop_w}

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        return self._call_kernel(v2.functional.crop, inpt, **params)


def _below(low: int, high: int) -> int:
    """Draw from [low, high]."""
    return int(torch.randint(low, high + 1, ()))
