"""Key maps of Hugging Face transformers' Deformable DETR.

The rules have the keys of the hub's files; the aliases lead from the names that transformers 5
gives its modules to these.
"""

from __future__ import annotations

from detr_kit.checkpoints.hf_keys import BACKBONE_RULES, FROZEN_NORMS, Maker, stacked_attention
from detr_kit.checkpoints.keymap import KeyMap, Rule

_SECOND_STAGE = (
    Rule("model.enc_output.{p}", "queries.transform.{p}"),
    Rule("model.enc_output_norm.{p}", "queries.norm.{p}"),
    Rule("model.pos_trans.{p}", "queries.positions.{p}"),
    Rule("model.pos_trans_norm.{p}", "queries.positions_norm.{p}"),
)
_LEARNED_QUERIES = (
    Rule(
        "model.query_position_embeddings.weight",
        ("queries.positions.weight", "queries.content.weight"),
    ),
    Rule("model.reference_points.{p}", "queries.points.{p}"),
)
ALIASES = (
    ("model.backbone.model.{rest}", "model.backbone.conv_encoder.model.{rest}"),
    ("model.{rest}.o_proj.{p}", "model.{rest}.out_proj.{p}"),
    ("model.{rest}.mlp.fc{i}.{p}", "model.{rest}.fc{i}.{p}"),
)


def deformable_attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Return the rules of an attention to sampled points."""
    return tuple(
        Rule(f"{theirs}.{their_part}.{{p}}", f"{ours}.{part}.{{p}}")
        for their_part, part in (
            ("sampling_offsets", "offsets"),
            ("attention_weights", "weights"),
            ("value_proj", "value"),
            ("output_proj", "proj"),
        )
    )


def layer_rules(theirs: str, ours: str, norms: tuple[str, ...]) -> tuple[Rule, ...]:
    """Return the rules of a layer's feedforward part and of its norms, in their order."""
    return (
        *(Rule(f"{theirs}.fc{n}.{{p}}", f"{ours}.mlp.fc{n}.{{p}}") for n in (1, 2)),
        *(
            Rule(f"{theirs}.{norm}.{{p}}", f"{ours}.norm{n}.{{p}}")
            for n, norm in enumerate(norms, start=1)
        ),
    )


DECODER_RULES = (
    *stacked_attention("model.decoder.layers.{i}.self_attn", "decoder.layers.{i}.self_attn"),
    *deformable_attention("model.decoder.layers.{i}.encoder_attn", "decoder.layers.{i}.cross_attn"),
    *layer_rules(
        "model.decoder.layers.{i}",
        "decoder.layers.{i}",
        ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    ),
)


def head_rules(class_embed: str, bbox_embed: str, ours: str) -> tuple[Rule, ...]:
    """Return the rules of a pair of heads."""
    return (
        Rule(class_embed + ".{p}", ours + ".class_head.layers.0.{p}"),
        Rule(bbox_embed + ".layers.{j}.{p}", ours + ".box_head.layers.{j}.{p}"),
    )


def deformable_keys(maker: Maker, layers: int, *, refinement: bool, two_stage: bool) -> KeyMap:
    """Return the map of a model with so many decoder layers.

    Every layer has heads in a file, or some of them, all the same without refinement. With
    refinement they are in a second place too: the box heads, and with two stages the class heads,
    which have one more, of the proposals. transformers 5 makes one class head of those of all
    layers where a file does not tell them apart.
    """
    classes = "model.decoder.class_embed" if two_stage else "class_embed"
    boxes = "model.decoder.bbox_embed" if refinement else "bbox_embed"
    heads = head_rules(f"{classes}.0", f"{boxes}.0", "heads.0")
    own = "{i}" if refinement else "0"
    copies = (
        ("class_embed.{i}.{p}", f"{classes}.{own}.{{p}}"),
        ("bbox_embed.{i}.layers.{j}.{p}", f"{boxes}.{own}.layers.{{j}}.{{p}}"),
    )
    repeated: list[tuple[str, str]] = []
    if refinement:
        heads = head_rules(f"{classes}.{{i}}", f"{boxes}.{{i}}", "heads.{i}")
        repeated = [
            (f"heads.{layer}.class_head.layers.0.{{p}}", "heads.0.class_head.layers.0.{p}")
            for layer in range(1, layers)
        ]
    if two_stage:
        heads = (*head_rules(f"{classes}.{layers}", f"{boxes}.{layers}", "queries.heads"), *heads)
    return KeyMap(
        f"Hugging Face Deformable DETR ({maker} backbone)",
        rules=(
            Rule("model.input_proj.{i}.{j}.{p}", "input_proj.{i}.{j}.{p}"),
            Rule("model.level_embed", "encoder.level_embed"),
            *(_SECOND_STAGE if two_stage else _LEARNED_QUERIES),
            *deformable_attention("model.encoder.layers.{i}.self_attn", "encoder.layers.{i}.attn"),
            *layer_rules(
                "model.encoder.layers.{i}",
                "encoder.layers.{i}",
                ("self_attn_layer_norm", "final_layer_norm"),
            ),
            *DECODER_RULES,
            *heads,
            *BACKBONE_RULES[maker],
        ),
        aliases=ALIASES,
        dropped=FROZEN_NORMS,
        copies=copies,
        repeated=tuple(repeated),
    )
