"""The backbones of transformers' DETR and of its kind, and what is refused of a config.json.

Source: `ResNetConfig`, `TimmBackboneConfig` and `RTDetrResNetConfig` of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from detr_kit.checkpoints.hf_keys import Maker
from detr_kit.checkpoints.resnets import RESNETS, stage_widths
from detr_kit.errors import DetrKitError

Numbers = dict[str, Any]

# config.json leaves out what equals the class's default; RTDetrResNetConfig has the same.
_RESNET_DEFAULTS: Numbers = {
    "depths": [3, 4, 6, 3],
    "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False,
    "embedding_size": 64,
    "hidden_act": "relu",
    "hidden_sizes": (256, 512, 1024, 2048),
    "layer_type": "bottleneck",
    "num_channels": 3,
}
_STAGES = 4
# timm's ResNets of the variant that RT-DETR has: a stem of three convolutions, an average pooling
# in the shortcuts of strided blocks.
_VARIANT_D = tuple(f"{name}d" for name in RESNETS.values())
# What transformers builds by itself; in its small ones the first block has a shortcut of its own.
_VD = {
    name: f"timm/{name}{'vd' if name in ('resnet18', 'resnet34') else 'd'}"
    for name in RESNETS.values()
}


def require(values: Mapping[str, Any], key: str, expected: Any, prefix: str = "") -> None:
    """Raise DetrKitError, naming the key, where its value is not the expected one."""
    if values[key] != expected:
        raise DetrKitError(f"{prefix}{key} {values[key]!r} is not supported, {expected!r} is")


def read_backbone(values: Numbers, levels: int) -> tuple[str, bool, Maker]:
    """Return our name of a DETR's or Deformable DETR's backbone, whether it is dilated, its maker.

    Of its stages, the last `levels` are to be read.
    """
    inner = values["backbone_config"]
    if inner is None and not values["use_timm_backbone"]:
        inner = {"model_type": "resnet", "out_features": ["stage4"]}
    if inner is not None and inner.get("model_type") not in ("timm_backbone", "resnet"):
        raise DetrKitError(f"backbone_config of type {inner.get('model_type')!r} is not supported")
    if inner is not None and inner["model_type"] == "resnet":
        require_stages(inner, levels)
        return _resnet(inner), False, "transformers"
    # beside a backbone_config, transformers ignores these
    inner = inner or {
        "backbone": values["backbone"],
        "output_stride": 16 if values["dilation"] else None,
        **(values.get("backbone_kwargs") or {}),
    }
    name, stride = timm_resnet(inner, RESNETS.values()), inner.get("output_stride")
    if inner.get("model_type") == "timm_backbone" or levels == 1 or "out_indices" in inner:
        require_stages(inner, levels)
    if stride not in (None, 16, 32):
        raise DetrKitError(f"backbone_config.output_stride {stride} is not supported")
    return name, stride == 16, "timm"


def read_rtdetr_backbone(inner: Numbers | None) -> tuple[str, Maker]:
    """Return our name of an RT-DETR's backbone, and its maker."""
    inner = {"model_type": "rt_detr_resnet", "out_indices": [2, 3, 4]} if inner is None else inner
    made_by_timm = inner.get("model_type") == "timm_backbone"
    if made_by_timm:
        name = timm_resnet(inner, (*RESNETS.values(), *_VARIANT_D))
        name = f"timm/{name}" if name in _VARIANT_D else name
    elif inner.get("model_type") == "rt_detr_resnet":
        name = _VD[_resnet(inner)]
    else:
        raise DetrKitError(f"backbone_config of type {inner.get('model_type')!r} is not supported")
    require_stages(inner, levels=3)
    return name, "timm" if made_by_timm else "transformers"


def write_rtdetr_backbone(name: str) -> tuple[Numbers, Maker] | None:
    """Return the `backbone_config` of a backbone of ours, and its maker; None for others."""
    plain = name.removeprefix("timm/")
    shapes = {_VD[known]: shape for shape, known in RESNETS.items()}
    if name in shapes:
        depths, bottleneck = shapes[name]
        inner: Numbers = {
            "model_type": "rt_detr_resnet",
            "depths": list(depths),
            "hidden_sizes": list(stage_widths(bottleneck)),
            "layer_type": "bottleneck" if bottleneck else "basic",
            "out_indices": [2, 3, 4],
        }
        return inner, "transformers"
    if name in RESNETS.values() or plain in _VARIANT_D:
        inner = {
            "model_type": "timm_backbone",
            "backbone": plain,
            "features_only": True,
            "out_indices": [2, 3, 4],
            "use_pretrained_backbone": False,
        }
        return inner, "timm"
    return None


def timm_resnet(inner: Numbers, known: Any) -> str:
    """Return the name of a timm ResNet among the known."""
    name = str(inner.get("backbone")).split(".")[0]  # resnet50.a1_in1k: the same network
    if name not in known:
        raise DetrKitError(f"backbone {inner.get('backbone')!r} is not supported")
    return name


def require_stages(inner: Numbers, levels: int) -> None:
    """Raise DetrKitError where not the last `levels` stages are read, of four and the stem.

    Of one level only the last name is looked at, as DETR does; without any it is the last stage.
    """
    features, indices = inner.get("out_features"), inner.get("out_indices")
    chosen: list[Any] | None = None
    if features:
        chosen = [_stage(str(name)) for name in features]
    elif indices:
        chosen = [index % (_STAGES + 1) for index in indices]
    wanted = list(range(_STAGES + 1 - levels, _STAGES + 1))
    last_only = levels == 1
    if not (chosen is None or chosen[-1] == _STAGES if last_only else chosen == wanted):
        raise DetrKitError(
            f"backbone_config: features of {features or indices} are not supported, "
            + ("the last stage's are" if last_only else f"those of the last {levels} stages are")
        )


def _stage(name: str) -> int:
    """Return a stage's number, 0 for the stem, by its name in transformers or timm."""
    match = re.fullmatch(r"(?:stage|layer)(\d)", name)
    return int(match[1]) if match else 0


def _resnet(inner: Numbers) -> str:
    """Return the name of a ResNet of transformers by its shape."""
    resnet = _RESNET_DEFAULTS | inner
    for key in ("downsample_in_bottleneck", "downsample_in_first_stage", "embedding_size"):
        require(resnet, key, _RESNET_DEFAULTS[key], "backbone_config.")
    require(resnet, "hidden_act", "relu", "backbone_config.")
    depths, bottleneck = tuple(resnet["depths"]), resnet["layer_type"] == "bottleneck"
    name = RESNETS.get((depths, bottleneck))
    if name is None or tuple(resnet["hidden_sizes"]) != stage_widths(bottleneck):
        raise DetrKitError(
            f"backbone_config: a ResNet of {depths} {resnet['layer_type']} layers is not known"
        )
    return name
