"""CNNs without their classifiers: torchvision's ResNets, a plain one, and timm's."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn

from detr_kit.errors import DetrKitError

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
# Channels of the stages of "plain", each at half the size of the one before.
PLAIN_WIDTHS = (32, 64, 128, 192)

# The small ResNets of RT-DETR: timm's variant d, with a convolution in the first shortcut too.
VD_RESNETS = {"timm/resnet18vd": "resnet18d", "timm/resnet34vd": "resnet34d"}


@dataclass(frozen=True)
class Trunk:
    """A CNN without its classifier.

    `ends` names the last module of each part that can be frozen, the stem included. `strides` and
    `channels` describe the feature maps of its stages, the finest first. Those of a `Sequential`
    are what its last modules return; any other body returns them as a list.
    """

    body: nn.Module
    ends: list[str]
    strides: list[int]
    channels: list[int]


def build_trunk(name: str, stages: int | None, *, dilation: bool) -> Trunk:
    """Build the first `stages` (None: all) of a CNN with random weights, see `Backbone`."""
    if name.startswith("timm/"):
        return _timm_cnn(name, stages, dilation)
    if name == "plain":
        return _plain_cnn(stages, dilation)
    return _resnet(name, stages, dilation)


def _resnet(name: str, stages: int | None, dilation: bool) -> Trunk:
    """Build a ResNet's trunk under torchvision's keys."""
    if name not in RESNETS:
        raise DetrKitError(
            f"backbone {name!r} is unknown; there are {', '.join(RESNETS)}, plain and timm/NAME"
        )
    count = 4 if stages is None else stages
    if count > 4:
        raise DetrKitError(f"backbone_stages {count}: {name} has 4")
    if dilation and (count < 2 or name in ("resnet18", "resnet34")):
        raise DetrKitError(
            "dilation needs resnet50 or resnet101 and at least 2 backbone_stages, "
            f"got {name} with {count}"
        )
    dilated = [dilation and count == stage for stage in (2, 3, 4)]
    options: dict[str, Any] = {"replace_stride_with_dilation": dilated}
    full = getattr(torchvision.models, name)(weights=None, **options)
    names = ["conv1", "bn1", "relu", "maxpool", *[f"layer{i + 1}" for i in range(count)]]
    trunk = nn.Sequential(OrderedDict((part, getattr(full, part)) for part in names))
    strides = [2 ** (stage + 2) for stage in range(count)]
    if dilation:
        strides[-1] //= 2
    channels = [full.fc.in_features >> (3 - stage) for stage in range(count)]
    return Trunk(trunk, ["maxpool", *names[4:]], strides, channels)


def _plain_cnn(stages: int | None, dilation: bool) -> Trunk:
    """Build a few strided convolutions, to learn small and simple pictures from nothing.

    Every stage halves the size; the deeper two, where it is cheap, have a second convolution.
    """
    count = len(PLAIN_WIDTHS) if stages is None else stages
    if count > len(PLAIN_WIDTHS):
        raise DetrKitError(f"backbone_stages {count}: plain has {len(PLAIN_WIDTHS)}")
    if dilation:
        raise DetrKitError("dilation: the backbone plain has none")
    trunk = nn.Sequential()
    channels = 3
    for stage, width in enumerate(PLAIN_WIDTHS[:count]):
        layers: list[nn.Module] = []
        for stride in (2,) if stage < 2 else (2, 1):
            layers += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        trunk.add_module(f"stage{stage + 1}", nn.Sequential(*layers))
    return Trunk(
        trunk,
        [f"stage{stage + 1}" for stage in range(count)],
        [2 ** (stage + 1) for stage in range(count)],
        list(PLAIN_WIDTHS[:count]),
    )


def timm_name(name: str) -> str:
    """Return what timm calls the CNN that a backbone "timm/NAME" is made of."""
    return VD_RESNETS.get(name, name.removeprefix("timm/"))


def _timm_cnn(name: str, stages: int | None, dilation: bool) -> Trunk:
    """Build a timm CNN that returns the feature maps of its stages as a list."""
    try:
        import timm
    except ImportError as error:
        raise DetrKitError(f"backbone {name!r} needs timm: pip install 'detr_kit[timm]'") from error
    options: dict[str, Any] = {} if stages is None else {"out_indices": tuple(range(stages))}
    if dilation:
        options["output_stride"] = 16
    try:
        body = timm.create_model(timm_name(name), pretrained=False, features_only=True, **options)
    # timm answers with many kinds of exceptions to names and options that it does not know.
    except Exception as error:
        raise DetrKitError(f"backbone {name!r}: timm cannot build it: {error}") from error
    _require_maps(body, name)
    ends = body.feature_info.module_name()
    # The EfficientNet kind keeps stages after the last one.
    if ends[-1].startswith("blocks.") and hasattr(body, "blocks"):
        body.blocks = body.blocks[: int(ends[-1].split(".")[1]) + 1]
    if name in VD_RESNETS:
        width = body.layer1[0].conv1.in_channels
        body.layer1[0].downsample = nn.Sequential(
            nn.Identity(), nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        )
    info = body.feature_info
    return Trunk(body, ends, info.reduction(), info.channels())


@torch.no_grad()
def _require_maps(body: Any, name: str) -> None:
    """Raise DetrKitError unless each stage gives a map at its stride, of a picture of any size."""
    info = body.feature_info
    channels, strides = info.channels(), info.reduction()
    height, width = 2 * strides[-1], 3 * strides[-1]
    pixels = next(body.parameters()).new_zeros(1, 3, height, width)
    expected = [(1, c, height // s, width // s) for c, s in zip(channels, strides, strict=True)]
    mode = body.training
    try:
        found = [tuple(features.shape) for features in body.eval()(pixels)]
        told = f"it gives {found} where {expected} were due"
        if len(set(strides)) < len(strides):
            told = f"its strides are {strides}"
    # Attention over windows or position tables fails in as many ways as there are networks.
    except Exception as error:
        found, told = [], str(error).strip().partition("\n")[0]
    body.train(mode)
    if found != expected or len(set(strides)) < len(strides):
        raise DetrKitError(
            f"backbone {name!r} is no CNN whose stages give feature maps of any picture: {told}; "
            "take one such as timm/resnet18d or timm/tf_efficientnet_lite0"
        )
