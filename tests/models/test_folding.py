from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from detr_kit.models import backbones
from detr_kit.models.backbones import Backbone
from detr_kit.models.folding import FoldedConv2d, fold_frozen_norms
from detr_kit.models.norms import FrozenBatchNorm2d
from detr_kit.structures import ImageBatch

LITE0 = "timm/tf_efficientnet_lite0"
Make = Callable[..., ImageBatch]


def randomized(backbone: Backbone) -> Backbone:
    generator = torch.Generator().manual_seed(3)
    for norm in backbone.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            for name, buffer in norm.named_buffers():
                noise = 0.3 * torch.randn(len(buffer), generator=generator)
                buffer.copy_(noise if name in ("bias", "running_mean") else 1 + noise.abs())
    return backbone


@pytest.fixture
def folded_and_not(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Backbone, Backbone]]:
    def build(name: str, **options: object) -> tuple[Backbone, Backbone]:
        if name.startswith("timm/"):
            pytest.importorskip("timm")
        torch.manual_seed(0)
        folded = randomized(Backbone(name, norm="frozen", **options))
        with monkeypatch.context() as patch:
            patch.setattr(backbones, "fold_frozen_norms", lambda body, side: None)
            plain = Backbone(name, norm="frozen", **options)
        plain.load_state_dict(folded.state_dict())
        return folded, plain

    return build


def small() -> Backbone:
    return randomized(Backbone("resnet18", norm="frozen", stages=1))


def norms_of(module: nn.Module) -> list[FrozenBatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, FrozenBatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50", {"dilation": True, "stages": 3, "frozen_stages": 2}),
        (LITE0, {"stages": 4}),
    ],
)
def test_folding_changes_neither_features_nor_gradients(
    folded_and_not: Callable[..., tuple[Backbone, Backbone]],
    make_batch: Make,
    name: str,
    options: dict,
) -> None:
    pair = folded_and_not(name, **options)
    batch = make_batch((64, 96), (50, 40), dtype=torch.float64)
    features, gradients = [], []
    for backbone in pair:
        output = backbone.double().train()(batch)[0]
        output.square().mean().backward()
        features.append(output)
        gradients.append({k: p.grad for k, p in backbone.named_parameters()})
    torch.testing.assert_close(*features, rtol=1e-10, atol=1e-10)
    assert pair[0].state_dict().keys() == pair[1].state_dict().keys()
    for key, gradient in gradients[1].items():
        ours = gradients[0][key]
        assert (ours is None) == (gradient is None), key
        if gradient is not None:
            torch.testing.assert_close(ours, gradient, rtol=1e-8, atol=1e-12, msg=key)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["resnet50", LITE0, "timm/mobilenetv3_small_050"])
def test_every_norm_that_follows_a_convolution_is_folded(name: str, device: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.device(device):
        norms = norms_of(Backbone(name, norm="frozen", padding="official"))
    assert norms
    assert all(norm.folded for norm in norms)


def test_no_batch_norm_runs_any_more() -> None:
    seen = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(str(func))
            return func(*args, **(kwargs or {}))

    backbone = small().train()
    with Names():
        backbone._maps(torch.randn(1, 3, 32, 32))[-1].sum().backward()
    assert "aten.convolution.default" in seen
    assert not [name for name in seen if "batch_norm" in name]


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Body(nn.Module):
    """Two convolutions with a norm each; `wiring` says what is unusual about the first."""

    def __init__(self, wiring: str) -> None:
        super().__init__()
        self.wiring = wiring
        kind = Standardized if wiring == "standardized" else nn.Conv2d
        mode = "reflect" if wiring == "reflected" else "zeros"
        self.first = kind(3, 4, 3, padding=1, padding_mode=mode)
        self.norm1 = FrozenBatchNorm2d(4, eps=1e-5, act=nn.ReLU())
        self.second = nn.Conv2d(4, 4, 1)
        self.norm2 = FrozenBatchNorm2d(4, eps=1e-5, act=nn.Identity())

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.wiring == "fails" and x.shape[2] != 224:
            raise ValueError("takes 224 pixels")
        made = self.first(x)
        read = made.relu() if self.wiring == "between" else made
        normed = self.norm1(read)
        if self.wiring == "read twice":
            normed = normed + made
        if self.wiring == "norm twice":
            normed = self.norm1(normed)
        outputs = [self.norm2(self.second(normed))]
        return [made, *outputs] if self.wiring == "returned" else outputs


@pytest.mark.parametrize(
    ("wiring", "folded"),
    [
        ("usual", [True, True]),
        ("between", [False, True]),
        ("read twice", [False, True]),
        ("norm twice", [False, True]),
        ("returned", [False, True]),
        ("standardized", [False, True]),
        ("reflected", [False, True]),
        ("fails", [False, False]),
    ],
)
def test_a_norm_is_left_alone_where_folding_could_change_anything(
    wiring: str, folded: list[bool]
) -> None:
    torch.manual_seed(0)
    body = Body(wiring).train()
    for norm in norms_of(body):
        norm.running_mean.normal_()
    x = torch.randn(1, 3, 224, 224)
    expected = body(x)
    fold_frozen_norms(body, side=16)
    assert [norm.folded for norm in norms_of(body)] == folded
    assert body.training
    for ours, theirs in zip(body(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not body.first._forward_hooks
    assert not body.norm1._forward_pre_hooks


def test_weights_are_folded_in_single_precision_under_autocast() -> None:
    backbone = small().eval()
    conv = backbone.body.conv1
    expected, shift = conv.fold(conv)
    with torch.autocast("cpu", torch.bfloat16):
        weight, bias = conv.fold(conv)
        assert backbone._maps(torch.randn(1, 3, 32, 32))[-1].dtype == torch.bfloat16
    assert weight.dtype == bias.dtype == torch.float32
    assert torch.equal(weight, expected)
    assert torch.equal(bias, shift)


def test_half_precision_weights_are_folded_in_single_precision() -> None:
    backbone = small()
    conv, norm = backbone.body.conv1, backbone.body.bn1
    backbone.bfloat16()
    weight, bias = conv.fold(conv)
    assert weight.dtype == bias.dtype == torch.bfloat16
    scale = norm.weight.float() / (norm.running_var.float() + norm.eps).sqrt()
    wanted = (conv.weight.float() * scale[:, None, None, None]).bfloat16()
    assert torch.equal(weight, wanted)


def test_folded_weights_are_remembered_where_no_gradient_is_wanted() -> None:
    conv = small().body.conv1
    with torch.no_grad():
        weight, bias = conv.fold(conv)
        assert conv.fold(conv)[0] is weight
        assert conv.fold(conv)[1] is bias
    assert weight.is_contiguous(memory_format=torch.channels_last)
    fresh = conv.fold(conv)[0]
    assert fresh.requires_grad
    assert torch.equal(fresh, weight)
    conv.requires_grad_(False)
    frozen = conv.fold(conv)[0]
    assert conv.fold(conv)[0] is frozen


@pytest.mark.parametrize(
    "change", ["load", "assign", "copy", "swap", "data", "statistics", "eps", "double", "fused"]
)
def test_remembered_weights_are_dropped_with_new_values(change: str) -> None:
    backbone = small().eval()
    conv, norm = backbone.body.conv1, backbone.body.bn1
    new = torch.randn_like(conv.weight)
    with torch.no_grad():
        conv.fold(conv)
        if change in ("load", "assign"):
            backbone.body.load_state_dict(
                backbone.body.state_dict() | {"conv1.weight": new}, assign=change == "assign"
            )
        elif change == "copy":
            conv.weight.copy_(new)
        elif change == "swap":
            conv.weight = nn.Parameter(new)
        elif change == "data":
            conv.weight.data.copy_(new)
            backbone.eval()  # nothing else shows it
        elif change == "statistics":
            norm.running_var.mul_(2)
        elif change == "eps":
            norm.eps = 0.5
        elif change == "double":
            backbone.double()
    if change == "fused":
        conv.weight.grad = torch.ones_like(conv.weight)
        torch.optim.AdamW([conv.weight], lr=0.1, fused=True).step()
    with torch.no_grad():
        weight, bias = conv.fold(conv)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        torch.testing.assert_close(weight, conv.weight * scale[:, None, None, None])
        torch.testing.assert_close(bias, norm.bias - norm.running_mean * scale)


def test_training_follows_a_prediction_in_inference_mode() -> None:
    backbone = randomized(Backbone("resnet18", norm="frozen", stages=2, frozen_stages=1))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        before = backbone.train()._maps(pixels)[-1]
    pixels.requires_grad_()  # so that frozen weights are saved for the backward pass
    after = backbone._maps(pixels)[-1]
    after.sum().backward()
    torch.testing.assert_close(after.detach(), before.clone())
    assert pixels.grad is not None


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_folds_its_own_norms(clone: Callable[[Backbone], Backbone]) -> None:
    backbone = small().eval()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = backbone._maps(pixels)[-1]
        copied = clone(backbone)
        assert torch.equal(copied._maps(pixels)[-1], expected)
        copied.body.bn1.bias.add_(1)
        copied.body.conv1.weight.mul_(2)
        assert torch.equal(backbone._maps(pixels)[-1], expected)
        assert not torch.equal(copied._maps(pixels)[-1], expected)
    assert copied.body.conv1.fold.norm is copied.body.bn1


def test_nothing_of_the_frozen_stages_is_kept_for_the_backward_pass() -> None:
    backbone = Backbone("resnet18", norm="frozen", frozen_stages=2).train()
    seen: dict[str, Tensor] = {}
    for name in ("layer1", "layer2"):
        backbone.body.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, output)
        )
    backbone._maps(torch.randn(1, 3, 64, 64))
    assert not seen["layer1"].requires_grad
    assert seen["layer2"].requires_grad


def test_parameters_stay_contiguous() -> None:
    # Sharding refuses other layouts, and a fused AdamW pairs weights with their moments by
    # address: moments saved in another layout would go to other weights.
    backbone = Backbone("resnet50", norm="frozen")
    assert all(parameter.is_contiguous() for parameter in backbone.parameters())
    assert all(
        isinstance(part, FoldedConv2d) for part in backbone.modules() if isinstance(part, nn.Conv2d)
    )
