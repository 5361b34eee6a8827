"""The true extent of each image in every layer of a CNN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from detr_kit.sizes import SizeHW


def pad_to_multiple(pixels: Tensor, padding_mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Pad (B, 3, H, W) pixels and their mask on the right and bottom to multiples of `stride`."""
    height, width = pixels.shape[2:]
    missing = (0, -width % stride, 0, -height % stride)
    if not any(missing):
        return pixels, padding_mask
    return F.pad(pixels, missing), F.pad(padding_mask, missing, value=True)


class Extents:
    """Zeroes what lies outside each image at the input of layers that would read it.

    While a batch's mask is set by `of`, the hooks set by `watch` find the mask of their level by
    the height and width of what they are given; without one, they change nothing. The hooks are
    bound methods, so that a copied or pickled model takes its own `Extents` along.
    """

    def __init__(self) -> None:
        self._masks: dict[SizeHW, Tensor] = {}

    @contextmanager
    def of(self, padding_mask: Tensor, stride: int) -> Iterator[None]:
        """Serve the levels of a (B, H, W) mask whose sides are multiples of `stride`."""
        level = 1
        while level <= stride:
            # Cell i of a level lies inside where pixel i * level does: the extent rounds up.
            mask = padding_mask[:, None, ::level, ::level]
            self._masks[mask.shape[2], mask.shape[3]] = mask
            level *= 2
        try:
            yield
        finally:
            self._masks = {}

    def mask_of(self, features: Tensor) -> Tensor | None:
        """Return the (B, 1, h, w) mask of a (B, C, h, w) feature map, True outside the images."""
        return self._masks.get((features.shape[2], features.shape[3])) if self._masks else None

    def watch(self, body: nn.Module) -> None:
        """Hook every convolution wider than 1x1 and every pooling."""
        for module in body.modules():
            wide = isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
            if wide or isinstance(module, _AvgPoolNd):
                module.register_forward_pre_hook(self._zero_input)
            elif isinstance(module, _MaxPoolNd):
                # An image alone is padded with minus infinity there. It must not stay in the
                # output, where 0 * inf would make gradients NaN.
                module.register_forward_pre_hook(self._lower_input)
                module.register_forward_hook(self._zero_output)

    def _zero_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._filled(inputs[0], 0.0), *inputs[1:]

    def _lower_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._filled(inputs[0], -torch.inf), *inputs[1:]

    def _zero_output(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return self._filled(output, 0.0)

    def _filled(self, features: Tensor, value: float) -> Tensor:
        mask = self.mask_of(features)
        return features if mask is None else features.masked_fill(mask, value)
