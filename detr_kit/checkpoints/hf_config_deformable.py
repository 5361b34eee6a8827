"""The `config.json` of transformers' Deformable DETR and detr_kit's numbers, in both directions.

Source: `DeformableDetrConfig` of transformers.
"""

from __future__ import annotations

from detr_kit.checkpoints.hf_backbones import Numbers, read_backbone, require
from detr_kit.checkpoints.hf_keys_deformable import deformable_keys
from detr_kit.checkpoints.keymap import KeyMap
from detr_kit.checkpoints.opened import require_supported
from detr_kit.checkpoints.resnets import RESNETS
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import VARIANTS

# config.json leaves out what equals the class's default.
_DEFAULTS: Numbers = {
    "activation_function": "relu",
    "backbone": "resnet50",
    "backbone_config": None,
    "d_model": 256,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 1024,
    "decoder_layers": 6,
    "decoder_n_points": 4,
    "dilation": False,
    "dropout": 0.1,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 1024,
    "encoder_layers": 6,
    "encoder_n_points": 4,
    "num_channels": 3,
    "num_feature_levels": 4,
    "num_queries": 300,
    "position_embedding_type": "sine",
    "two_stage": False,
    "two_stage_num_proposals": 300,
    "use_timm_backbone": True,
    "with_box_refine": False,
}
# Of two, transformers projects three maps and attends to two.
_LEVELS = (1, 3, 4, 5)
# It always has 32 groups, detr_kit so many only where each has two channels at least.
_GROUPED = 64


def deformable_numbers(config: Numbers) -> tuple[Numbers, KeyMap]:
    """Return a model's numbers and the map of its keys.

    Raises DetrKitError, naming the key, for settings that detr_kit's models do not have.
    """
    values = _DEFAULTS | config
    require(values, "activation_function", "relu")
    require(values, "num_channels", 3)
    require(values, "position_embedding_type", "sine")
    for part in ("attention_heads", "ffn_dim", "n_points"):
        require(values, f"decoder_{part}", values[f"encoder_{part}"])
    levels, two_stage = values["num_feature_levels"], bool(values["two_stage"])
    if levels not in _LEVELS:
        raise DetrKitError(f"num_feature_levels {levels!r} is not supported, one of {_LEVELS} is")
    if two_stage:
        require(values, "with_box_refine", True)
    if values["d_model"] % _GROUPED:
        raise DetrKitError(f"d_model {values['d_model']} is not supported, multiples of 64 are")
    backbone, dilation, maker = read_backbone(values, min(levels, 3))
    refinement = bool(values["with_box_refine"])
    numbers = VARIANTS["deformable_detr_r50"] | {
        "backbone": backbone,
        "backbone_norm": "frozen",
        "backbone_weights": None,
        "frozen_stages": 2,
        "dilation": dilation,
        "levels": levels,
        "encoder_layers": values["encoder_layers"],
        "decoder_layers": values["decoder_layers"],
        "hidden_dim": values["d_model"],
        "num_heads": values["encoder_attention_heads"],
        "feedforward_dim": values["encoder_ffn_dim"],
        "num_queries": values["two_stage_num_proposals" if two_stage else "num_queries"],
        "dropout": values["dropout"],
        "points": values["encoder_n_points"],
        "refinement": refinement,
        "query_selection": "full" if two_stage else "none",
        "query_positions": "proposal" if two_stage else "learned",
    }
    layers = values["decoder_layers"]
    return numbers, deformable_keys(maker, layers, refinement=refinement, two_stage=two_stage)


def deformable_config(numbers: Numbers) -> tuple[Numbers, KeyMap]:
    """Return the config of the same model without its categories, and the map of its keys.

    Raises DetrKitError where transformers has no such model.
    """
    two_stage = numbers["query_selection"] == "full"
    require_supported(
        numbers,
        {
            "backbone": RESNETS.values(),
            "backbone_stages": (None, 4),
            "backbone_norm": ("frozen", "batch"),
            "levels": _LEVELS,
            "level_norm": ("group",),
            "encoder": ("deformable",),
            "cross_attention": ("deformable",),
            "query_selection": ("none", "full"),
            "query_positions": ("proposal" if two_stage else "learned",),
            "refinement": (True,) if two_stage else (True, False),
            "decoder_norm": (False,),
            "shared_heads": (False,),
            "temperature": (10000.0,),
            "centered_positions": (True,),
            "denoising_queries": (0,),
            "scoring": ("sigmoid",),
        },
        "transformers' Deformable DETR",
    )
    if numbers["hidden_dim"] % _GROUPED:
        raise DetrKitError(
            f"transformers' Deformable DETR has no hidden_dim {numbers['hidden_dim']} with as many "
            "groups of channels, but multiples of 64"
        )
    queries, layers = numbers["num_queries"], numbers["decoder_layers"]
    config = {
        "architectures": ["DeformableDetrForObjectDetection"],
        "model_type": "deformable_detr",
        "activation_function": "relu",
        "backbone": numbers["backbone"],
        "d_model": numbers["hidden_dim"],
        "decoder_attention_heads": numbers["num_heads"],
        "decoder_ffn_dim": numbers["feedforward_dim"],
        "decoder_layers": layers,
        "decoder_n_points": numbers["points"],
        "dilation": numbers["dilation"],
        "dropout": numbers["dropout"],
        "encoder_attention_heads": numbers["num_heads"],
        "encoder_ffn_dim": numbers["feedforward_dim"],
        "encoder_layers": numbers["encoder_layers"],
        "encoder_n_points": numbers["points"],
        "num_feature_levels": numbers["levels"],
        "num_queries": queries,
        "position_embedding_type": "sine",
        "two_stage": two_stage,
        "two_stage_num_proposals": queries,
        "use_pretrained_backbone": False,  # its weights are among these
        "use_timm_backbone": True,
        "with_box_refine": numbers["refinement"],
    }
    refinement = numbers["refinement"]
    return config, deformable_keys("timm", layers, refinement=refinement, two_stage=two_stage)
