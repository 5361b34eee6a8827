"""Every variant's numbers, and the building of a model from them.

Numbers are plain data: they are written into checkpoints and read back. This module imports no
torch until a model is built.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError

if TYPE_CHECKING:
    from torch import nn

Numbers = dict[str, Any]

# DETR, section 4 and the official `main.py`.
_DETR: Numbers = {
    "family": "detr",
    "backbone": "resnet50",
    "backbone_norm": "auto",
    "backbone_stages": None,  # all
    "backbone_weights": "imagenet",
    "dilation": False,
    "frozen_stages": None,  # 2 where weights are loaded, 0 where not
    "encoder_layers": 6,
    "decoder_layers": 6,
    "hidden_dim": 256,
    "num_heads": 8,
    "feedforward_dim": 2048,
    "num_queries": 100,
    "dropout": 0.1,
    "pre_norm": False,
    "position_encoding": "sine",
    "positions_at_input": False,
    "padding": "independent",
    "activation_checkpointing": False,
}

NORM_EPS = 1e-6  # of every published ViT, DeiT and YOLOS

# YOLOS, table 1, the official `models/backbone.py` and README.
_YOLOS: Numbers = {
    "family": "yolos",
    "backbone_weights": "imagenet",
    "frozen_stages": 0,
    "hidden_dim": 384,
    "depth": 12,
    "num_heads": 6,
    "feedforward_dim": 1536,
    "norm_eps": NORM_EPS,
    "patch_size": 16,
    "position_size_hw": (512, 864),
    "mid_position_size_hw": (512, 864),
    "num_queries": 100,
    "dropout": 0.0,
    "drop_path": 0.0,
    "padding": "independent",
    "activation_checkpointing": False,
}

VARIANTS: dict[str, Numbers] = {
    "detr_r50": _DETR,
    "detr_r50_dc5": _DETR | {"dilation": True},
    "detr_r101": _DETR | {"backbone": "resnet101"},
    "detr_r101_dc5": _DETR | {"backbone": "resnet101", "dilation": True},
    "detr_small": _DETR
    | {
        "backbone": "resnet18",
        "backbone_weights": None,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "hidden_dim": 128,
        "num_heads": 4,
        "feedforward_dim": 512,
        "num_queries": 60,
        "pre_norm": True,
    },
    "yolos_ti": _YOLOS
    | {
        "hidden_dim": 192,
        "num_heads": 3,
        "feedforward_dim": 768,
        "position_size_hw": (800, 1333),
        "mid_position_size_hw": None,
    },
    "yolos_s": _YOLOS,
    # No named weights exist for the 330-wide ViT: give a file.
    "yolos_s_dwr": _YOLOS
    | {"hidden_dim": 330, "depth": 14, "feedforward_dim": 1320, "backbone_weights": None},
    "yolos_b": _YOLOS
    | {
        "hidden_dim": 768,
        "num_heads": 12,
        "feedforward_dim": 3072,
        "position_size_hw": (800, 1344),
        "mid_position_size_hw": (800, 1344),
    },
    "yolos_small": _YOLOS
    | {
        "backbone_weights": None,
        "hidden_dim": 192,
        "depth": 8,
        "num_heads": 3,
        "feedforward_dim": 768,
        "position_size_hw": (256, 256),
        "mid_position_size_hw": None,
        "num_queries": 60,
    },
}


def resolve(config: ModelConfig) -> Numbers:
    """Return a variant's numbers with the config's changes, nothing left to be decided.

    Raises DetrKitError for an unknown name and for a setting of the other family.
    """
    if config.name not in VARIANTS:
        near = difflib.get_close_matches(config.name, VARIANTS, n=1, cutoff=0.0)
        raise DetrKitError(
            f"model.name {config.name!r} is unknown; did you mean {near[0]!r}? "
            f"There are {', '.join(VARIANTS)}"
        )
    numbers = dict(VARIANTS[config.name])
    for key, value in config.model_dump(exclude={"name", "init_from"}, exclude_none=True).items():
        if key not in numbers:
            near = difflib.get_close_matches(key, numbers, n=1, cutoff=0.0)
            raise DetrKitError(
                f"model.{key}: {config.name} is a {numbers['family'].upper()} and has no such "
                f"setting; the nearest is {near[0]!r}"
            )
        numbers[key] = value
    return _decided(numbers)


def _decided(numbers: Numbers) -> Numbers:
    """Fill in what depends on whether weights are loaded into the backbone."""
    if numbers["backbone_weights"] == "none":
        numbers["backbone_weights"] = None
    pretrained = numbers["backbone_weights"] is not None
    if numbers["family"] == "detr":
        if numbers["backbone_norm"] == "auto":
            numbers["backbone_norm"] = "frozen" if pretrained else "batch"
        if numbers["frozen_stages"] is None:
            numbers["frozen_stages"] = 2 if pretrained else 0
    return numbers


def build_model(numbers: Numbers, num_classes: int) -> nn.Module:
    """Build a randomly initialised model from resolved numbers, reaching no network.

    `num_classes` counts the class columns without `no object`. Raises DetrKitError where the
    numbers do not fit each other.
    """
    return BUILDERS[numbers["family"]](numbers, num_classes)


def _build_detr(numbers: Numbers, num_classes: int) -> nn.Module:
    from detr_kit.models.backbones import Backbone
    from detr_kit.models.detr import DETR
    from detr_kit.models.heads import DetectionHeads
    from detr_kit.models.positions import LearnedPositions, SinePositions
    from detr_kit.models.transformer import Decoder, Encoder

    dim = numbers["hidden_dim"]
    positions = {"sine": SinePositions, "learned": LearnedPositions}
    layer = {
        "num_heads": numbers["num_heads"],
        "feedforward_dim": numbers["feedforward_dim"],
        "pre_norm": numbers["pre_norm"],
        "dropout": numbers["dropout"],
        "activation_checkpointing": numbers["activation_checkpointing"],
    }
    return DETR(
        Backbone(
            numbers["backbone"],
            norm=numbers["backbone_norm"],
            stages=numbers["backbone_stages"],
            dilation=numbers["dilation"],
            frozen_stages=numbers["frozen_stages"],
            padding=numbers["padding"],
        ),
        Encoder(dim, numbers["encoder_layers"], **layer),
        Decoder(dim, numbers["decoder_layers"], **layer),
        positions[numbers["position_encoding"]](dim),
        DetectionHeads(dim, num_classes, class_layers=1),
        hidden_dim=dim,
        num_queries=numbers["num_queries"],
        positions_at_input=numbers["positions_at_input"],
    )


def _build_yolos(numbers: Numbers, num_classes: int) -> nn.Module:
    from detr_kit.models.heads import DetectionHeads
    from detr_kit.models.vit import ViT
    from detr_kit.models.yolos import YOLOS

    mid_size_hw = numbers["mid_position_size_hw"]
    vit = ViT(
        dim=numbers["hidden_dim"],
        depth=numbers["depth"],
        num_heads=numbers["num_heads"],
        feedforward_dim=numbers["feedforward_dim"],
        patch_size=numbers["patch_size"],
        num_detection_tokens=numbers["num_queries"],
        position_size_hw=tuple(numbers["position_size_hw"]),
        mid_position_size_hw=None if mid_size_hw is None else tuple(mid_size_hw),
        dropout=numbers["dropout"],
        drop_path=numbers["drop_path"],
        norm_eps=numbers.get("norm_eps", NORM_EPS),  # older checkpoints do not name it
        padding=numbers["padding"],
        activation_checkpointing=numbers["activation_checkpointing"],
        frozen_stages=numbers.get("frozen_stages", 0),  # older checkpoints do not name it
    )
    return YOLOS(vit, DetectionHeads(numbers["hidden_dim"], num_classes, class_layers=3))


BUILDERS = {"detr": _build_detr, "yolos": _build_yolos}
