"""Key maps of Hugging Face transformers' DETR and YOLOS.

The rules have the keys of the hub's files, which every release of transformers reads; the aliases
lead from other spellings, such as the names that transformers 5 gives its modules, to these.
"""

from __future__ import annotations

from typing import Literal

from detr_kit.checkpoints.keymap import KeyMap, Rule

_CNN = "model.backbone.conv_encoder.model."
_BODY = "backbone.body."


def stacked_attention(theirs: str, ours: str, out: str = "out_proj") -> list[Rule]:
    stacked = tuple(f"{theirs}.{part}_proj.{{p}}" for part in "qkv")
    return [Rule(stacked, f"{ours}.qkv.{{p}}"), Rule(f"{theirs}.{out}.{{p}}", f"{ours}.proj.{{p}}")]


def _detr_layer(stack: str, norms: tuple[str, ...]) -> list[Rule]:
    theirs, ours = f"model.{stack}.layers.{{i}}.", f"{stack}.layers.{{i}}."
    return [
        *(Rule(f"{theirs}fc{n}.{{p}}", f"{ours}mlp.fc{n}.{{p}}") for n in (1, 2)),
        *(
            Rule(f"{theirs}{norm}.{{p}}", f"{ours}norm{n}.{{p}}")
            for n, norm in enumerate(norms, start=1)
        ),
    ]


_DETR_RULES = (
    Rule("model.position_embedding.row_embeddings.{p}", "positions.rows.{p}"),
    Rule("model.position_embedding.column_embeddings.{p}", "positions.columns.{p}"),
    Rule("model.input_projection.{p}", "input_proj.{p}"),
    Rule("model.query_position_embeddings.weight", "queries.weight"),
    *stacked_attention("model.encoder.layers.{i}.self_attn", "encoder.layers.{i}.attn"),
    *_detr_layer("encoder", ("self_attn_layer_norm", "final_layer_norm")),
    *stacked_attention("model.decoder.layers.{i}.self_attn", "decoder.layers.{i}.self_attn"),
    *stacked_attention("model.decoder.layers.{i}.encoder_attn", "decoder.layers.{i}.cross_attn"),
    *_detr_layer(
        "decoder", ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
    ),
    Rule("model.decoder.layernorm.{p}", "decoder.norm.{p}"),
    Rule("class_labels_classifier.{p}", "heads.class_head.layers.0.{p}"),
    Rule("bbox_predictor.layers.{i}.{p}", "heads.box_head.layers.{i}.{p}"),
)

_DETR_ALIASES = (
    ("model.backbone.model.{rest}", _CNN + "{rest}"),
    # transformers 5 does not read the place where releases before it kept learned positions
    ("model.backbone.position_embedding.{rest}", "model.position_embedding.{rest}"),
    ("model.{rest}.o_proj.{p}", "model.{rest}.out_proj.{p}"),
    ("model.{rest}.mlp.fc{i}.{p}", "model.{rest}.fc{i}.{p}"),
)

FROZEN_NORMS = {"{rest}.num_batches_tracked": "a frozen norm counts no batches"}


def resnet_stages(cnn: str, shortcuts: tuple[str, ...], first: int) -> tuple[Rule, ...]:
    """Return the rules of the stages of transformers' own ResNets, whose keys begin with `cnn`.

    They count stages and convolutions from 0. `shortcuts` name a stage's; in ours its convolution
    has the number `first`.
    """
    return tuple(
        Rule(
            f"{cnn}encoder.stages.{stage}.layers.{{i}}.{theirs}",
            f"{_BODY}layer{stage + 1}.{{i}}.{ours}",
        )
        for stage, shortcut in enumerate(shortcuts)
        for theirs, ours in (
            *((f"layer.{n}.convolution.{{p}}", f"conv{n + 1}.{{p}}") for n in range(3)),
            *((f"layer.{n}.normalization.{{rest}}", f"bn{n + 1}.{{rest}}") for n in range(3)),
            (f"{shortcut}.convolution.{{p}}", f"downsample.{first}.{{p}}"),
            (f"{shortcut}.normalization.{{rest}}", f"downsample.{first + 1}.{{rest}}"),
        )
    )


# By who made the backbone. Those of timm have torchvision's names.
Maker = Literal["timm", "transformers"]
_MAKERS: tuple[Maker, ...] = ("timm", "transformers")
BACKBONE_RULES: dict[Maker, tuple[Rule, ...]] = {
    "timm": (Rule(_CNN + "{rest}", _BODY + "{rest}"),),
    "transformers": (
        Rule(_CNN + "embedder.embedder.convolution.{p}", _BODY + "conv1.{p}"),
        Rule(_CNN + "embedder.embedder.normalization.{rest}", _BODY + "bn1.{rest}"),
        *resnet_stages(_CNN, ("shortcut",) * 4, first=0),
    ),
}

DETR_TIMM_KEYS, DETR_RESNET_KEYS = (
    KeyMap(
        f"Hugging Face DETR ({maker} backbone)",
        rules=(*_DETR_RULES, *BACKBONE_RULES[maker]),
        aliases=_DETR_ALIASES,
        dropped=FROZEN_NORMS,
    )
    for maker in _MAKERS
)

_BLOCK_OF_VIT = "vit.encoder.layer.{i}."
YOLOS_KEYS = KeyMap(
    "Hugging Face YOLOS",
    rules=(
        Rule("vit.embeddings.cls_token", "backbone.cls_token"),
        Rule("vit.embeddings.detection_tokens", "backbone.det_token"),
        Rule("vit.embeddings.position_embeddings", "backbone.pos_embed"),
        Rule("vit.encoder.mid_position_embeddings", "backbone.mid_pos_embed"),
        Rule("vit.embeddings.patch_embeddings.projection.{p}", "backbone.patch_embed.proj.{p}"),
        Rule(
            tuple(
                _BLOCK_OF_VIT + f"attention.attention.{part}.{{p}}"
                for part in ("query", "key", "value")
            ),
            "backbone.blocks.{i}.attn.qkv.{p}",
        ),
        *(
            Rule(_BLOCK_OF_VIT + theirs + ".{p}", "backbone.blocks.{i}." + ours + ".{p}")
            for theirs, ours in (
                ("attention.output.dense", "attn.proj"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
                ("layernorm_before", "norm1"),
                ("layernorm_after", "norm2"),
            )
        ),
        Rule("vit.layernorm.{p}", "backbone.norm.{p}"),
        Rule("class_labels_classifier.layers.{i}.{p}", "heads.class_head.layers.{i}.{p}"),
        Rule("bbox_predictor.layers.{i}.{p}", "heads.box_head.layers.{i}.{p}"),
    ),
    aliases=(
        (
            "vit.encoder.interpolation.mid_position_embeddings",
            "vit.encoder.mid_position_embeddings",
        ),
    ),
    dropped={"vit.pooler.dense.{p}": "the pooled class token is not used for detection"},
)
