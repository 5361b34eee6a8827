"""Convolutions with batch norms that train, and blocks of them.

In inference each batch norm is folded into the convolution before it, see
`detr_kit.models.folding`, and the branches of a RepVGG block become one convolution. What is
folded is remembered for as long as the weights stay what they were.

Sources: Ding et al. 2021 ("RepVGG"), section 3.3; Wang et al. 2020 ("CSPNet"); Zhao et al. 2024
("RT-DETR"), figure 4.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.models.extents import zero_outside
from detr_kit.models.folding import fold_constants
from detr_kit.models.norms import scale_and_shift
from detr_kit.models.remembered import Remembered


class ConvNorm(nn.Sequential):
    """A convolution without bias, its batch norm and, if `activated`, a SiLU.

    It halves the sides, rounding up, with a `stride` of 2, and keeps them otherwise. `names` are
    those of the convolution and the norm in the state dict.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        activated: bool = False,
        names: tuple[str, str] = ("conv", "norm"),
    ) -> None:
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            bias=False,
        )
        parts = (conv, nn.BatchNorm2d(out_channels))
        super().__init__(OrderedDict(zip(names, parts, strict=True)))
        self.activated = activated
        self._folded = Remembered(1)

    @property
    def conv_and_norm(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """The two parts."""
        conv, norm = self
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        return conv, norm

    @property
    def folds(self) -> bool:
        """Whether the norm is a constant now, and no gradient is wanted."""
        norm = self[1]
        constant = isinstance(norm, nn.BatchNorm2d) and not norm.training
        return constant and not torch.is_grad_enabled()

    def forward(self, x: Tensor) -> Tensor:
        if self.folds:
            weight, bias = self._folded(self.sources(), None, self.fold)
            x = self.conv_and_norm[0]._conv_forward(x, weight, bias)
        else:
            x = super().forward(x)
        return F.silu(x) if self.activated else x

    def sources(self) -> tuple[Tensor, ...]:
        """Return the tensors that evaluation computes with."""
        conv, norm = self.conv_and_norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var

    def fold(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of one convolution that does what both do in evaluation."""
        weight, *constants = self.sources()
        scale, shift = scale_and_shift(*constants, eps=self.conv_and_norm[1].eps)
        return _in_pixels_layout(*fold_constants(weight, None, scale, shift))

    def bake(self) -> None:
        """Make one convolution of both, for inference only."""
        if isinstance(self[1], nn.BatchNorm2d):  # a RepVGG block may have been baked before
            self.bake_in(*self.fold())

    def bake_in(self, weight: Tensor, bias: Tensor) -> None:
        """Convolve with these from now on, without a norm."""
        conv = self[0]
        conv.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        self[1] = nn.Identity()

    def train(self, mode: bool = True) -> ConvNorm:
        """Set the mode; what is folded is forgotten: training changes statistics unnoticed."""
        self._folded.clear()
        super().train(mode)
        return self


class RepVGGBlock(nn.Module):
    """A 3x3 and a 1x1 convolution side by side, with a norm each, added up, then a SiLU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, dim, 3)
        self.conv2: ConvNorm | None = ConvNorm(dim, dim, 1)
        self._fused = Remembered(1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, C, h, w) to the same shape, reading zeros where the (B, h, w) mask is True."""
        x = zero_outside(x, mask)
        if self.conv2 is None:
            return F.silu(self.conv1(x))
        if self.conv1.folds and self.conv2.folds:
            sources = (*self.conv1.sources(), *self.conv2.sources())
            return F.silu(F.conv2d(x, *self._fused(sources, None, self.fuse), padding=1))
        return F.silu(self.conv1(x) + self.conv2(x))

    def fuse(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of one 3x3 convolution that does what both do in evaluation."""
        assert self.conv2 is not None
        (weight, bias), (center, center_bias) = self.conv1.fold(), self.conv2.fold()
        return _in_pixels_layout(weight + F.pad(center, (1, 1, 1, 1)), bias + center_bias)

    def bake(self) -> None:
        """Keep one 3x3 convolution, for inference only."""
        self.conv1.bake_in(*self.fuse())
        self.conv2 = None

    def train(self, mode: bool = True) -> RepVGGBlock:
        """Set the mode; what is fused is forgotten."""
        self._fused.clear()
        super().train(mode)
        return self


class CSPBlock(nn.Module):
    """RepVGG blocks on one projection of the input, another beside them, added up.

    `expansion` times `out_channels` is the width inside; another than 1 needs a projection back.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expansion: float = 1.0, num_blocks: int = 3
    ) -> None:
        super().__init__()
        dim = int(out_channels * expansion)
        self.conv1 = ConvNorm(in_channels, dim, 1, activated=True)
        self.conv2 = ConvNorm(in_channels, dim, 1, activated=True)
        self.blocks = nn.ModuleList(RepVGGBlock(dim) for _ in range(num_blocks))
        self.conv3 = (
            nn.Identity() if dim == out_channels else ConvNorm(dim, out_channels, 1, activated=True)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, C, h, w) to (B, out_channels, h, w); the (B, h, w) mask is True on padding."""
        deep = self.conv1(x)
        for block in self.blocks:
            deep = block(deep, mask)
        return self.conv3(deep + self.conv2(x))


def initialize_convolutions(module: nn.Module) -> None:
    """Xavier-uniform convolutions with zero biases, as Deformable DETR's projections start."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _in_pixels_layout(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Lay a weight out as pixels are, so that no convolution has to reorder it."""
    return weight.contiguous(memory_format=torch.channels_last), bias
