"""Deformable DETR and RT-DETR of transformers with random weights, to compare ours with.

DINO is not among them: transformers has no such model. What it shares with these two is compared
through them: the deformable encoder and decoder, refined boxes, selected queries, denoising.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    TimmBackboneConfig,
)

from tests.parity.hf_models import COMMON, drawn, random_batch

_SMALL: dict[str, Any] = {
    "d_model": 64,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "num_queries": 20,
}
_RESNET50 = {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]}


def _deformable(backbone: str = "resnet18", **changes: Any) -> DeformableDetrConfig:
    return DeformableDetrConfig(
        use_timm_backbone=True,
        backbone=backbone,
        use_pretrained_backbone=False,
        **{**COMMON, **_SMALL, "encoder_layers": 2, "two_stage_num_proposals": 20, **changes},
    )


def _rtdetr(kind: Callable[..., Any], backbone: Any, width: int, **changes: Any) -> Any:
    return kind(
        backbone_config=backbone,
        encoder_hidden_dim=width,
        decoder_in_channels=[width] * 3,
        num_denoising=12,
        **{**COMMON, **_SMALL, **changes},
    )


def _vd50() -> RTDetrResNetConfig:
    return RTDetrResNetConfig(layer_type="bottleneck", out_indices=[2, 3, 4], **_RESNET50)


def _timm_d(name: str) -> TimmBackboneConfig:
    return TimmBackboneConfig(
        backbone=name, features_only=True, out_indices=[2, 3, 4], use_pretrained_backbone=False
    )


CONFIGS: dict[str, Callable[[], Any]] = {
    "deformable_r18": _deformable,
    "deformable_r18_refined": lambda: _deformable(with_box_refine=True),
    "deformable_r18_two_stage": lambda: _deformable(with_box_refine=True, two_stage=True),
    "deformable_r50_dc5_one_level": lambda: _deformable(
        "resnet50", dilation=True, num_feature_levels=1, encoder_n_points=2, decoder_n_points=2
    ),
    # As RT-DETR-R18, but for the convolution in the first shortcut: narrow fusion, three layers.
    "rtdetrv2_r18d": lambda: _rtdetr(
        RTDetrV2Config,
        _timm_d("resnet18d"),
        width=64,
        hidden_expansion=0.5,
        freeze_backbone_batch_norms=False,
    ),
    "rtdetrv2_r50": lambda: _rtdetr(RTDetrV2Config, _vd50(), width=64),
    # The encoder of another width than the decoder, as RT-DETR-R101; the first version.
    "rtdetr_r50_wide": lambda: _rtdetr(RTDetrConfig, _vd50(), width=96, encoder_ffn_dim=112),
}
# More of what tells chosen queries apart, which are neighbours: what they read, and where.
_GAINS = {
    "sampling_offsets": 2.0,
    "value_proj": 1.5,
    "class_embed": 1.5,
    "enc_output.0": 1.5,
    "enc_bbox_head": 0.6,
    "bbox_embed": 0.9,
}
_KINDS: dict[str, type[nn.Module]] = {
    "deformable_detr": DeformableDetrForObjectDetection,
    "rt_detr": RTDetrForObjectDetection,
    "rt_detr_v2": RTDetrV2ForObjectDetection,
}


def random_reference(name: str) -> nn.Module:
    """Return a reference in evaluation mode whose float32 weights are drawn, not initialised."""
    config = CONFIGS[name]()
    reference = _KINDS[config.model_type](config).eval()
    if name == "deformable_r18_refined":
        # As in the hub's file. Release 5 makes one class head of all where it makes a model.
        reference.class_embed = nn.ModuleList(copy.deepcopy(own) for own in reference.class_embed)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in reference.state_dict().items():
            if tensor.is_floating_point() and not key.endswith("n_points_scale"):
                gain = next((gain for part, gain in _GAINS.items() if part in key), 1.0)
                tensor.copy_(gain * drawn(key, tensor, generator))
        _center_features(reference)
        if config.model_type == "deformable_detr" and config.two_stage:
            _let_padding_score_low(reference)
    return reference


def _center_features(reference: nn.Module) -> None:
    """Take the mean of a picture's features out of what normalises each level's projection.

    Features that follow a ReLU are mostly a mean that all places share.
    """
    model = reference.model
    projections = model.input_proj if hasattr(model, "input_proj") else model.encoder_input_proj
    seen: list[Tensor] = []
    handles = [
        projection.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        for projection in projections
    ]
    reference(random_batch((128, 160), seed=0).pixels)
    for handle in handles:
        handle.remove()
    for projection, features in zip(projections, seen, strict=True):
        projection[1].bias -= features.mean((0, 2, 3))


def _let_padding_score_low(reference: nn.Module) -> None:
    """Keep transformers from proposing padding, which it scores as a token of zeros.

    Ours proposes none; trained weights have learned not to.
    """
    model = reference.model
    empty = model.enc_output_norm(model.enc_output(torch.zeros(model.config.d_model)))
    scorer = model.decoder.class_embed[-1]
    scorer.weight[0] -= 6 * empty / empty.square().sum()
