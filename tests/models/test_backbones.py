from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from detr_kit.errors import DetrKitError
from detr_kit.models.backbones import Backbone
from detr_kit.models.extents import Extents
from detr_kit.models.norms import ExtentGroupNorm, FrozenBatchNorm2d
from detr_kit.structures import ImageBatch

LITE0 = "timm/tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("name", "options", "stride", "channels"),
    [
        ("resnet18", {}, 32, 512),
        ("resnet18", {"stages": 2}, 8, 128),
        ("plain", {}, 16, 192),
        ("plain", {"stages": 3}, 8, 128),
        ("resnet50", {"dilation": True}, 16, 2048),
        ("resnet50", {"dilation": True, "stages": 3}, 8, 1024),
        (LITE0, {}, 32, 320),
        (LITE0, {"stages": 4}, 16, 112),
        # Its stages are named as an EfficientNet's, but are not in one module.
        ("timm/ghostnet_050", {"stages": 3}, 8, 20),
    ],
)
def test_shapes_with_and_without_padding(
    make_batch: Callable[..., ImageBatch], name: str, options: dict, stride: int, channels: int
) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    backbone = Backbone(name, norm="frozen", **options).eval()
    assert (backbone.stride, backbone.num_channels) == (stride, channels)
    cells = (-(-97 // stride), -(-70 // stride))
    features, mask = backbone(make_batch((65, 70), (97, 33)))
    assert features.shape == (2, channels, *cells)
    assert mask is not None
    inside = ~mask
    assert inside[0].sum() == -(-65 // stride) * cells[1]
    assert inside[1].sum() == cells[0] * -(-33 // stride)
    assert not features[0, :, mask[0]].any()
    assert features[0, :, inside[0]].any(dim=0).all()


def test_nothing_is_masked_where_nothing_is_padded(make_batch: Callable[..., ImageBatch]) -> None:
    backbone = Backbone("resnet18", norm="frozen").eval()
    assert backbone(make_batch((50, 70), (50, 70)))[1] is None


def test_every_parameter_of_a_cut_cnn_is_used(make_batch: Callable[..., ImageBatch]) -> None:
    pytest.importorskip("timm")
    backbone = Backbone(LITE0, norm="batch", stages=4)
    backbone(make_batch((64, 64), (50, 40)))[0].square().sum().backward()
    assert [k for k, p in backbone.named_parameters() if p.grad is None] == []


def test_frozen_norm_is_a_constant_with_its_own_eps_and_activation() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    # In float64: such small variances let every layer multiply what rounding left behind.
    body = timm.create_model("tf_efficientnet_lite0", features_only=True).double().eval()
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.001, 0.01)  # small enough for eps 1e-3 to matter
    frozen = Backbone(LITE0, norm="frozen", padding="official").double()
    frozen.body.load_state_dict(body.state_dict())
    pixels = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = body(pixels)[-1]
    for mode in (True, False):
        torch.testing.assert_close(frozen.train(mode)._maps(pixels)[-1], expected)
    norms = [m for m in frozen.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norms
    assert all(m.eps == 1e-3 for m in norms)
    assert not any(list(m.parameters()) for m in norms)


@pytest.mark.parametrize(
    ("name", "count", "trainable", "frozen"),
    [
        ("resnet18", 0, "conv1.weight", None),
        ("resnet18", 1, "layer1.0.conv1.weight", "conv1.weight"),
        ("resnet18", 2, "layer2.0.conv1.weight", "layer1.1.conv2.weight"),
        (LITE0, 1, "blocks.1.0.conv_pw.weight", "conv_stem.weight"),
        (LITE0, 2, "blocks.2.0.conv_pw.weight", "blocks.1.1.conv_pwl.weight"),
        (
            "timm/convnext_atto",
            1,
            "stages_1.blocks.0.conv_dw.weight",
            "stages_0.blocks.0.norm.bias",
        ),
    ],
)
def test_frozen_stages(name: str, count: int, trainable: str, frozen: str | None) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    backbone = Backbone(name, norm="frozen", frozen_stages=count, padding="official")
    wants = {key: p.requires_grad for key, p in backbone.body.named_parameters()}
    assert wants[trainable]
    # In the order of definition: frozen ones first, none after.
    flags = list(wants.values())
    assert flags == sorted(flags)
    if frozen is None:
        assert all(flags)
    else:
        assert not wants[frozen]


def test_frozen_stages_keep_their_statistics(make_batch: Callable[..., ImageBatch]) -> None:
    backbone = Backbone("resnet18", norm="batch", frozen_stages=1).train()
    backbone(make_batch((64, 64)))
    assert backbone.body.bn1.running_mean.abs().max() == 0
    assert backbone.body.layer1[0].bn1.running_mean.abs().max() > 0


def test_group_norm_leaves_padding_out() -> None:
    torch.manual_seed(0)
    extents = Extents()
    norm = ExtentGroupNorm(8, eps=1e-5, act=nn.Identity(), extents=extents).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(1, 8, 6, 8, dtype=torch.float64)
    mask = torch.ones(1, 6, 8, dtype=torch.bool)
    mask[:, :4, :5] = False
    with extents.of(mask, 1):
        padded = norm(x)
    torch.testing.assert_close(padded[..., :4, :5], norm(x[..., :4, :5]), rtol=0, atol=1e-12)


def test_max_pool_ignores_padding_below_zero() -> None:
    extents = Extents()
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    extents.watch(nn.Sequential(pool))
    x = -torch.rand(1, 2, 8, 8) - 1
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[:, :3, :5] = False
    alone = pool(x[..., :3, :5])
    with extents.of(mask, 2):
        padded = pool(x.masked_fill(mask, 0.0))
    assert torch.equal(padded[..., :2, :3], alone)
    assert padded.isfinite().all()


def test_squeeze_excite_runs_image_by_image() -> None:
    pytest.importorskip("timm")
    assert Backbone("timm/mobilenetv3_small_050", norm="frozen").image_by_image
    assert not Backbone(LITE0, norm="frozen").image_by_image
    # Its last norms begin at zero, which hides what the branch before them does.
    assert Backbone("timm/regnety_002", norm="batch").image_by_image


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_masks_by_itself(
    make_batch: Callable[..., ImageBatch], clone: Callable[[Backbone], Backbone]
) -> None:
    backbone = Backbone("resnet18", norm="frozen").eval()
    nn.init.normal_(backbone.body.bn1.bias)
    batch = make_batch((64, 64), (40, 33))
    copied = clone(backbone)
    assert torch.equal(copied(batch)[0], backbone(batch)[0])
    hook = next(iter(copied.body.conv1._forward_pre_hooks.values()))
    assert hook.__self__ is copied.extents
    assert copied.extents is not backbone.extents


def test_building_draws_no_more_random_numbers_than_the_cnn_needs() -> None:
    pytest.importorskip("timm")
    drawn = []
    for padding in ("independent", "official"):
        torch.manual_seed(0)
        Backbone(LITE0, norm="batch", padding=padding)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, "backbone 'resnet51' is unknown"),
        ("resnet18", {"dilation": True}, "dilation needs resnet50 or resnet101"),
        ("resnet50", {"stages": 5}, "backbone_stages 5: resnet50 has 4"),
        ("resnet18", {"frozen_stages": 6}, "frozen_stages 6: resnet18 has 5"),
        ("timm/nothing_of_that_name", {}, "timm cannot build it"),
        ("timm/vit_tiny_patch16_224", {}, "vit_tiny_patch16_224' is no CNN whose stages give"),
        ("timm/swin_tiny_patch4_window7_224", {}, "is no CNN whose stages .* doesn't match model"),
        ("timm/mambaout_femto", {}, "is no CNN whose stages .* it gives"),
        ("timm/xception41", {"frozen_stages": 1}, "frozen_stages 1: timm/xception41 has no module"),
    ],
)
def test_errors(name: str, options: dict, message: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with pytest.raises(DetrKitError, match=message):
        Backbone(name, norm="frozen", **options)
