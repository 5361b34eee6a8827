"""Checkpoints of the official DETR and YOLOS repositories, read and written.

Sources: the `state_dict` keys of facebookresearch/detr and hustvl/YOLOS. Their heads have a column
for each COCO category id up to 90.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detr_kit.categories import CategoryTable, coco_table
from detr_kit.checkpoints.detector import DetectorSpec
from detr_kit.checkpoints.keymap import KeyMap, Rule
from detr_kit.checkpoints.opened import (
    OpenedCheckpoint,
    changed_architecture,
    class_layer,
    count_layers,
)
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import VARIANTS
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

Numbers = dict[str, Any]

COCO_COLUMNS = 91
OFFICIAL_NORM_EPS = 1e-6  # of YOLOS
UNUSED = "-"  # no category can be called so by mistake

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

# Settings of the training scripts that weights do not tell.
_ARGS = {
    "nheads": "num_heads",
    "dilation": "dilation",
    "dropout": "dropout",
    "init_pe_size": "position_size_hw",
    "mid_pe_size": "mid_position_size_hw",
}
_PUBLISHED_YOLOS = {
    VARIANTS[name]["hidden_dim"]: VARIANTS[name]
    for name in ("yolos_ti", "yolos_s", "yolos_s_dwr", "yolos_b")
}

# Blocks of the four stages, and whether they are bottlenecks.
_RESNETS = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
}


def open_official(
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    args: Mapping[str, Any] | None = None,
    architecture: Mapping[str, Any] | None = None,
    categories: Mapping[int, str] | None = None,
) -> OpenedCheckpoint:
    """Translate tensors under official keys; `source` names them, a file's name for example.

    The columns of the class head are category ids; `categories` gives ids and names, without it
    91 columns are COCO's.

    What weights do not tell (attention heads, DC5, the size that positions were made for) is
    taken from `architecture`, else from `args`, the training script's settings that training
    checkpoints hold, else from the published models' numbers, and said in the notes.

    Raises DetrKitError where the keys are of neither family, are unknown or incomplete.
    """
    family = next((family for key, family in FAMILY_KEYS.items() if key in tensors), None)
    if family is None:
        raise DetrKitError(f"{source}: {what_else(tensors)}")
    key_map = KEY_MAPS[family]
    args = dict(args or {})
    known = _known(family, args, architecture or {}, source)
    try:
        ours, dropped = key_map.to_ours(tensors)
        numbers, notes = (_detr if family == "detr" else _yolos)(ours, known, source)
        numbers |= {key: known[key] for key in architecture or {} if key in known}
        _check_positions(numbers, ours)
        (rows,) = _shape(ours, f"{class_layer(ours)}.bias", 1, key_map)
        table, made_up = _table(rows - 1, categories)
        preprocessing = _preprocessing(family, numbers, args)
    except DetrKitError as error:
        raise DetrKitError(f"{source}: {error}") from error
    spec = DetectorSpec(numbers, table, preprocessing, origin=source)
    told = (*notes, *made_up)
    return OpenedCheckpoint(source, key_map.name, spec, ours, dropped, told, key_map=key_map)


def official_tensors(
    tensors: Mapping[str, Tensor], numbers: Numbers
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return a detector's tensors under the official keys, and what they leave unsaid, in notes.

    Raises DetrKitError where the official code has no such model.
    """
    notes = ["categories and preprocessing are not in such a file"]
    if numbers["family"] == "detr":
        faults = []
        if numbers["backbone"] not in _RESNETS.values() or numbers["backbone_stages"] not in (
            None,
            4,
        ):
            faults.append(f"backbone {numbers['backbone']}")
        if numbers["backbone_norm"] == "group":
            faults.append("backbone_norm group")
        if numbers["positions_at_input"]:
            faults.append("positions_at_input")
        if faults:
            raise DetrKitError(f"the official DETR has no {', '.join(faults)}")
    elif numbers.get("norm_eps", OFFICIAL_NORM_EPS) != OFFICIAL_NORM_EPS:
        notes.append(
            f"norm_eps {numbers['norm_eps']} becomes {OFFICIAL_NORM_EPS} in the official code"
        )
    return KEY_MAPS[numbers["family"]].to_theirs(tensors), tuple(notes)


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
    return f"no DETR or YOLOS: its keys ({shown} ...) are of another architecture"


def _known(
    family: str, args: Mapping[str, Any], architecture: Mapping[str, Any], source: str
) -> Numbers:
    """Return the settings that are known from elsewhere than the weights, checked."""
    published = VARIANTS["detr_r50" if family == "detr" else "yolos_s"]
    stored = {ours: args.get(theirs) for theirs, ours in _ARGS.items() if ours in published}
    given = {**stored, **{key: value for key, value in architecture.items() if value is not None}}
    checked = changed_architecture(published, {**architecture, **given}, source)
    return {key: checked[key] for key, value in given.items() if value is not None}


def _shape(
    ours: Mapping[str, Tensor], key: str, dimensions: int, key_map: KeyMap
) -> tuple[int, ...]:
    """Return a tensor's shape; raises where it is missing, empty or of other dimensions."""
    named = ", ".join(key_map.to_theirs_keys(key)) or key
    if key not in ours:
        raise DetrKitError(f"not a whole {key_map.name} checkpoint: {named} is missing")
    shape = tuple(ours[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise DetrKitError(f"{named} has the shape {shape}, expected {dimensions} dimensions")
    return shape


def _detr(ours: Mapping[str, Tensor], known: Numbers, source: str) -> tuple[Numbers, list[str]]:
    """Return the architecture, and notes on what was decided without being known."""
    published = VARIANTS["detr_r50"]
    queries, hidden_dim = _shape(ours, "queries.weight", 2, DETR_KEYS)
    notes = []
    if "num_heads" not in known:
        if hidden_dim != published["hidden_dim"]:
            raise DetrKitError(
                f"its width {hidden_dim} is not the published DETR's, and weights do not tell "
                "the attention heads: give num_heads"
            )
        notes.append(f"num_heads {published['num_heads']}, as published for this width")
    if "dilation" not in known:
        # The published files are told apart by their names alone.
        known = known | {"dilation": "dc5" in source.rsplit("/", 1)[-1].lower()}
        says = "says" if known["dilation"] else "does not say"
        notes.append(f"dilation {known['dilation']}, as the file's name {says} dc5")
    learned = any(key.startswith("positions.") for key in ours)
    numbers = published | {
        "backbone": _resnet_of(ours),
        "backbone_norm": "frozen",
        "backbone_weights": None,
        "frozen_stages": 2,
        "dilation": known["dilation"],
        "encoder_layers": count_layers(ours, "encoder.layers."),
        "decoder_layers": count_layers(ours, "decoder.layers."),
        "hidden_dim": hidden_dim,
        "num_heads": known.get("num_heads", published["num_heads"]),
        "feedforward_dim": _shape(ours, "decoder.layers.0.mlp.fc1.weight", 2, DETR_KEYS)[0],
        "num_queries": queries,
        "dropout": known.get("dropout", published["dropout"]),
        "pre_norm": any(key.startswith("encoder.norm.") for key in ours),
        "position_encoding": "learned" if learned else "sine",
    }
    return numbers, notes


def _yolos(ours: Mapping[str, Tensor], known: Numbers, source: str) -> tuple[Numbers, list[str]]:
    _, queries, hidden_dim = _shape(ours, "backbone.det_token", 3, YOLOS_KEYS)
    published = _PUBLISHED_YOLOS.get(hidden_dim)
    notes = []
    if published is None:
        missing = [key for key in ("num_heads", "position_size_hw") if key not in known]
        if missing:
            raise DetrKitError(
                f"its width {hidden_dim} is none of the published YOLOS's, and weights do not "
                f"tell everything: give {' and '.join(missing)}"
            )
        published = VARIANTS["yolos_s"]
    elif "position_size_hw" not in known:
        height, width = published["position_size_hw"]
        notes.append(f"position_size_hw {height} x {width}, as published for this width")
    size_hw: Any = known.get("position_size_hw", published["position_size_hw"])
    mid_size_hw: Any = known.get("mid_position_size_hw", size_hw)
    numbers = published | {
        "backbone_weights": None,
        "hidden_dim": hidden_dim,
        "num_heads": known.get("num_heads", published["num_heads"]),
        "depth": count_layers(ours, "backbone.blocks."),
        "feedforward_dim": _shape(ours, "backbone.blocks.0.mlp.fc1.weight", 2, YOLOS_KEYS)[0],
        "patch_size": _shape(ours, "backbone.patch_embed.proj.weight", 4, YOLOS_KEYS)[-1],
        "position_size_hw": size_hw,
        "mid_position_size_hw": mid_size_hw if "backbone.mid_pos_embed" in ours else None,
        "num_queries": queries,
    }
    return numbers, notes


def _check_positions(numbers: Numbers, ours: Mapping[str, Tensor]) -> None:
    """Raise where position tables are not those of the sizes that were decided on."""
    for setting, key, dimensions in (
        ("position_size_hw", "backbone.pos_embed", 3),
        ("mid_position_size_hw", "backbone.mid_pos_embed", 4),
    ):
        size_hw = numbers.get(setting)
        if key not in ours or size_hw is None:
            continue
        rows, columns = (side // numbers["patch_size"] for side in size_hw)
        tokens = _shape(ours, key, dimensions, YOLOS_KEYS)[-2]
        patches = tokens - 1 - numbers["num_queries"]
        if rows * columns != patches or rows < 1:
            raise DetrKitError(
                f"{setting} {size_hw[0]} x {size_hw[1]} makes {rows} x {columns} patches, but "
                f"its position table has {patches}; give {setting}"
            )


def _table(columns: int, categories: Mapping[int, str] | None) -> tuple[CategoryTable, list[str]]:
    """Return the table of a head with so many columns, and a note where names are made up."""
    if columns < 1:
        raise DetrKitError("its class head has a column for no object alone")
    if categories is not None:
        outside = sorted(id_ for id_ in categories if not 0 <= id_ < columns)
        if outside:
            raise DetrKitError(
                f"category id {outside[0]} is none of the class head's {columns} "
                "columns, which are category ids in the official code"
            )
        names = [categories.get(column, UNUSED) for column in range(columns)]
        return CategoryTable.from_columns(names, unused=UNUSED), []
    if columns == COCO_COLUMNS:
        return coco_table(), []
    made_up = [f"class_{column}" for column in range(columns)]
    note = (
        f"categories {made_up[0]} to {made_up[-1]}: the file does not name them; give an "
        "annotation file that does"
    )
    return CategoryTable.from_columns(made_up, unused=UNUSED), [note]


def _preprocessing(family: str, numbers: Numbers, args: Mapping[str, Any]) -> Preprocessing:
    if family == "detr":
        rule = SizeRule("detr", 800, 1333)
    else:
        short_side = args.get("eval_size")
        if short_side is None:
            short_side = 512 if numbers["hidden_dim"] == 192 else 800
        if not isinstance(short_side, int):
            raise DetrKitError(f"eval_size {short_side!r} of its args is no number of pixels")
        rule = SizeRule("yolos_16", short_side, short_side * 1333 // 800)
    return Preprocessing(rule, IMAGENET_MEAN, IMAGENET_STD)


def _resnet_of(ours: Mapping[str, Tensor]) -> str:
    blocks = [count_layers(ours, f"backbone.body.layer{stage}.") for stage in (1, 2, 3, 4)]
    bottleneck = "backbone.body.layer1.0.conv3.weight" in ours
    name = _RESNETS.get((*blocks, bottleneck))  # type: ignore[arg-type]
    if name is None:
        raise DetrKitError(f"its backbone's stages of {blocks} blocks are no known ResNet")
    return name
