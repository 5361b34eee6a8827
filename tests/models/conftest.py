"""Small models and batches that the tests of both families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from detr_kit.config import ModelConfig
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ImageBatch
from tests.drawn import draw_values

TINY = {
    "detr_small": {
        "encoder_layers": 1,
        "decoder_layers": 2,
        "hidden_dim": 32,
        "num_heads": 2,
        "feedforward_dim": 48,
        "num_queries": 7,
    },
    "yolos_small": {
        "depth": 3,
        "hidden_dim": 48,
        "num_heads": 3,
        "feedforward_dim": 64,
        "num_queries": 7,
        "position_size_hw": (96, 128),
        "mid_position_size_hw": (64, 96),
    },
}


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """Build a tiny variant with random weights, affine values and statistics."""

    def build_tiny(name: str, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        config = ModelConfig(name=name, **{**TINY[name], **changes})
        model = build_model(resolve(config), num_classes=5)
        draw_values(model)
        return model

    return build_tiny


@pytest.fixture
def make_batch() -> Callable[..., ImageBatch]:
    """Random pictures of the given sizes, padded to one batch."""

    def make(*sizes_hw: tuple[int, int], dtype: torch.dtype = torch.float32) -> ImageBatch:
        generator = torch.Generator().manual_seed(1)
        images = [torch.randn(3, *size, generator=generator, dtype=dtype) for size in sizes_hw]
        return ImageBatch.from_images(images)

    return make


def alone(batch: ImageBatch, row: int) -> ImageBatch:
    """One image of a batch without its padding."""
    height, width = batch.sizes_hw[row]
    return ImageBatch.from_images([batch.pixels[row, :, :height, :width]])


@pytest.fixture
def batch_difference() -> Callable[..., float]:
    """The largest difference of logits and boxes between a batch and its images alone."""

    def difference(model: nn.Module, batch: ImageBatch) -> float:
        model.eval()
        with torch.no_grad():
            together = model(batch)
            worst = 0.0
            for row in range(len(batch.sizes_hw)):
                single = model(alone(batch, row))
                for ours, theirs in (
                    (single.logits[0], together.logits[row]),
                    (single.boxes_cxcywh[0], together.boxes_cxcywh[row]),
                ):
                    worst = max(worst, float((ours - theirs).abs().max()))
        return worst

    return difference
