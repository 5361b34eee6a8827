"""What takes the place of a CNN's batch norms: frozen ones, or group norm."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.models.extents import Extents

NormKind = Literal["frozen", "batch", "group"]


class FrozenBatchNorm2d(nn.Module):
    """A batch norm whose statistics and scale are constants, whatever train() says.

    It keeps the layer's own eps and, for timm's `BatchNormAct2d`, the activation that follows.
    Where the convolution before it computes it too (`folded`), only the activation is left to do.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, eps: float, act: nn.Module) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.act = act
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        if self.folded:
            return self.act(x)
        normalized = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
        return self.act(normalized)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return (C,) constants of x * scale + shift, in single precision at least."""
        return scale_and_shift(
            self.weight, self.bias, self.running_mean, self.running_var, eps=self.eps
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A constant counts no batches.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def scale_and_shift(
    weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Return a batch norm's (C,) constants of x * scale + shift, in single precision at least."""
    wide = torch.promote_types(variance.dtype, torch.float32)
    # Rounded once, at the end: they are computed rarely.
    scale = weight.double() / (variance.double() + eps).sqrt()
    return scale.to(wide), (bias.double() - mean.double() * scale).to(wide)


class ExtentGroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) whose statistics leave out what lies outside each image."""

    def __init__(self, num_channels: int, *, eps: float, act: nn.Module, extents: Extents) -> None:
        super().__init__(math.gcd(32, num_channels), num_channels, eps=eps)
        self.act = act
        self.extents = extents

    def forward(self, x: Tensor) -> Tensor:
        mask = self.extents.mask_of(x, self)
        if mask is None:
            return self.act(super().forward(x))
        return self.act(group_norm_inside(x, mask, self))


def group_norm_inside(x: Tensor, mask: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Apply a group norm to (B, C, h, w) with the statistics of where (B, 1, h, w) is False."""
    inside = (~mask).unsqueeze(1).to(x.dtype)  # (B, 1, 1, h, w)
    groups = x.unflatten(1, (norm.num_groups, -1))  # (B, g, C / g, h, w)
    count = inside.sum((2, 3, 4), keepdim=True) * groups.shape[2]
    mean = (groups * inside).sum((2, 3, 4), keepdim=True) / count
    centered = groups - mean
    variance = (centered.square() * inside).sum((2, 3, 4), keepdim=True) / count
    normalized = (centered * (variance + norm.eps).rsqrt()).flatten(1, 2)
    return normalized * norm.weight[:, None, None] + norm.bias[:, None, None]


def replace_batch_norms(body: nn.Module, kind: NormKind, extents: Extents) -> None:
    """Replace every batch norm in place, keeping names, values, eps and activations."""
    if kind == "batch":
        return
    for name, child in body.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            replace_batch_norms(child, kind, extents)
            continue
        act = getattr(child, "act", nn.Identity())
        if kind == "group":
            new: nn.Module = ExtentGroupNorm(
                child.num_features, eps=child.eps, act=act, extents=extents
            )
        else:
            new = FrozenBatchNorm2d(child.num_features, eps=child.eps, act=act)
            new.load_state_dict(child.state_dict(), strict=False)
        setattr(body, name, new.to(child.weight.device))
