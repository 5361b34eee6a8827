"""Key maps of the official DETR and YOLOS.

Sources: the `state_dict` keys of facebookresearch/detr and hustvl/YOLOS.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detr_kit.checkpoints.keymap import KeyMap, Rule

_ENCODER = "transformer.encoder.layers.{i}."
_DECODER = "transformer.decoder.layers.{i}."

DETR_KEYS = KeyMap(
    "official DETR",
    rules=(
        Rule("backbone.0.body.{rest}", "backbone.body.{rest}"),
        Rule("backbone.1.row_embed.{p}", "positions.rows.{p}"),
        Rule("backbone.1.col_embed.{p}", "positions.columns.{p}"),
        Rule("input_proj.{p}", "input_proj.{p}"),
        Rule(_ENCODER + "self_attn.in_proj_{p}", "encoder.layers.{i}.attn.qkv.{p}"),
        Rule(_ENCODER + "self_attn.out_proj.{p}", "encoder.layers.{i}.attn.proj.{p}"),
        Rule(_ENCODER + "linear{j}.{p}", "encoder.layers.{i}.mlp.fc{j}.{p}"),
        Rule(_ENCODER + "norm{j}.{p}", "encoder.layers.{i}.norm{j}.{p}"),
        Rule("transformer.encoder.norm.{p}", "encoder.norm.{p}"),
        Rule(_DECODER + "self_attn.in_proj_{p}", "decoder.layers.{i}.self_attn.qkv.{p}"),
        Rule(_DECODER + "self_attn.out_proj.{p}", "decoder.layers.{i}.self_attn.proj.{p}"),
        Rule(_DECODER + "multihead_attn.in_proj_{p}", "decoder.layers.{i}.cross_attn.qkv.{p}"),
        Rule(_DECODER + "multihead_attn.out_proj.{p}", "decoder.layers.{i}.cross_attn.proj.{p}"),
        Rule(_DECODER + "linear{j}.{p}", "decoder.layers.{i}.mlp.fc{j}.{p}"),
        Rule(_DECODER + "norm{j}.{p}", "decoder.layers.{i}.norm{j}.{p}"),
        Rule("transformer.decoder.norm.{p}", "decoder.norm.{p}"),
        Rule("query_embed.weight", "queries.weight"),
        Rule("class_embed.{p}", "heads.class_head.layers.0.{p}"),
        Rule("bbox_embed.layers.{i}.{p}", "heads.box_head.layers.{i}.{p}"),
    ),
    dropped={"{rest}.num_batches_tracked": "a frozen norm counts no batches"},
)

YOLOS_KEYS = KeyMap(
    "official YOLOS",
    rules=(
        Rule("backbone.{rest}", "backbone.{rest}"),
        Rule("class_embed.layers.{i}.{p}", "heads.class_head.layers.{i}.{p}"),
        Rule("bbox_embed.layers.{i}.{p}", "heads.box_head.layers.{i}.{p}"),
    ),
    dropped={
        "backbone.head.{p}": "the classifier of the ViT that was started from",
        "backbone.head_dist.{p}": "the classifier of the ViT that was started from",
    },
)

KEY_MAPS = {"detr": DETR_KEYS, "yolos": YOLOS_KEYS}
# What tells the two apart, and from everything else.
FAMILY_KEYS = {"query_embed.weight": "detr", "backbone.det_token": "yolos"}


def what_else(tensors: Mapping[str, Tensor]) -> str:
    """Say what weights are that are no detector's of a known kind."""
    if "fc.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        return (
            "these are a ResNet classifier's weights, not a detector's: give them as "
            "model.backbone_weights"
        )
    if "cls_token" in tensors and "patch_embed.proj.weight" in tensors:
        return (
            "these are a ViT classifier's weights, not a detector's: give them as "
            "model.backbone_weights of a YOLOS"
        )
    if "detr.query_embed.weight" in tensors:
        return "this is a DETR for segmentation, which is not supported"
    for family, key in (
        ("detr", "transformer.decoder.norm.weight"),
        ("yolos", "backbone.pos_embed"),
    ):
        if key in tensors:
            lacking = next(key for key, known in FAMILY_KEYS.items() if known == family)
            return f"not a whole {KEY_MAPS[family].name} checkpoint: {lacking} is missing"
    shown = ", ".join(list(tensors)[:3])
    return f"no official DETR or YOLOS: its keys ({shown} ...) are of another architecture"
