"""The `config.json` of transformers' detectors and detr_kit's numbers, in both directions.

Source: `DetrConfig` and `YolosConfig` of transformers; of the others, see their modules.
"""

from __future__ import annotations

from collections.abc import Callable

from detr_kit.checkpoints.hf_backbones import Numbers, read_backbone, require
from detr_kit.checkpoints.hf_config_deformable import deformable_config, deformable_numbers
from detr_kit.checkpoints.hf_config_rtdetr import rtdetr_config, rtdetr_numbers
from detr_kit.checkpoints.hf_keys import DETR_RESNET_KEYS, DETR_TIMM_KEYS, YOLOS_KEYS
from detr_kit.checkpoints.keymap import KeyMap
from detr_kit.checkpoints.opened import require_supported
from detr_kit.checkpoints.resnets import RESNETS
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import NORM_EPS, VARIANTS

# config.json leaves out what equals the class's default.
_DETR_DEFAULTS: Numbers = {
    "activation_function": "relu",
    "backbone": "resnet50",
    "backbone_config": None,
    "d_model": 256,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 2048,
    "decoder_layers": 6,
    "dilation": False,
    "dropout": 0.1,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "encoder_layers": 6,
    "num_channels": 3,
    "num_queries": 100,
    "position_embedding_type": "sine",
    "use_timm_backbone": True,
}
_YOLOS_DEFAULTS: Numbers = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": (512, 864),
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_detection_tokens": 100,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
    "use_mid_position_embeddings": True,
}


def numbers_from_config(config: Numbers) -> tuple[Numbers, KeyMap]:
    """Return a model's numbers and the map that its style of keys needs.

    Raises DetrKitError, naming the key, for settings that detr_kit's models do not have.
    """
    read = _READERS.get(str(config.get("model_type")))
    if read is None:
        *others, last = _READERS
        raise DetrKitError(
            f"model_type is {config.get('model_type')!r}; {', '.join(others)} and {last} can be "
            "read"
        )
    return read(config)


def config_from_numbers(numbers: Numbers) -> tuple[Numbers, KeyMap]:
    """Return the config of the same model without its categories, and the map of its keys.

    Raises DetrKitError where transformers has no such model.
    """
    if numbers["family"] == "detr":
        return _detr_config(numbers), DETR_TIMM_KEYS
    if numbers["family"] == "deformable":
        return (rtdetr_config if numbers["encoder"] == "hybrid" else deformable_config)(numbers)
    return _yolos_config(numbers), YOLOS_KEYS


def _detr(config: Numbers) -> tuple[Numbers, KeyMap]:
    values = _DETR_DEFAULTS | config
    require(values, "activation_function", "relu")
    require(values, "num_channels", 3)
    for part in ("attention_heads", "ffn_dim"):
        require(values, f"decoder_{part}", values[f"encoder_{part}"])
    position = values["position_embedding_type"]
    if position not in ("sine", "learned"):
        raise DetrKitError(f"position_embedding_type {position!r} is not supported")
    backbone, dilation, maker = read_backbone(values, levels=1)
    numbers = VARIANTS["detr_r50"] | {
        "backbone": backbone,
        "backbone_norm": "frozen",
        "backbone_weights": None,
        "frozen_stages": 2,
        "dilation": dilation,
        "encoder_layers": values["encoder_layers"],
        "decoder_layers": values["decoder_layers"],
        "hidden_dim": values["d_model"],
        "num_heads": values["encoder_attention_heads"],
        "feedforward_dim": values["encoder_ffn_dim"],
        "num_queries": values["num_queries"],
        "dropout": values["dropout"],
        "position_encoding": position,
    }
    return numbers, DETR_TIMM_KEYS if maker == "timm" else DETR_RESNET_KEYS


def _yolos(config: Numbers) -> tuple[Numbers, KeyMap]:
    values = _YOLOS_DEFAULTS | config
    require(values, "hidden_act", "gelu")
    require(values, "num_channels", 3)
    require(values, "qkv_bias", True)
    patch, size = values["patch_size"], values["image_size"]
    if not isinstance(patch, int):
        require({"patch_size": patch[1]}, "patch_size", patch[0])
        patch = patch[0]
    size_hw = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    numbers = VARIANTS["yolos_s"] | {
        "backbone_weights": None,
        "hidden_dim": values["hidden_size"],
        "depth": values["num_hidden_layers"],
        "num_heads": values["num_attention_heads"],
        "feedforward_dim": values["intermediate_size"],
        "norm_eps": float(values["layer_norm_eps"]),
        "patch_size": patch,
        "position_size_hw": size_hw,
        "mid_position_size_hw": size_hw if values["use_mid_position_embeddings"] else None,
        "num_queries": values["num_detection_tokens"],
        "dropout": float(values["hidden_dropout_prob"]),
    }
    return numbers, YOLOS_KEYS


def _detr_config(numbers: Numbers) -> Numbers:
    require_supported(
        numbers,
        {
            "backbone": RESNETS.values(),
            "backbone_stages": (None, 4),
            "backbone_norm": ("frozen", "batch"),
            "pre_norm": (False,),
            "positions_at_input": (False,),
            "scoring": ("softmax",),
        },
        "transformers' DETR",
    )
    return {
        "architectures": ["DetrForObjectDetection"],
        "model_type": "detr",
        "activation_function": "relu",
        "backbone": numbers["backbone"],
        "d_model": numbers["hidden_dim"],
        "decoder_attention_heads": numbers["num_heads"],
        "decoder_ffn_dim": numbers["feedforward_dim"],
        "decoder_layers": numbers["decoder_layers"],
        "dilation": numbers["dilation"],
        "dropout": numbers["dropout"],
        "encoder_attention_heads": numbers["num_heads"],
        "encoder_ffn_dim": numbers["feedforward_dim"],
        "encoder_layers": numbers["encoder_layers"],
        "num_queries": numbers["num_queries"],
        "position_embedding_type": numbers["position_encoding"],
        "use_pretrained_backbone": False,  # its weights are among these
        "use_timm_backbone": True,
    }


def _yolos_config(numbers: Numbers) -> Numbers:
    require_supported(numbers, {"scoring": ("softmax",)}, "transformers' YOLOS")
    size_hw, mid_size_hw = numbers["position_size_hw"], numbers["mid_position_size_hw"]
    if mid_size_hw not in (None, size_hw):
        raise DetrKitError(
            f"transformers' YOLOS has one size for both position tables, not {size_hw} and "
            f"{mid_size_hw}"
        )
    return {
        "architectures": ["YolosForObjectDetection"],
        "model_type": "yolos",
        "attention_probs_dropout_prob": numbers["dropout"],
        "hidden_act": "gelu",
        "hidden_dropout_prob": numbers["dropout"],
        "hidden_size": numbers["hidden_dim"],
        "image_size": list(size_hw),
        "intermediate_size": numbers["feedforward_dim"],
        "layer_norm_eps": numbers.get("norm_eps", NORM_EPS),
        "num_attention_heads": numbers["num_heads"],
        "num_detection_tokens": numbers["num_queries"],
        "num_hidden_layers": numbers["depth"],
        "patch_size": numbers["patch_size"],
        "qkv_bias": True,
        "use_mid_position_embeddings": mid_size_hw is not None,
    }


_READERS: dict[str, Callable[[Numbers], tuple[Numbers, KeyMap]]] = {
    "detr": _detr,
    "yolos": _yolos,
    "deformable_detr": deformable_numbers,
    "rt_detr": rtdetr_numbers,
    "rt_detr_v2": rtdetr_numbers,
}
