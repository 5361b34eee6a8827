from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detr_kit.models.transformer import (
    Decoder,
    Encoder,
    EncoderLayer,
    ResidualDrop,
    initialize_xavier,
)


def copy_linear_state(ours: EncoderLayer, theirs: nn.TransformerEncoderLayer) -> None:
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj": "attn.proj",
        "linear1": "mlp.fc1",
        "linear2": "mlp.fc2",
    }
    state = {}
    for key, tensor in theirs.state_dict().items():
        for before, after in names.items():
            key = key.replace(before, after)
        state[key] = tensor
    ours.load_state_dict(state)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_equals_torch(pre_norm: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        16, 4, 24, batch_first=True, norm_first=pre_norm, dtype=torch.float64
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = EncoderLayer(16, 4, 24, pre_norm=pre_norm).double().eval()
    copy_linear_state(ours, theirs)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    theirs.eval()
    with torch.enable_grad():  # keeps torch from its nested-tensor shortcut, which zeroes padding
        expected = theirs(x, src_key_padding_mask=mask)
    torch.testing.assert_close(ours(x, None, mask), expected, rtol=0, atol=1e-12)


def test_positions_reach_queries_and_keys_but_not_values() -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(16, 4, 24, pre_norm=True).eval()
    x = torch.randn(1, 1, 16)
    # With a single token, attention weights are 1: positions could only show through values.
    assert torch.equal(layer(x, torch.randn(1, 1, 16)), layer(x))
    x = torch.randn(1, 3, 16)
    assert not torch.allclose(layer(x, torch.randn(1, 3, 16)), layer(x))


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = ResidualDrop(drop_path=0.25)
    out = drop(torch.ones(4000, 3))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(out[:, 0], out[:, 2])
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(5, 3)), torch.ones(5, 3))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_gives_every_layer_or_the_last(pre_norm: bool) -> None:
    torch.manual_seed(0)
    decoder = Decoder(16, 3, 4, 24, pre_norm=pre_norm, dropout=0.0)
    inputs = (torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(1, 7, 16), None)
    every = decoder(*inputs, all_layers=True)
    assert every.shape == (3, 2, 5, 16)
    torch.testing.assert_close(decoder(*inputs, all_layers=False), every[-1:])
    # The shared norm is applied to each layer's output, and initialised to be visible.
    torch.testing.assert_close(every.mean(-1), torch.zeros(3, 2, 5), atol=1e-5, rtol=0)


def test_pre_norm_encoder_ends_with_a_norm() -> None:
    options = {"dropout": 0.0}
    assert isinstance(Encoder(16, 1, 4, 24, pre_norm=True, **options).norm, nn.LayerNorm)
    assert isinstance(Encoder(16, 1, 4, 24, pre_norm=False, **options).norm, nn.Identity)


def test_xavier_bounds() -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(64, 4, 128, pre_norm=False)
    initialize_xavier(layer)

    def bound(weight: Tensor) -> float:
        return (6 / sum(weight.shape)) ** 0.5

    for weight in (layer.attn.qkv.weight, layer.attn.proj.weight, layer.mlp.fc1.weight):
        assert 0.97 * bound(weight) < weight.abs().max().item() <= bound(weight)
    assert not layer.attn.qkv.bias.any()
    assert not layer.attn.proj.bias.any()
