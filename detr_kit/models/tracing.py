"""What is done to a copy of a model before `torch.export` traces it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.attention import Attention
from detr_kit.models.backbones import Backbone
from detr_kit.models.convolutions import ConvNorm, RepVGGBlock
from detr_kit.models.deformable_attention import DeformableAttention
from detr_kit.models.folding import FoldedConv2d, pads_as_tensorflow
from detr_kit.models.hybrid_encoder import HybridEncoder
from detr_kit.models.norms import FrozenBatchNorm2d
from detr_kit.models.transformer import Encoder, EncoderLayer
from detr_kit.models.vit import ViT


def traceable_copy(model: nn.Module, *, mask: bool) -> nn.Module:
    """Return a copy that can be traced with a `TracedBatch`, for inference without gradients.

    Constant norms are baked into the convolutions before them; nothing is remembered, observed or
    recomputed. The model itself stays what it was. `mask` tells whether a padding mask is given.

    Raises DetrKitError where a CNN's features cannot be had for every size in one graph.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(copied.modules()):
        if isinstance(module, Attention | DeformableAttention):
            module.observer = None
        elif isinstance(module, ConvNorm | RepVGGBlock):
            module.bake()
        elif isinstance(module, Backbone):
            _prepare(module, mask=mask)
        elif isinstance(module, HybridEncoder):
            module.reader_of_attended.register_forward_pre_hook(_with_rows_in_order)
        elif isinstance(module, Encoder):
            module.register_forward_pre_hook(_with_rows_in_order)
        elif isinstance(module, ViT):
            last = module.blocks[-1]
            assert isinstance(last, EncoderLayer)
            last.attn.register_forward_pre_hook(_with_rows_in_order)
    return copied


def _with_rows_in_order(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Lay out tokens, or a map of them, anew that are a view of something else.

    A product with a view would ask whether a size is 1, and the answer would hold for every size;
    so would a convolution.
    """
    return inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:]


class PaddedConv2d(nn.Conv2d):
    """A convolution that pads by a constant, on the right and bottom more than elsewhere."""

    missing: tuple[int, int, int, int]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.missing))


@torch.no_grad()
def _prepare(backbone: Backbone, *, mask: bool) -> None:
    if backbone.image_by_image and mask:
        raise DetrKitError(
            f"{backbone.name} looks at a whole picture at once, padding included: it can be "
            "exported without a padding mask only"
        )
    backbone.extents.learn_levels(backbone.body, 2 * backbone.stride)
    convolutions = [part for part in backbone.body.modules() if isinstance(part, nn.Conv2d)]
    for conv in convolutions:
        same = pads_as_tensorflow(conv)
        if same and backbone.padding == "official":
            raise DetrKitError(
                f'{backbone.name} pads by the size of a picture: with padding "official" it '
                'cannot be exported; padding "independent" can'
            )
        _bake(conv, same=same)
    for part in backbone.body.modules():
        if isinstance(part, FrozenBatchNorm2d) and part.folded:
            for name in [name for name, _ in part.named_buffers(recurse=False)]:
                delattr(part, name)  # nothing reads them any more


def _bake(conv: nn.Conv2d, *, same: bool) -> None:
    """Make one plain convolution of a convolution, what is folded into it and its padding."""
    if isinstance(conv, FoldedConv2d):
        weight, bias = conv.fold(conv)
        conv.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        del conv.fold
        conv.__class__ = nn.Conv2d  # type: ignore[assignment]
    if same:
        conv.__class__ = PaddedConv2d
        assert isinstance(conv, PaddedConv2d)
        conv.missing = _missing(conv)


def _missing(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return what "same" padding adds to a side that is a multiple of the stride."""
    missing: list[int] = []
    for axis in (1, 0):  # columns come first in `F.pad`
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        total = max(reach - conv.stride[axis], 0)
        missing += [total // 2, total - total // 2]
    left, right, top, bottom = missing
    return left, right, top, bottom
