"""The true extent of each image in every layer of a CNN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from detr_kit.errors import DetrKitError
from detr_kit.sizes import SizeHW
from detr_kit.structures import outside_of


def pad_to_multiple(pixels: Tensor, padding_mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Pad (B, 3, H, W) pixels and their mask on the right and bottom to multiples of `stride`."""
    height, width = pixels.shape[2:]
    missing = (0, -width % stride, 0, -height % stride)
    if not any(missing):
        return pixels, padding_mask
    return F.pad(pixels, missing), F.pad(padding_mask, missing, value=True)


def zero_outside(features: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Zero a (B, C, h, w) map where its (B, h, w) mask is True; None leaves it as it is."""
    return features if padding_mask is None else features.masked_fill(padding_mask[:, None], 0.0)


def halved_mask(padding_mask: Tensor, size_hw: SizeHW) -> Tensor:
    """Return the mask of a map of half the size, rounded up, of a (B, h, w) mask's.

    Its size is given, as one that is a symbol must be written as that of the map.
    """
    own_sides = (~padding_mask[:, :, 0]).sum(1), (~padding_mask[:, 0, :]).sum(1)
    return outside_of(own_sides, size_hw, stride=2)


def pad_traced(pixels: Tensor, stride: int) -> Tensor:
    """Pad (B, 3, H, W) pixels whose sizes are symbols on the right and bottom.

    Written so that the new sides are `stride` times a symbol: those of the levels divide them.
    """
    height, width = ((side + stride - 1) // stride * stride for side in pixels.shape[2:])
    return F.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))


class Extents:
    """Zeroes what lies outside each image at the input of layers that would read it.

    While a batch's mask is set by `of`, the hooks set by `watch` find the mask of their level by
    the height and width of what they are given; without one, they change nothing. The hooks are
    bound methods, so that a copied or pickled model takes its own `Extents` along.

    Sizes that are symbols name no level: inside `of_traced`, a layer's levels are those at which
    `learn_levels` has seen it.
    """

    def __init__(self) -> None:
        self._masks: dict[SizeHW, Tensor] = {}
        # Total strides of what each layer is given and of what it returns.
        self._levels: dict[nn.Module, tuple[int, int]] = {}
        self._traced_sides: tuple[Tensor, Tensor] | None = None
        self._traced_masks: dict[int, Tensor] = {}

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

    @contextmanager
    def of_traced(self, own_sides: tuple[Tensor, Tensor]) -> Iterator[None]:
        """Serve the levels of a batch whose sizes are symbols, see `TracedBatch.own_sides`."""
        self._traced_sides = own_sides
        try:
            yield
        finally:
            self._traced_sides = None
            self._traced_masks = {}

    @torch.no_grad()
    def learn_levels(self, body: nn.Module, side: int) -> None:
        """Find the levels of every layer by a forward pass over a picture of `side` pixels.

        Raises DetrKitError where a layer runs at several.
        """
        self._levels = {}

        def see(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            levels = side // inputs[0].shape[2], side // output.shape[2]
            if self._levels.setdefault(layer, levels) != levels:
                raise DetrKitError(f"the CNN runs one {type(layer).__name__} at several strides")

        kinds = (nn.Conv2d, nn.GroupNorm, _AvgPoolNd, _MaxPoolNd)
        layers = [layer for layer in body.modules() if isinstance(layer, kinds)]
        handles = [layer.register_forward_hook(see) for layer in layers]
        try:
            body(next(body.parameters()).new_zeros(1, 3, side, side))
        finally:
            for handle in handles:
                handle.remove()

    def mask_of(
        self, features: Tensor, layer: nn.Module, *, is_output: bool = False
    ) -> Tensor | None:
        """Return the (B, 1, h, w) mask of a (B, C, h, w) feature map, True outside the images.

        The map is the input of a layer, or its output.
        """
        size_hw = (features.shape[2], features.shape[3])
        if self._traced_sides is None:
            return self._masks.get(size_hw) if self._masks else None
        level = self._levels[layer][is_output]
        if level not in self._traced_masks:
            outside = outside_of(self._traced_sides, size_hw, stride=level)
            self._traced_masks[level] = outside.unsqueeze(1)
        return self._traced_masks[level]

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
        return _filled(inputs[0], self.mask_of(inputs[0], module), 0.0), *inputs[1:]

    def _lower_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return _filled(inputs[0], self.mask_of(inputs[0], module), -torch.inf), *inputs[1:]

    def _zero_output(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return _filled(output, self.mask_of(output, module, is_output=True), 0.0)


def _filled(features: Tensor, mask: Tensor | None, value: float) -> Tensor:
    return features if mask is None else features.masked_fill(mask, value)
