"""Google's ViTs, as .npz files of the JAX code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detr_kit.checkpoints.pretrained import load_backbone_weights
from detr_kit.checkpoints.vit_npz import read_vit_npz
from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import build_model, resolve

YOLOS = {
    "name": "yolos_small",
    "depth": 2,
    "hidden_dim": 24,
    "num_heads": 3,
    "feedforward_dim": 96,
    "num_queries": 5,
    "position_size_hw": (64, 96),
    "mid_position_size_hw": (64, 96),
}


def build(**changes: object) -> nn.Module:
    return build_model(resolve(ModelConfig.model_validate(changes)), 3)


def jax_vit(model: nn.Module, heads: int) -> dict[str, np.ndarray]:
    """The arrays of a timm ViT under Flax's names and in its layouts."""
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    dim = model.embed_dim
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for index in range(len(model.blocks)):
        ours, block = f"blocks.{index}.", f"Transformer/encoderblock_{index}/"
        attention = block + "MultiHeadDotProductAttention_1/"
        weights = np.split(state[ours + "attn.qkv.weight"], 3)
        biases = np.split(state[ours + "attn.qkv.bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attention}{name}/kernel"] = weight.T.reshape(dim, heads, -1)
            arrays[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        out = state[ours + "attn.proj.weight"].T
        arrays[attention + "out/kernel"] = out.reshape(heads, -1, dim)
        arrays[attention + "out/bias"] = state[ours + "attn.proj.bias"]
        for flax, name in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            arrays[f"{block}{flax}/scale"] = state[f"{ours}{name}.weight"]
            arrays[f"{block}{flax}/bias"] = state[f"{ours}{name}.bias"]
        for dense, name in ((0, "fc1"), (1, "fc2")):
            arrays[f"{block}MlpBlock_3/Dense_{dense}/kernel"] = state[f"{ours}mlp.{name}.weight"].T
            arrays[f"{block}MlpBlock_3/Dense_{dense}/bias"] = state[f"{ours}mlp.{name}.bias"]
    return arrays


@pytest.fixture
def jax_file(tmp_path: Path) -> tuple[Path, nn.Module]:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=48, embed_dim=24, depth=2, num_heads=3, num_classes=7
    )
    for parameter in vit.parameters():
        nn.init.normal_(parameter)
    np.savez(tmp_path / "vit.npz", **jax_vit(vit, heads=3))
    return tmp_path / "vit.npz", vit


def test_jax_vit_weights_are_those_of_the_pytorch_vit(jax_file: tuple[Path, nn.Module]) -> None:
    path, vit = jax_file
    tensors = read_vit_npz(path)
    assert tensors.keys() == vit.state_dict().keys()
    for key, tensor in vit.state_dict().items():
        assert torch.equal(tensors[key], tensor), key
    model = build(**YOLOS)
    report = load_backbone_weights(model, str(path))
    assert set(report.dropped) == {"head.weight", "head.bias"}
    assert report.missing == ("backbone.det_token", "backbone.mid_pos_embed")
    assert torch.equal(model.backbone.blocks[1].attn.proj.weight, vit.blocks[1].attn.proj.weight)


def test_timms_own_reader_agrees_on_jax_weights(jax_file: tuple[Path, nn.Module]) -> None:
    path, vit = jax_file
    expected = {key: tensor.clone() for key, tensor in vit.state_dict().items()}
    for parameter in vit.parameters():
        nn.init.zeros_(parameter)
    vit.load_pretrained(str(path))
    for key, tensor in vit.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_arrays_that_are_no_vit_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **{"resnet/kernel": np.zeros((2, 2))})
    np.savez(tmp_path / "objects.npz", cls=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("no archive")
    for name, message in (
        ("other.npz", "unknown: resnet.weight"),
        ("objects.npz", "plain arrays"),
        ("text.npz", "plain arrays"),
    ):
        with pytest.raises(DetrKitError, match=rf"{name}: .*{message}"):
            load_backbone_weights(build(**YOLOS), str(tmp_path / name))
