"""Google's ViT classifiers, which are published as .npz files of the JAX code.

Source: google-research/vision_transformer, the names and layouts that Flax gives its parameters.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detr_kit.checkpoints.keymap import KeyMap, Rule
from detr_kit.errors import DetrKitError

_BLOCK = "Transformer.encoderblock_{i}."
_ATTENTION = _BLOCK + "MultiHeadDotProductAttention_1."

VIT_KEYS = KeyMap(
    "ViT (JAX)",
    rules=(
        Rule("cls", "cls_token"),
        Rule("embedding.{p}", "patch_embed.proj.{p}"),
        Rule("Transformer.posembed_input.pos_embedding", "pos_embed"),
        Rule(
            tuple(f"{_ATTENTION}{part}.{{p}}" for part in ("query", "key", "value")),
            "blocks.{i}.attn.qkv.{p}",
        ),
        Rule(_ATTENTION + "out.{p}", "blocks.{i}.attn.proj.{p}"),
        Rule(_BLOCK + "LayerNorm_0.{p}", "blocks.{i}.norm1.{p}"),
        Rule(_BLOCK + "LayerNorm_2.{p}", "blocks.{i}.norm2.{p}"),
        Rule(_BLOCK + "MlpBlock_3.Dense_0.{p}", "blocks.{i}.mlp.fc1.{p}"),
        Rule(_BLOCK + "MlpBlock_3.Dense_1.{p}", "blocks.{i}.mlp.fc2.{p}"),
        Rule("Transformer.encoder_norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
        Rule("pre_logits.{p}", "pre_logits.{p}"),
    ),
)


def read_vit_npz(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors under the names and in the layouts of the PyTorch ViTs.

    Raises DetrKitError, naming the file, where it is no .npz of plain arrays or of another model.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            tensors = {_torch_name(key): _torch_layout(key, arrays[key]) for key in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DetrKitError(f"{path}: not a readable .npz of plain arrays") from error
    try:
        return VIT_KEYS.to_ours(tensors)[0]
    except DetrKitError as error:
        raise DetrKitError(f"{path}: {error}") from error


def _torch_name(key: str) -> str:
    name = key.replace("/", ".")
    for flax in (".kernel", ".scale"):
        name = name.removesuffix(flax) + ".weight" if name.endswith(flax) else name
    return name


def _torch_layout(key: str, array: np.ndarray) -> Tensor:
    """Put output features first; the heads of an attention become one axis."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if key.endswith("kernel"):
        if key.startswith("embedding"):
            return tensor.permute(3, 2, 0, 1).contiguous()  # (h, w, in, out)
        inputs_last = tensor.flatten(0, 1) if key.endswith("out/kernel") else tensor.flatten(1)
        return inputs_last.t().contiguous()
    return tensor.flatten() if key.endswith(("query/bias", "key/bias", "value/bias")) else tensor
