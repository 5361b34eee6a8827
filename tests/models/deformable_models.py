"""Tiny models of the deformable family, with every switch alone and in combinations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detr_kit.config import ModelConfig
from detr_kit.models.deformable_detr import DeformableDETR
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ModelOutput, Target, TargetBatch

SIZES = ((49, 71), (80, 60), (65, 101))
QUERIES, CLASSES = 14, 3

TINY = {
    "name": "deformable_detr_r50",
    "backbone": "plain",
    "backbone_weights": "none",
    "backbone_norm": "frozen",
    "encoder_layers": 1,
    "decoder_layers": 2,
    "hidden_dim": 48,
    "num_heads": 2,
    "feedforward_dim": 24,
    "num_queries": QUERIES,
    "dropout": 0.0,
    "levels": 3,
    "points": 2,
}
SELECTED = {"query_selection": "full", "query_positions": "mlp"}
MIXED = {"query_selection": "mixed", "query_positions": "sine"}
REFINED = {"refinement": True, "look_forward_twice": True}
NOISY = {"denoising_queries": 12}
DENSE = {"encoder": "dense", "cross_attention": "dense", "points": None}  # looks at all cells

# Every switch alone, then as published and in other combinations.
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_level": {"levels": 1},
    "five_levels": {"levels": 5},
    "batch_norm": {"level_norm": "batch"},
    "hybrid": {"encoder": "hybrid"},
    "hybrid_wide": {"encoder": "hybrid", "encoder_dim": 40, "encoder_feedforward_dim": 40},
    "hybrid_one_level": {"encoder": "hybrid", "levels": 1},
    "hybrid_five_levels": {"encoder": "hybrid", "levels": 5, "encoder_expansion": 0.5},
    "dense": {"encoder": "dense"},
    "hybrid_without_attention": {"encoder": "hybrid", "encoder_layers": 0},
    "dense_cross": {"cross_attention": "dense"},
    "one_point": {"points": 1},
    "refinement": {"refinement": True},
    "look_forward_twice": REFINED,
    "anchors_sine": {"query_positions": "sine"},
    "anchors_mlp": {"query_positions": "mlp"},
    "two_stage": {"query_selection": "full", "query_positions": "proposal"},
    "full": SELECTED,
    "mixed": MIXED,
    "decoder_norm": {"decoder_norm": True},
    "groups": {"groups": 3},
    "softmax": {"scoring": "softmax"},
    "denoising": {"query_positions": "mlp", **NOISY},
    "dab": {**DENSE, "query_positions": "sine"},
    "two_stage_refined": {**REFINED, "query_selection": "full", "query_positions": "proposal"},
    "dino": {**REFINED, **MIXED, **NOISY, "decoder_norm": True, "levels": 4},
    "shared_heads": {**REFINED, "shared_heads": True},
    "dino_groups": {**REFINED, **MIXED, **NOISY, "groups": 2},
    "rtdetr": {**REFINED, **SELECTED, **NOISY, "encoder": "hybrid", "level_norm": "batch"},
    "rtdetr_softmax": {**REFINED, **SELECTED, "encoder": "hybrid", "scoring": "softmax"},
    "dense_selected": {**SELECTED, **DENSE},
}
SOME = ("plain", "dab", "two_stage_refined", "dino", "rtdetr", "rtdetr_softmax")


def build(**changes: Any) -> DeformableDETR:
    """A tiny model with random weights, also where they start as zeros, and random statistics."""
    torch.manual_seed(0)
    model = build_model(resolve(ModelConfig(**{**TINY, **changes})), CLASSES)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and "labels" not in name:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    assert isinstance(model, DeformableDETR)
    return model


def targets_of(*counts: int) -> TargetBatch:
    generator = torch.Generator().manual_seed(2)
    return TargetBatch.from_targets(
        [
            Target(
                torch.randint(CLASSES, (count,), generator=generator),
                torch.rand(count, 4, generator=generator) * 0.2 + 0.3,
                image,
            )
            for image, count in enumerate(counts)
        ]
    )


def sum_of(output: ModelOutput) -> Tensor:
    total = output.layer_logits.square().sum() + output.layer_boxes_cxcywh.square().sum()
    if output.denoised is not None:
        total = total + output.denoised.layer_logits.square().sum()
        total = total + output.denoised.layer_boxes_cxcywh.square().sum()
    return total
