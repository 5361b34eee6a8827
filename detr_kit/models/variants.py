"""The numbers of every variant.

Numbers are plain data: they are written into checkpoints and read back. This module imports no
torch.
"""

from __future__ import annotations

from typing import Any

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
    "scoring": "softmax",
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
    "groups": 1,
    "patch_supervision": False,
    "scoring": "softmax",
    "padding": "independent",
    "activation_checkpointing": False,
}

# Deformable DETR, section 5 and the official `main.py`. "encoder_dim" and
# "encoder_feedforward_dim" None are those of the decoder.
_DEFORMABLE: Numbers = {
    "family": "deformable",
    "backbone": "resnet50",
    "backbone_norm": "auto",
    "backbone_stages": None,  # all
    "backbone_weights": "imagenet",
    "dilation": False,
    "frozen_stages": None,  # 2 where weights are loaded, 0 where not
    "levels": 4,
    "level_norm": "group",
    "encoder": "deformable",
    "encoder_layers": 6,
    "encoder_dim": None,
    "encoder_feedforward_dim": None,
    "encoder_expansion": 1.0,
    "decoder_layers": 6,
    "hidden_dim": 256,
    "num_heads": 8,
    "feedforward_dim": 1024,
    "num_queries": 300,
    "dropout": 0.1,
    "cross_attention": "deformable",
    "points": 4,
    "temperature": 10000.0,
    "centered_positions": True,
    "refinement": False,
    "look_forward_twice": False,
    "query_selection": "none",
    "query_positions": "learned",
    "decoder_norm": False,
    "shared_heads": False,
    "denoising_queries": 0,
    "label_noise": 0.5,
    "box_noise": 1.0,
    "groups": 1,
    "scoring": "sigmoid",
    "padding": "independent",
    "activation_checkpointing": False,
}

_REFINED = _DEFORMABLE | {"refinement": True}
_TWO_STAGE = _REFINED | {"query_selection": "full", "query_positions": "proposal"}

# DINO, section 4.1 and appendix D, and the official `DINO_4scale.py`, whose 100 denoising queries
# are as many positives and as many negatives again.
_DINO = _REFINED | {
    "feedforward_dim": 2048,
    "num_queries": 900,
    "dropout": 0.0,
    "look_forward_twice": True,
    "query_selection": "mixed",
    "query_positions": "sine",
    "decoder_norm": True,
    "shared_heads": True,
    "temperature": 20.0,
    "centered_positions": False,
    "denoising_queries": 200,
}

# RT-DETR, section 4 and table A, and the official configuration files of its second version, whose
# 100 denoising queries are counted as DINO's.
_RTDETR = _REFINED | {
    "backbone": "timm/resnet50d",
    "frozen_stages": 1,
    "levels": 3,
    "level_norm": "batch",
    "encoder": "hybrid",
    "encoder_layers": 1,
    "dropout": 0.0,
    "look_forward_twice": True,
    "query_selection": "full",
    "query_positions": "mlp",
    "denoising_queries": 200,
}
_SMALL_RTDETR = _RTDETR | {
    "backbone_weights": None,  # there are none by name for these backbones
    "backbone_norm": "batch",
    "frozen_stages": 0,
    "encoder_expansion": 0.5,
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
    "deformable_detr_r50": _DEFORMABLE,
    "deformable_detr_r50_refined": _REFINED,
    "deformable_detr_r50_two_stage": _TWO_STAGE,
    "dino_r50": _DINO,
    "rtdetrv2_r18": _SMALL_RTDETR | {"backbone": "timm/resnet18vd", "decoder_layers": 3},
    "rtdetrv2_r34": _SMALL_RTDETR | {"backbone": "timm/resnet34vd", "decoder_layers": 4},
    "rtdetrv2_r50": _RTDETR,
    "rtdetrv2_r101": _RTDETR
    | {"backbone": "timm/resnet101d", "encoder_dim": 384, "encoder_feedforward_dim": 2048},
    # For pictures of one's own, on a small machine.
    "detr_fast": _RTDETR
    | {
        "backbone": "resnet18",
        "frozen_stages": None,
        "encoder_expansion": 0.5,
        "decoder_layers": 3,
        "hidden_dim": 128,
        "feedforward_dim": 512,
        "num_queries": 60,
        "denoising_queries": 100,
    },
}
