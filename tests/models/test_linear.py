from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.models import linear as module
from detr_kit.models.linear import Linear, linear

SHAPE = (2, 150, 256)  # of tokens, which a layer maps to as many channels: enough for oneDNN


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The results of oneDNN's products so far."""
    if module.onednn_product is None or not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    made: list[Tensor] = []
    product = module._product

    def record(*args: Tensor) -> Tensor:
        made.append(product(*args))
        return made[-1]

    monkeypatch.setattr(module, "_product", record)
    return made


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (SHAPE, (320, SHAPE[2]), (320,))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def arranged(x: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "expanded":
        return x[:, :1].expand(x.shape)
    return x[:, ::1]


@pytest.mark.parametrize("layout", ["plain", "transposed", "expanded"])
@pytest.mark.parametrize("loss", [Tensor.sum, lambda y: y.square().sum()])
def test_products_and_gradients_equal_those_of_float64(
    products: list[Tensor], layout: str, loss: object
) -> None:
    results = []
    for apply, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        x, weight, bias = inputs(dtype)
        output = apply(arranged(x, layout), weight, bias)
        loss(output).backward()
        results.append((output, x.grad, weight.grad, bias.grad))
    assert len(products) == 3
    for ours, exact in zip(*results, strict=True):
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_wants_no_gradient_gets_none(products: list[Tensor], frozen: int) -> None:
    tensors = inputs()
    tensors[frozen].requires_grad_(False)
    linear(*tensors).sum().backward()
    assert [tensor.grad is None for tensor in tensors] == [index == frozen for index in range(3)]
    assert len(products) == (3 if frozen == 2 else 2)


def test_other_precisions_small_products_and_autocast_are_left_to_torch(
    products: list[Tensor],
) -> None:
    x, weight, bias = inputs()
    assert linear(x.double(), weight.double(), bias.double()).dtype == torch.float64
    assert torch.equal(linear(x[:1, :3], weight, bias), F.linear(x[:1, :3], weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    assert not products


def test_it_is_a_linear_layer_to_everyone_else() -> None:
    ours, theirs = Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, nn.Linear)
    x = torch.randn(2, 4)
    assert torch.equal(ours(x), theirs(x))
