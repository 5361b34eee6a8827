from __future__ import annotations

import pytest
import torch
from torch import nn

from detr_kit.errors import DetrKitError
from detr_kit.models.attention import Attention


@pytest.fixture
def reference() -> nn.MultiheadAttention:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    return theirs.eval()


def copy_of(theirs: nn.MultiheadAttention) -> Attention:
    ours = Attention(12, 3).double().eval()
    state = {
        "qkv.weight": theirs.in_proj_weight,
        "qkv.bias": theirs.in_proj_bias,
        "proj.weight": theirs.out_proj.weight,
        "proj.bias": theirs.out_proj.bias,
    }
    ours.load_state_dict(state)
    return ours


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("kind", ["self", "positions", "cross"])
def test_equals_torch_multihead_attention(
    reference: nn.MultiheadAttention, kind: str, observed: bool
) -> None:
    ours = copy_of(reference)
    if observed:
        ours.observer = lambda weights: None
    x, other, memory = (torch.randn(2, n, 12, dtype=torch.float64) for n in (5, 5, 6))
    query, key, value = {
        "self": (x, x, x),
        "positions": (x + other, x + other, x),
        "cross": (x, memory, memory.sin()),
    }[kind]
    if kind == "positions":
        key = query
    mask = torch.zeros(2, key.shape[1], dtype=torch.bool)
    mask[1, 3:] = True
    expected, _ = reference(query, key, value, key_padding_mask=mask, need_weights=False)
    torch.testing.assert_close(ours(query, key, value, mask), expected, rtol=0, atol=1e-12)


def test_observer_sees_weights_that_sum_to_one_and_skip_padding(
    reference: nn.MultiheadAttention,
) -> None:
    ours = copy_of(reference)
    seen: list[torch.Tensor] = []
    ours.observer = seen.append
    mask = torch.tensor([[False, False, True, False]])
    ours(torch.randn(1, 4, 12, dtype=torch.float64), key_padding_mask=mask)
    (weights,) = seen
    assert weights.shape == (1, 3, 4, 4)
    assert (weights[..., 2] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_blocked_keys_are_those_of_torch_multihead_attention(
    reference: nn.MultiheadAttention, padded: bool, observed: bool
) -> None:
    ours = copy_of(reference)
    if observed:
        ours.observer = lambda weights: None
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    blocked = torch.tensor([[i != j and (i + j) % 3 == 0 for j in range(5)] for i in range(5)])
    mask = torch.tensor([[False] * 5, [False] * 4 + [True]]) if padded else None
    expected, _ = reference(x, x, x, key_padding_mask=mask, attn_mask=blocked, need_weights=False)
    found = ours(x, key_padding_mask=mask, blocked=blocked)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    # The last query of the second image is padding itself.
    torch.testing.assert_close(found[1, :4], expected[1, :4], rtol=0, atol=1e-12)


def test_with_dropout_blocked_keys_reach_nothing_either(
    reference: nn.MultiheadAttention,
) -> None:
    ours = copy_of(reference).train()
    ours.dropout = 0.5
    x = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    blocked = torch.zeros(6, 6, dtype=torch.bool)
    blocked[:3, 3:] = True
    (gradient,) = torch.autograd.grad(ours(x, blocked=blocked)[:, :3].sum(), x)
    assert not gradient[:, 3:].any()
    assert gradient[:, :3].any()


def test_nothing_blocked_changes_nothing(reference: nn.MultiheadAttention) -> None:
    ours = copy_of(reference)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    blocked = torch.zeros(5, 5, dtype=torch.bool)
    torch.testing.assert_close(ours(x, blocked=blocked), ours(x), rtol=0, atol=1e-15)


def test_dropout_applies_in_training_only() -> None:
    attention = Attention(12, 3, dropout=0.5)
    x = torch.randn(1, 6, 12)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_refuses_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(DetrKitError, match="hidden_dim 10 is not a multiple of num_heads 3"):
        Attention(10, 3)
