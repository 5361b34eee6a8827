"""Parameter groups and the optimiser, by the recipes of DETR and YOLOS."""

from __future__ import annotations

import torch
from torch import nn

from detr_kit.config import OptimizerConfig

# The official YOLOS spares these and all vectors of its backbone; the mid position embedding is
# decayed there, and so it is here.
_UNDECAYED_TOKENS = ("pos_embed", "cls_token", "det_token")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, object]]:
    """Split the trainable parameters into groups of one rate and one weight decay each.

    `model.backbone` holds the parameters of the backbone group, which may have a rate of its own
    (Carion et al. 2020, section 4). `decay: detr` decays every parameter; `decay: yolos` spares
    the backbone's vectors, position embedding and tokens (official YOLOS code, `util/scheduler`).
    """
    backbone_lr = config.lr if config.lr_backbone is None else config.lr_backbone
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_backbone = name.startswith("backbone.")
        decay = config.weight_decay
        if config.decay == "yolos" and in_backbone and _is_undecayed(name, parameter):
            decay = 0.0
        groups.setdefault((backbone_lr if in_backbone else config.lr, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def freeze_backbone_if_asked(model: nn.Module, config: OptimizerConfig) -> None:
    """Hold no gradients for a backbone whose rate is 0."""
    if config.lr_backbone == 0:
        model.get_submodule("backbone").requires_grad_(False)


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over the groups of `parameter_groups`."""
    # The fused kernel updates all parameters of a group in one pass, on CPU as on a GPU.
    return torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, fused=True)


def _is_undecayed(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 1 or name.rsplit(".", 1)[-1] in _UNDECAYED_TOKENS
