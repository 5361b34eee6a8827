"""Folding frozen batch norms into the convolutions that they follow.

A frozen batch norm is x * scale + shift with constants for each channel, so that
conv(x, weight) * scale + shift = conv(x, weight * scale) + shift: the pass over the feature map,
its gradient and the memory between the two layers are saved. Parameters stay unfolded; in
training the product is computed anew in every step, and its gradient flows to the weight.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detr_kit.models.norms import FrozenBatchNorm2d
from detr_kit.models.remembered import Remembered


class FoldedConv2d(nn.Conv2d):
    """A convolution that computes the frozen batch norm after it along with itself.

    Made from a convolution in place, see `fold_frozen_norms`; parameters, keys and hooks stay
    what they were.
    """

    fold: Fold

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.fold(self))


class FoldedSameConv2d(FoldedConv2d):
    """The same for timm's `Conv2dSame`, which pads as TensorFlow does: by the input's size."""

    def forward(self, x: Tensor) -> Tensor:
        missing: list[int] = []
        for axis in (1, 0):  # columns come first in `F.pad`
            side, stride = x.shape[2 + axis], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            total = max((-(-side // stride) - 1) * stride + reach - side, 0)
            missing += [total // 2, total - total // 2]
        return super().forward(F.pad(x, missing) if any(missing) else x)


class Fold:
    """The weight and bias of a convolution and the frozen batch norm after it, in one.

    They are computed in single precision at least, whatever autocast does to the convolution,
    and remembered where no gradient is wanted. It is no module: the norm stays in its own place.
    """

    def __init__(self, norm: FrozenBatchNorm2d) -> None:
        self.norm = norm
        self._constants = Remembered(1)
        self._folded = Remembered(1)

    def __call__(self, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
        norm, weight, bias = self.norm, conv.weight, conv.bias
        buffers = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        scale, shift = self._constants(buffers, norm.eps, norm.scale_and_shift)
        parameters = (weight,) if bias is None else (weight, bias)
        if torch.is_grad_enabled() and any(part.requires_grad for part in parameters):
            return fold_constants(weight, bias, scale, shift)

        def folded() -> tuple[Tensor, Tensor]:
            once, shifted = fold_constants(weight, bias, scale, shift)
            # The pixels' layout, so that no convolution has to reorder its weight.
            return once.contiguous(memory_format=torch.channels_last), shifted

        return self._folded((*parameters, scale, shift), None, folded)

    def clear(self) -> None:
        """Forget what is remembered."""
        self._constants.clear()
        self._folded.clear()


def fold_constants(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a convolution whose output is multiplied and shifted.

    Computed in the constants' precision and brought back to the weight's.
    """
    product = weight.to(scale.dtype) * scale[:, None, None, None]
    if bias is not None:
        shift = shift + bias.to(scale.dtype) * scale
    return product.to(weight.dtype), shift.to(weight.dtype)


def fold_frozen_norms(body: nn.Module, *, side: int) -> None:
    """Fold every frozen batch norm of a CNN whose input is the output of a convolution, in place.

    Which those are shows a forward pass over a picture of `side` pixels; a norm is left alone
    where anything else reads the convolution's output, where either of the two runs twice, where
    the convolution is of a kind that does more than convolve, and where the pass fails.
    """
    for conv, norm in _adjacent(body, side):
        conv.__class__ = FoldedSameConv2d if pads_as_tensorflow(conv) else FoldedConv2d
        assert isinstance(conv, FoldedConv2d)
        conv.fold = Fold(norm)
        norm.folded = True


def forget_folded(body: nn.Module) -> None:
    """Forget remembered weights, whose `.data` may have been written."""
    for module in body.modules():
        if isinstance(module, FoldedConv2d):
            module.fold.clear()


class _Readers(TorchDispatchMode):
    """Counts by how many operations each tensor is read."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self._held: list[Tensor] = []  # an id must not be given out twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.add((args, kwargs))
        return func(*args, **(kwargs or {}))

    def add(self, values: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        self._held += tensors
        self.count.update({id(tensor) for tensor in tensors})


def _adjacent(body: nn.Module, side: int) -> list[tuple[nn.Conv2d, FrozenBatchNorm2d]]:
    """Return the convolutions whose output a frozen batch norm reads, and nothing else does."""
    made: list[tuple[nn.Conv2d, Tensor]] = []
    read: list[tuple[FrozenBatchNorm2d, Tensor]] = []
    handles = []
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and _only_convolves(module):
            handles.append(
                module.register_forward_hook(lambda conv, _, output: made.append((conv, output)))
            )
        elif isinstance(module, FrozenBatchNorm2d):
            handles.append(
                module.register_forward_pre_hook(lambda norm, args: read.append((norm, args[0])))
            )
    readers = _Readers()
    parameter = next(body.parameters())
    was_training = body.training
    body.eval()
    try:
        with torch.no_grad(), readers:
            readers.add(body(parameter.new_zeros(1, 3, side, side)))
    # What a timm model raises for a size that it does not take is up to the model.
    except Exception:
        return []
    finally:
        body.train(was_training)
        for handle in handles:
            handle.remove()
    runs = Counter(id(module) for module, _ in (*made, *read))
    maker = {id(output): conv for conv, output in made}
    return [
        (maker[id(taken)], norm)
        for norm, taken in read
        if id(taken) in maker
        and readers.count[id(taken)] == 1
        and runs[id(norm)] == runs[id(maker[id(taken)])] == 1
    ]


def _only_convolves(conv: nn.Conv2d) -> bool:
    """Whether the weight is used as it is; timm knows kinds that standardise it first."""
    plain = type(conv).forward is nn.Conv2d.forward and conv.padding_mode == "zeros"
    return plain or pads_as_tensorflow(conv)


def pads_as_tensorflow(conv: nn.Conv2d) -> bool:
    """Whether a convolution is timm's `Conv2dSame`, folded or not."""
    kind = type(conv)
    if issubclass(kind, FoldedSameConv2d):
        return True
    return kind.__name__ == "Conv2dSame" and kind.__module__.startswith("timm.")
