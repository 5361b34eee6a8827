"""Small models and batches that the tests of exported detectors share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detr_kit.categories import CategoryTable
from detr_kit.config import ModelConfig
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ImageBatch
from tests.drawn import draw_values

TABLE = CategoryTable(
    (2, 5, 7, 11, 90), ("cat", "unused_5", "dog", "owl", "eel"), (True, False, True, True, True)
)
SMALL: dict[str, dict[str, Any]] = {
    "detr_small": {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "hidden_dim": 16,
        "num_heads": 2,
        "feedforward_dim": 24,
        "num_queries": 6,
    },
    "yolos_small": {
        "depth": 2,
        "hidden_dim": 24,
        "num_heads": 2,
        "feedforward_dim": 32,
        "num_queries": 6,
        "position_size_hw": (96, 128),
        "mid_position_size_hw": (64, 96),
    },
}
# The settings of models that differ in what a graph has to do.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr_small", {"backbone_norm": "frozen", "pre_norm": False}),
    "plain": ("detr_small", {"backbone": "plain"}),
    "group": ("detr_small", {"backbone": "plain", "backbone_norm": "group"}),
    "learned": (
        "detr_small",
        {"backbone": "plain", "position_encoding": "learned", "positions_at_input": True},
    ),
    "dc5": (
        "detr_small",
        {"backbone": "resnet50", "dilation": True, "backbone_stages": 3, "backbone_norm": "frozen"},
    ),
    "lite0": (
        "detr_small",
        {"backbone": "timm/tf_efficientnet_lite0", "backbone_norm": "frozen", "backbone_stages": 4},
    ),
    "lite0_batch": (
        "detr_small",
        {"backbone": "timm/tf_efficientnet_lite0", "backbone_norm": "batch", "backbone_stages": 4},
    ),
    "squeeze": ("detr_small", {"backbone": "timm/tf_mobilenetv3_small_075"}),
    "official": ("detr_small", {"backbone": "plain", "padding": "official"}),
    "yolos": ("yolos_small", {}),
    "yolos_first": ("yolos_small", {"mid_position_size_hw": None}),
    "yolos_official": ("yolos_small", {"padding": "official"}),
}


def small_model(kind: str, dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """Build one of `MODELS` with random weights, affine values, statistics and positions."""
    torch.manual_seed(0)
    name, settings = MODELS[kind]
    config = ModelConfig(name=name, **{**SMALL[name], **settings, **changes})
    model = build_model(resolve(config), num_classes=len(TABLE))
    draw_values(model)
    return model.to(dtype).eval()


def batch_of(*sizes_hw: tuple[int, int], dtype: torch.dtype = torch.float64) -> ImageBatch:
    """Random pictures of the given sizes, padded to one batch."""
    generator = torch.Generator().manual_seed(1)
    return ImageBatch.from_images(
        [torch.randn(3, *size, generator=generator, dtype=dtype) for size in sizes_hw]
    )


@torch.no_grad()
def expected_scores(model: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
    """What the model itself finds, as an exported one without post-processing gives it."""
    output = model(batch)
    scores = output.logits.softmax(dim=-1)[..., :-1]
    return {
        "scores": scores * torch.tensor(TABLE.used),
        "boxes_cxcywh": output.boxes_cxcywh,
    }
