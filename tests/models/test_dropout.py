from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detr_kit.models import dropout as module
from detr_kit.models.dropout import Dropout, attention_with_dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_asked_share_is_dropped_and_the_mean_kept(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 1001, requires_grad=True)
    y = dropout(x, p, training=True)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    # Each of the four elements that share a drawn number, and neighbours, are independent.
    for start in range(4):
        assert (y.flatten()[start::4] == 0).float().mean().item() == pytest.approx(p, abs=0.01)
    both = (y[:, :-1] == 0) & (y[:, 1:] == 0)
    assert both.float().mean().item() == pytest.approx(p * p, abs=0.01)
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert y.detach().unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_the_generator_of_torch_decides() -> None:
    x = torch.ones(50, 50)
    layer = Dropout(0.3)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(layer(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert layer.eval()(x) is x
    assert dropout(x, 0.0, training=True) is x


def test_a_chance_of_one_drops_everything() -> None:
    assert not dropout(torch.ones(9), 1.0, training=True).any()


def reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, factor: Tensor) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) * factor) @ v


@pytest.mark.parametrize("chunk", [1, 70, 1 << 21])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_formula_with_the_same_weights_dropped(
    monkeypatch: pytest.MonkeyPatch, masked: bool, chunk: int
) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    factors: list[Tensor] = []
    kept = module._kept

    def record(out: Tensor, p: float) -> Tensor:
        factors.append(kept(out, p).clone())
        return out

    monkeypatch.setattr(module, "_kept", record)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    for tensor in (q, k, v):
        tensor.requires_grad_()
    allowed = None
    if masked:
        allowed = torch.ones(2, 1, 1, 7, dtype=torch.bool)
        allowed[1, ..., 4:] = False
    output = attention_with_dropout(q, k, v, allowed, 0.25)
    factor = torch.cat(factors).unflatten(0, (2, 3)) / 0.75
    assert 0.1 < (factor == 0).double().mean() < 0.4
    expected = reference(q, k, v, allowed, factor)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(output)
    ours = torch.autograd.grad(output, (q, k, v), upstream)
    theirs = torch.autograd.grad(expected, (q, k, v), upstream)
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, exact, rtol=0, atol=1e-12)


def test_half_precision_and_autocast_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kept", None)  # calling it would fail
    x = torch.ones(64, 64)
    assert dropout(x.bfloat16(), 0.5, training=True).dtype == torch.bfloat16
    q = torch.randn(1, 2, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        dropout(x, 0.5, training=True)
        torch.manual_seed(0)
        output = attention_with_dropout(q, q, q, None, 0.5)
        torch.manual_seed(0)
        assert torch.equal(output, F.scaled_dot_product_attention(q, q, q, dropout_p=0.5))
