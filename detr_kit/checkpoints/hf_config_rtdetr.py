"""The `config.json` of transformers' RT-DETR and RT-DETRv2 and detr_kit's numbers, both ways.

The two compute the same but for a "discrete" sampling of the second. Source: `RTDetrConfig` and
`RTDetrV2Config` of transformers.
"""

from __future__ import annotations

from detr_kit.checkpoints.hf_backbones import (
    Numbers,
    read_rtdetr_backbone,
    require,
    write_rtdetr_backbone,
)
from detr_kit.checkpoints.hf_keys_rtdetr import rtdetr_keys
from detr_kit.checkpoints.keymap import KeyMap
from detr_kit.checkpoints.opened import require_supported
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import VARIANTS

# What all have that detr_kit can follow. config.json leaves out what equals the class's default.
_FIXED: Numbers = {
    "activation_function": "silu",
    "batch_norm_eps": 1e-5,
    "decoder_activation_function": "relu",
    "decoder_method": "default",
    "decoder_n_levels": 3,
    "decoder_offset_scale": 0.5,
    "encode_proj_layers": [2],
    "encoder_activation_function": "gelu",
    "layer_norm_eps": 1e-5,
    "learn_initial_query": False,
    "normalize_before": False,
    "num_feature_levels": 3,
    "positional_encoding_temperature": 10000,
}
_DEFAULTS: Numbers = {
    **_FIXED,
    "backbone": None,
    "backbone_config": None,
    "box_noise_scale": 1.0,
    "d_model": 256,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 1024,
    "decoder_in_channels": [256, 256, 256],
    "decoder_layers": 6,
    "decoder_n_points": 4,
    "dropout": 0.0,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 1024,
    "encoder_hidden_dim": 256,
    "encoder_layers": 1,
    "freeze_backbone_batch_norms": True,
    "hidden_expansion": 1.0,
    "label_noise_ratio": 0.5,
    "num_denoising": 100,
    "num_queries": 300,
}


def rtdetr_numbers(config: Numbers) -> tuple[Numbers, KeyMap]:
    """Return a model's numbers and the map of its keys.

    `anchor_image_size` and `eval_size` are not asked for: anchors and positions are those of the
    size at hand, as in training. Raises DetrKitError, naming the key, for settings that detr_kit's
    models do not have.
    """
    values = _DEFAULTS | config
    for key, expected in _FIXED.items():
        require({key: _listed(values[key])}, key, expected)
    require(values, "decoder_attention_heads", values["encoder_attention_heads"])
    width = values["encoder_hidden_dim"]
    key = "decoder_in_channels"
    require({key: _listed(values[key])}, key, [width] * 3)
    if values["backbone_config"] is None:
        require(values, "backbone", None)
    backbone, maker = read_rtdetr_backbone(values["backbone_config"])
    frozen = bool(values["freeze_backbone_batch_norms"])
    dim, feedforward_dim = values["d_model"], values["decoder_ffn_dim"]
    own_feedforward_dim = values["encoder_ffn_dim"]
    numbers = VARIANTS["rtdetrv2_r50"] | {
        "backbone": backbone,
        "backbone_norm": "frozen" if frozen else "batch",
        "backbone_weights": None,
        "frozen_stages": 1 if frozen else 0,
        "encoder_layers": values["encoder_layers"],
        "encoder_dim": None if width == dim else width,
        "encoder_feedforward_dim": (
            None if own_feedforward_dim == feedforward_dim else own_feedforward_dim
        ),
        "encoder_expansion": float(values["hidden_expansion"]),
        "decoder_layers": values["decoder_layers"],
        "hidden_dim": dim,
        "num_heads": values["decoder_attention_heads"],
        "feedforward_dim": feedforward_dim,
        "num_queries": values["num_queries"],
        "dropout": float(values["dropout"]),
        "points": values["decoder_n_points"],
        "denoising_queries": 2 * values["num_denoising"],  # ours count the negatives too
        "label_noise": float(values["label_noise_ratio"]),
        "box_noise": float(values["box_noise_scale"]),
    }
    return numbers, rtdetr_keys(maker, frozen_norms=frozen)


def rtdetr_config(numbers: Numbers) -> tuple[Numbers, KeyMap]:
    """Return RT-DETRv2's config of the same model without its categories, and the map of its keys.

    Raises DetrKitError where transformers has no such model.
    """
    require_supported(
        numbers,
        {
            "backbone_stages": (None, 4),
            "backbone_norm": ("frozen", "batch"),
            "dilation": (False,),
            "levels": (3,),
            "level_norm": ("batch",),
            "cross_attention": ("deformable",),
            "refinement": (True,),
            "query_selection": ("full",),
            "query_positions": ("mlp",),
            "decoder_norm": (False,),
            "shared_heads": (False,),
            "temperature": (10000.0,),
            "groups": (1,),
            "scoring": ("sigmoid",),
        },
        "transformers' RT-DETRv2",
    )
    written = write_rtdetr_backbone(numbers["backbone"])
    if written is None:
        raise DetrKitError(f"transformers' RT-DETRv2 has no backbone {numbers['backbone']}")
    backbone_config, maker = written
    frozen = numbers["backbone_norm"] == "frozen"
    width = numbers["encoder_dim"] or numbers["hidden_dim"]
    config = {
        "architectures": ["RTDetrV2ForObjectDetection"],
        "model_type": "rt_detr_v2",
        "backbone_config": backbone_config,
        "box_noise_scale": numbers["box_noise"],
        "d_model": numbers["hidden_dim"],
        "decoder_attention_heads": numbers["num_heads"],
        "decoder_ffn_dim": numbers["feedforward_dim"],
        "decoder_in_channels": [width] * 3,
        "decoder_layers": numbers["decoder_layers"],
        "decoder_n_points": numbers["points"],
        "dropout": numbers["dropout"],
        "encoder_attention_heads": numbers["num_heads"],
        "encoder_ffn_dim": numbers["encoder_feedforward_dim"] or numbers["feedforward_dim"],
        "encoder_hidden_dim": width,
        "encoder_layers": numbers["encoder_layers"],
        "freeze_backbone_batch_norms": frozen,
        "hidden_expansion": numbers["encoder_expansion"],
        "label_noise_ratio": numbers["label_noise"],
        "num_denoising": -(-numbers["denoising_queries"] // 2),
        "num_queries": numbers["num_queries"],
    }
    return config, rtdetr_keys(maker, frozen_norms=frozen)


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
