"""Parameter groups and the optimiser, by the recipes of DETR and YOLOS."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from detr_kit.config import OptimizerConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.backbones import Backbone
from detr_kit.models.vit import ViT

# The official YOLOS spares these and all vectors of its backbone; the mid position embedding is
# decayed there, and so it is here.
_UNDECAYED_TOKENS = ("pos_embed", "cls_token", "det_token", "extra_det_token", "extra_pos_embed")


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, *, rate_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Split the trainable parameters into groups, each of one rate and one weight decay.

    `model.backbone` holds the parameters of the backbone group, which may have a rate of its own
    (Carion et al. 2020, section 4). `decay: detr` decays every parameter; `decay: yolos` spares
    the backbone's vectors, position embedding and tokens (official YOLOS code, `util/scheduler`).
    `layer_decay` below 1 gives each layer of the backbone a group of its own, see
    `backbone_layers`. All rates are multiplied by `rate_factor`.

    Each group has a `name` that no other has: "backbone" and "rest", or "backbone layer 3", and
    " without decay" behind it for those that are spared. Groups and their order do not depend on
    the rates, so that an optimiser's state loads whatever they have become; only a rate of 0, which
    freezes the backbone (`freeze_backbone_if_asked`), leaves its groups out.
    """
    backbone_lr = config.lr if config.lr_backbone is None else config.lr_backbone
    layers = backbone_layers(model) if config.layer_decay < 1 else {}
    last = max(layers.values(), default=0)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_backbone = name.startswith("backbone.")
        spared = config.decay == "yolos" and in_backbone and _is_undecayed(name, parameter)
        lr = rate_factor * (backbone_lr if in_backbone else config.lr)
        group_name = "backbone" if in_backbone else "rest"
        layer = layers.get(name)
        if layer is not None:
            lr *= config.layer_decay ** (last - layer)
            group_name += f" layer {layer}"
        if spared:
            group_name += " without decay"
        decay = 0.0 if spared else config.weight_decay
        group = {"params": [], "lr": lr, "weight_decay": decay, "name": group_name}
        groups.setdefault(group_name, group)["params"].append(parameter)
    return list(groups.values())


def backbone_layers(model: nn.Module) -> dict[str, int]:
    """Return the layer of each of the backbone's parameters by name; the last is the deepest.

    With `layer_decay` d, layer i of n learns at d^(n - i) of the backbone's rate, the last at the
    whole (Clark et al. 2020, ELECTRA; for a ViT, Bao et al. 2022, BEiT). Layer 0 of a ViT is the
    embedding of patches, class token and positions, layer i + 1 its block i. What a classifier's
    ViT does not have or does not hand on, detection tokens and mid position embedding, starts
    from nothing and belongs to the last layer. Layers of a CNN are its stages as `frozen_stages`
    counts them.

    Raises DetrKitError for a backbone whose layers are not known.
    """
    backbone = model.get_submodule("backbone")
    if isinstance(backbone, ViT):
        layers = _vit_layers(backbone)
    elif isinstance(backbone, Backbone):
        layers = {f"body.{name}": layer for name, layer in _cnn_layers(backbone).items()}
    else:
        raise DetrKitError(
            f"optimizer.layer_decay: the layers of a {type(backbone).__name__} are not known"
        )
    return {f"backbone.{name}": layer for name, layer in layers.items()}


def rate_factor(config: OptimizerConfig, step_images: int) -> float:
    """Return what the rates are multiplied by for steps of `step_images` images.

    `linear`: in proportion to the images (Goyal et al. 2017, for SGD); `sqrt`: to their square
    root, which suits Adam and its kin (Malladi et al. 2022). Moments and weight decay stay.

    Raises DetrKitError where the recipe's number of images is not given.
    """
    if config.scale_lr == "none":
        return 1.0
    if config.recipe_batch is None:
        raise DetrKitError(
            f"optimizer.scale_lr={config.scale_lr} needs optimizer.recipe_batch: the images a step "
            f"that the rates are stated for"
        )
    ratio = step_images / config.recipe_batch
    return ratio if config.scale_lr == "linear" else math.sqrt(ratio)


def freeze_backbone_if_asked(model: nn.Module, config: OptimizerConfig) -> None:
    """Hold no gradients for a backbone whose rate is 0."""
    if config.lr_backbone == 0:
        model.get_submodule("backbone").requires_grad_(False)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, step_images: int
) -> torch.optim.AdamW:
    """Return AdamW over the groups of `parameter_groups`, for steps of `step_images` images.

    Raises DetrKitError for `scale_lr` without `recipe_batch`, and as `backbone_layers` does.
    """
    factor = rate_factor(config, step_images)
    groups = parameter_groups(model, config, rate_factor=factor)
    # The fused kernel updates all parameters of a group in one pass, on CPU as on a GPU.
    return torch.optim.AdamW(groups, lr=config.lr * factor, fused=True)


def _is_undecayed(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 1 or name.rsplit(".", 1)[-1] in _UNDECAYED_TOKENS


def _vit_layers(vit: ViT) -> dict[str, int]:
    layers = {}
    for name, _ in vit.named_parameters():
        first, *rest = name.split(".")
        if first == "blocks":
            layers[name] = int(rest[0]) + 1
        elif first in ("patch_embed", "cls_token", "pos_embed"):
            layers[name] = 0
        else:
            layers[name] = len(vit.blocks)
    return layers


def _cnn_layers(backbone: Backbone) -> dict[str, int]:
    """Walk a CNN in order of definition; what lies between two stages belongs to the later."""
    body = backbone.body
    ends = _stage_ends(body)
    layers: dict[str, int] = {}
    stage, inside = 0, False
    for module_name, module in body.named_modules():
        if inside and not _is_in(module_name, ends[stage]):
            stage, inside = min(stage + 1, len(ends) - 1), False
        inside = inside or _is_in(module_name, ends[stage])
        for name, _ in module.named_parameters(module_name, recurse=False):
            layers[name] = stage
    if not inside and stage < len(ends) - 1:
        raise DetrKitError(
            f"optimizer.layer_decay: {backbone.name} has no module {ends[stage]!r}, so that its "
            f"layers are not known"
        )
    return layers


def _stage_ends(body: nn.Module) -> list[str]:
    """Name the last module of each stage."""
    info: Any = getattr(body, "feature_info", None)
    if info is None:  # a ResNet's stem ends with its pooling
        return [
            name
            for name, _ in body.named_children()
            if name.startswith(("maxpool", "layer", "stage"))
        ]
    # timm flattens "stages.0" to "stages_0" in some of its wrappers.
    flat = not any(name == info.module_name()[0] for name, _ in body.named_modules())
    return [name.replace(".", "_") if flat else name for name in info.module_name()]


def _is_in(module_name: str, parent: str) -> bool:
    return module_name == parent or module_name.startswith(parent + ".")
