"""`torch.compile` for the parts of a model that repeat and take nothing but tensors."""

from __future__ import annotations

import torch
from torch import nn

from detr_kit.models.transformer import DecoderLayer, EncoderLayer

# Sizes are symbols in what is compiled: no batch has to be padded to a multiple of anything, and
# none of another size is compiled anew. Each kind of layer is compiled once for all its copies, and
# again where there is no mask, for single images, for a first layer whose input needs no gradient,
# and for evaluation; YOLOS has a block that ends with detection tokens too, with patches before
# them where these learn.
MAX_VARIANTS = 16
_PER_FUNCTION = 2 * MAX_VARIANTS


def compile_model(model: nn.Module) -> None:
    """Let the layers of encoder and decoder, or of the ViT, be compiled when they are first run.

    In place: keys, copies and pickles of the model are what they were; a copy is not compiled. It
    serves training and evaluation. Everything else stays as it is: the CNN, which masks each
    level of an image by its size, projections, position encodings and heads; so do layers with
    deformable attention, whose levels' sizes are plain numbers that would be compiled in.

    On a CPU the uncompiled layers are often the faster ones, see `detr_kit.models.linear`.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _PER_FUNCTION)
    for module in model.modules():
        if isinstance(module, (EncoderLayer, DecoderLayer)):
            module.compile(dynamic=True)
