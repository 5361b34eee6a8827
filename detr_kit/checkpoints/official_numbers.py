"""What an official checkpoint's weights and its training script's settings say of the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detr_kit.checkpoints.official_keys import DETR_KEYS, YOLOS_KEYS
from detr_kit.checkpoints.opened import changed_architecture, count_layers, shape_of
from detr_kit.checkpoints.resnets import RESNETS
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import VARIANTS
from detr_kit.sizes import SizeRule

Numbers = dict[str, Any]

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

# Settings that weights tell as well: where a file holds both, they must agree.
_TOLD_ARGS = {
    "detr": {
        "backbone": "backbone",
        "enc_layers": "encoder_layers",
        "dec_layers": "decoder_layers",
        "hidden_dim": "hidden_dim",
        "dim_feedforward": "feedforward_dim",
        "num_queries": "num_queries",
        "pre_norm": "pre_norm",
    },
    "yolos": {"det_token_num": "num_queries"},
}


def numbers_from_weights(
    family: str,
    ours: Mapping[str, Tensor],
    args: Mapping[str, Any],
    architecture: Mapping[str, Any],
    source: str,
) -> tuple[Numbers, list[str]]:
    """Return a model's numbers, and notes on what was decided without being known.

    `ours` are its tensors under detr_kit's names. What they do not tell is taken from
    `architecture`, else from `args`, else from the published model of this width. Raises
    DetrKitError where that is not enough, and where weights and settings disagree.
    """
    known = _known(family, args, architecture, source)
    if family == "detr":
        numbers, notes = _detr(ours, known, Path(source).name)
    else:
        numbers, notes = _yolos(ours, known)
    for theirs, name in _TOLD_ARGS[family].items():
        if args.get(theirs, numbers[name]) != numbers[name]:
            raise DetrKitError(
                f"its args say {theirs} {args[theirs]}, its weights {numbers[name]}: it is cut off "
                "or was put together"
            )
    told = {name for theirs, name in _TOLD_ARGS[family].items() if theirs in args}
    notes += _unpublished(family, numbers, told)
    numbers |= {key: known[key] for key in architecture if key in known}
    _check_positions(numbers, ours)
    return numbers, notes


def args_from_numbers(numbers: Numbers, size_rule: SizeRule) -> Numbers:
    """Return the training script's settings that describe the model, for a file that holds both."""
    told = {theirs: numbers[name] for theirs, name in _TOLD_ARGS[numbers["family"]].items()}
    untold = {theirs: numbers[name] for theirs, name in _ARGS.items() if name in numbers}
    if numbers["family"] == "detr":
        return told | untold | {"position_embedding": numbers["position_encoding"]}
    return told | untold | {"eval_size": size_rule.short_side}


def _known(
    family: str, args: Mapping[str, Any], architecture: Mapping[str, Any], source: str
) -> Numbers:
    """Return the settings that are known from elsewhere than the weights, checked."""
    published = VARIANTS["detr_r50" if family == "detr" else "yolos_s"]
    stored = {ours: args.get(theirs) for theirs, ours in _ARGS.items() if ours in published}
    given = {**stored, **{key: value for key, value in architecture.items() if value is not None}}
    checked = changed_architecture(published, {**architecture, **given}, source)
    return {key: checked[key] for key, value in given.items() if value is not None}


def _detr(ours: Mapping[str, Tensor], known: Numbers, file_name: str) -> tuple[Numbers, list[str]]:
    """Return the architecture, and notes on what was decided without being known."""
    published = VARIANTS["detr_r50"]
    queries, hidden_dim = shape_of(ours, "queries.weight", 2, DETR_KEYS)
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
        known = known | {"dilation": "dc5" in file_name.lower()}
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
        "feedforward_dim": shape_of(ours, "decoder.layers.0.mlp.fc1.weight", 2, DETR_KEYS)[0],
        "num_queries": queries,
        "dropout": known.get("dropout", published["dropout"]),
        "pre_norm": any(key.startswith("encoder.norm.") for key in ours),
        "position_encoding": "learned" if learned else "sine",
    }
    return numbers, notes


def _yolos(ours: Mapping[str, Tensor], known: Numbers) -> tuple[Numbers, list[str]]:
    _, queries, hidden_dim = shape_of(ours, "backbone.det_token", 3, YOLOS_KEYS)
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
        "feedforward_dim": shape_of(ours, "backbone.blocks.0.mlp.fc1.weight", 2, YOLOS_KEYS)[0],
        "patch_size": shape_of(ours, "backbone.patch_embed.proj.weight", 4, YOLOS_KEYS)[-1],
        "position_size_hw": size_hw,
        "mid_position_size_hw": mid_size_hw if "backbone.mid_pos_embed" in ours else None,
        "num_queries": queries,
    }
    return numbers, notes


def _unpublished(family: str, numbers: Numbers, told: set[str]) -> list[str]:
    """Name depths unlike those published for this width: the file may be cut off."""
    published = VARIANTS["detr_r50"] if family == "detr" else None
    published = published or _PUBLISHED_YOLOS.get(numbers["hidden_dim"])
    if published is None or published["hidden_dim"] != numbers["hidden_dim"]:
        return []
    return [
        f"{name} {numbers[name]}, where {published[name]} are published"
        for name in ("encoder_layers", "decoder_layers", "depth")
        if name not in told and numbers.get(name) != published.get(name)
    ]


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
        tokens = shape_of(ours, key, dimensions, YOLOS_KEYS)[-2]
        patches = tokens - 1 - numbers["num_queries"]
        if rows * columns != patches or rows < 1:
            raise DetrKitError(
                f"{setting} {size_hw[0]} x {size_hw[1]} makes {rows} x {columns} patches, but "
                f"its position table has {patches}; give {setting}"
            )


def _resnet_of(ours: Mapping[str, Tensor]) -> str:
    blocks = tuple(count_layers(ours, f"backbone.body.layer{stage}.") for stage in (1, 2, 3, 4))
    bottleneck = "backbone.body.layer1.0.conv3.weight" in ours
    name = RESNETS.get((blocks, bottleneck))
    if name is None:
        raise DetrKitError(f"its backbone's stages of {blocks} blocks are no known ResNet")
    return name
