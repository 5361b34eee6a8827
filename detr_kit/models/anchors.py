"""Reference boxes: their logits, what encodes them, and those that stand on a grid.

Shape legend: B images, K levels, S tokens of all levels together, D channels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.linear import Linear
from detr_kit.models.pyramid import Pyramid

# A logit whose sigmoid is 1 in single and in double precision.
_OUTSIDE = 100.0


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logits of numbers in [0, 1]; as if none were closer than `eps` to either end."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def moved(delta: Tensor, reference: Tensor) -> Tensor:
    """Return the (..., 4) box in [0, 1] that lies at `delta` logits from a reference.

    The reference is a box, or a point: then the last two of the four numbers are the logits of
    the sides themselves (Deformable DETR, appendix A.3). Single precision at least.
    """
    wide = torch.promote_types(delta.dtype, torch.float32)
    delta, logits = delta.to(wide), inverse_sigmoid(reference.to(wide))
    if reference.shape[-1] == 4:
        return (delta + logits).sigmoid()
    return torch.cat([delta[..., :2] + logits, delta[..., 2:]], dim=-1).sigmoid()


class SineOfBoxes(nn.Module):
    """Sines and cosines of each of a box's numbers, `dim` of them, one number after the other.

    `order` names the numbers: Deformable DETR encodes the proposals of its two stages as
    "xywh" (appendix A.4), DAB-DETR and DINO their anchors as "yxwh", rows before columns like the
    positions of a picture's cells. Published weights read them in this order.
    """

    TEMPERATURE = 10000.0
    SCALE = 2 * math.pi

    def __init__(self, dim: int, *, order: Literal["xywh", "yxwh"]) -> None:
        super().__init__()
        if dim % 2:
            raise DetrKitError(f"hidden_dim {2 * dim}: sines of boxes need a multiple of 4")
        self.dim = dim
        self.swapped = order == "yxwh"

    def forward(self, boxes: Tensor) -> Tensor:
        """Encode (..., 4) boxes in [0, 1] as (..., 4 * dim), in single precision at least."""
        wide = torch.promote_types(boxes.dtype, torch.float32)
        exponents = torch.arange(self.dim // 2, device=boxes.device, dtype=wide) * (2 / self.dim)
        angles = (boxes.to(wide) * self.SCALE).unsqueeze(-1) / self.TEMPERATURE**exponents
        encoded = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        if self.swapped:
            first, second, *sides = encoded.unbind(-2)
            return torch.cat([second, first, *sides], dim=-1)
        return encoded.flatten(-2)


def grid_anchors(memory: Pyramid) -> tuple[Tensor, Tensor]:
    """Return a box for every token, as (B or 1, S, 4) logits, and (B or 1, S) which are of use.

    A box is centred on its cell of the image's own grid; its sides are 0.05, twice as much a
    level. It is of use where all four numbers lie between 0.01 and 0.99 and the cell is not
    padding; the logits of others are those of ones. Single precision at least.

    Source: Deformable DETR, appendix A.4, and the official `gen_encoder_output_proposals`.
    """
    centers = memory.cell_centers()
    sides = torch.cat(
        [
            centers.new_full((height * width, 2), 0.05 * 2.0**level)
            for level, (height, width) in enumerate(memory.sizes_hw)
        ]
    )
    boxes = torch.cat([centers, sides.expand(centers.shape[0], -1, -1)], dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if memory.padding_mask is not None:
        usable = usable & ~memory.padding_mask
    logits = torch.log(boxes / (1 - boxes).clamp(min=1e-5))
    return logits.masked_fill(~usable.unsqueeze(-1), _OUTSIDE), usable


class AnchorMLP(nn.Module):
    """Two linear layers with a ReLU between them: from a reference's numbers to a position."""

    def __init__(self, in_dim: int, hidden_dim: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Linear(in_dim, hidden_dim), Linear(hidden_dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., dim)."""
        first, second = self.layers
        return second(first(x).relu())
