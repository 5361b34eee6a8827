"""Key maps of Hugging Face transformers' RT-DETR and RT-DETRv2.

The rules have the keys of the hub's files; the aliases lead from the names that transformers 5
gives its modules to these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detr_kit.checkpoints.hf_keys import (
    FROZEN_NORMS,
    Maker,
    resnet_stages,
    stacked_attention,
)
from detr_kit.checkpoints.hf_keys_deformable import (
    ALIASES,
    DECODER_RULES,
    head_rules,
    layer_rules,
)
from detr_kit.checkpoints.keymap import KeyMap, Rule

_CNN = "model.backbone.model."
_BODY = "backbone.body."
_ATTENTION = "model.encoder.encoder.0.layers.{i}"


def _convolution(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.conv.{{p}}", f"{ours}.conv.{{p}}"),
        Rule(f"{theirs}.norm.{{rest}}", f"{ours}.norm.{{rest}}"),
    )


def _fusion(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Return the rules of the blocks that fuse two maps."""
    rules: list[Rule] = []
    for n in (1, 2, 3):
        rules += _convolution(f"{theirs}.{{i}}.conv{n}", f"{ours}.{{i}}.conv{n}")
    for n in (1, 2):
        rules += _convolution(
            f"{theirs}.{{i}}.bottlenecks.{{j}}.conv{n}", f"{ours}.{{i}}.blocks.{{j}}.conv{n}"
        )
    return tuple(rules)


def _projection(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.{{i}}.0.{{p}}", f"{ours}.{{i}}.0.{{p}}"),
        Rule(f"{theirs}.{{i}}.1.{{rest}}", f"{ours}.{{i}}.1.{{rest}}"),
    )


_RULES = (
    *_projection("model.encoder_input_proj", "input_proj"),
    *stacked_attention(f"{_ATTENTION}.self_attn", "encoder.attention.layers.{i}.attn"),
    *layer_rules(
        _ATTENTION, "encoder.attention.layers.{i}", ("self_attn_layer_norm", "final_layer_norm")
    ),
    *_convolution("model.encoder.lateral_convs.{i}", "encoder.laterals.{i}"),
    *_fusion("model.encoder.fpn_blocks", "encoder.top_down"),
    *_convolution("model.encoder.downsample_convs.{i}", "encoder.downsamples.{i}"),
    *_fusion("model.encoder.pan_blocks", "encoder.bottom_up"),
    *_projection("model.decoder_input_proj", "encoder.output_proj"),
    Rule("model.enc_output.0.{p}", "queries.transform.{p}"),
    Rule("model.enc_output.1.{p}", "queries.norm.{p}"),
    Rule("model.enc_score_head.{p}", "queries.heads.class_head.layers.0.{p}"),
    Rule("model.enc_bbox_head.layers.{j}.{p}", "queries.heads.box_head.layers.{j}.{p}"),
    Rule("model.denoising_class_embed.weight", "denoising.labels.weight"),
    Rule("model.decoder.query_pos_head.layers.{i}.{p}", "decoder.positions.layers.{i}.{p}"),
    *DECODER_RULES,
    *head_rules("model.decoder.class_embed.{i}", "model.decoder.bbox_embed.{i}", "heads.{i}"),
)

# The stem has three convolutions; shortcuts of strided blocks have an average pooling first. All
# of ours keep a place for it.
_BACKBONES: dict[Maker, tuple[Rule, ...]] = {
    "timm": (Rule(_CNN + "_backbone.{rest}", _BODY + "{rest}"),),
    "transformers": (
        *(
            Rule(f"{_CNN}embedder.embedder.{n}.{theirs}", _BODY + ours)
            for n, norm in enumerate(("conv1.1", "conv1.4", "bn1"))
            for theirs, ours in (
                ("convolution.{p}", f"conv1.{3 * n}.{{p}}"),
                ("normalization.{rest}", f"{norm}.{{rest}}"),
            )
        ),
        *resnet_stages(_CNN, ("shortcut", *("shortcut.1",) * 3), first=1),
    ),
}
_ALIASES = (
    ("model.encoder.aifi.{i}.{rest}", "model.encoder.encoder.{i}.{rest}"),
    *ALIASES[1:],
)
_COPIES = (
    ("class_embed.{i}.{p}", "model.decoder.class_embed.{i}.{p}"),
    ("bbox_embed.{i}.layers.{j}.{p}", "model.decoder.bbox_embed.{i}.layers.{j}.{p}"),
)
_SCALES = "model.decoder.layers.{i}.encoder_attn.n_points_scale"
_DROPPED = {_SCALES: "it follows from the number of points"}


def rtdetr_keys(maker: Maker, *, frozen_norms: bool) -> KeyMap:
    """Return the map of a model with a backbone of timm or of transformers.

    The backbone's batch norms are constants where they are `frozen_norms`.
    """
    frozen = {
        f"model.backbone.{key}": reason for key, reason in FROZEN_NORMS.items() if frozen_norms
    }
    return KeyMap(
        f"Hugging Face RT-DETR ({maker} backbone)",
        rules=(*_RULES, *_BACKBONES[maker]),
        aliases=_ALIASES,
        dropped={**_DROPPED, **frozen},
        copies=_COPIES,
    )


def constant_tensors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what an RT-DETRv2's file holds besides its weights: one over the number of points."""
    points = config["decoder_n_points"]
    return {
        _SCALES.format(i=layer): torch.full((3 * points,), 1 / points)
        for layer in range(config["decoder_layers"])
    }
