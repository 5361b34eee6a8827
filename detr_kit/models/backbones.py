"""CNN backbones: torchvision's ResNets and any timm CNN, with predictions that ignore padding.

Why padding needs care: zeros beside an image do not stay zero (a bias is added, a normalisation
shifts them), so that the next 3x3 convolution at the image's edge reads what an image alone would
not have there. The input of every wider convolution and pooling is therefore zeroed outside each
image; its true extent halves, rounding up, at every stride.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.extents import Extents, pad_to_multiple, pad_traced
from detr_kit.models.folding import fold_frozen_norms, forget_folded
from detr_kit.models.norms import NormKind, replace_batch_norms
from detr_kit.structures import ImageBatch, TracedBatch, outside_of

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
# Channels of the stages of "plain", each at half the size of the one before.
PLAIN_WIDTHS = (32, 64, 128, 192)
Padding = Literal["independent", "official"]
# The CNN, the last module of each of its stages, its total stride and its channels.
Trunk = tuple[nn.Module, list[str], int, int]


class Backbone(nn.Module):
    """A CNN that maps an image batch to one feature map and its padding mask.

    `name` is one of `RESNETS`, "plain" or "timm/NAME"; `stages` keeps the first of the CNN's
    stages (None: all); `dilation` replaces the last stage's stride (DC5); `frozen_stages` counts
    the stem as the first. `num_channels` and `stride` describe the feature map.

    Raises DetrKitError for an unknown name and for settings that the CNN does not have.
    """

    def __init__(
        self,
        name: str,
        *,
        norm: NormKind,
        stages: int | None = None,
        dilation: bool = False,
        frozen_stages: int = 0,
        padding: Padding = "independent",
    ) -> None:
        super().__init__()
        self.name = name
        self.padding = padding
        if name.startswith("timm/"):
            cnn = _timm_cnn(name, stages, dilation)
        elif name == "plain":
            cnn = _plain_cnn(stages, dilation)
        else:
            cnn = _resnet(name, stages, dilation)
        self.body, levels, self.stride, self.num_channels = cnn
        # A ResNet pads its convolutions alike on all sides: an image alone needs no extra rows.
        # Others may choose their padding by size, which only a multiple of the stride keeps equal.
        self.pads_alone = name.startswith("timm/")
        self.extents = Extents()
        replace_batch_norms(self.body, norm, self.extents)
        if norm == "frozen":
            fold_frozen_norms(self.body, side=2 * self.stride)
        _freeze(self.body, levels, frozen_stages, name)
        self.extents.watch(self.body)
        self.image_by_image = False
        if self.pads_alone and padding == "independent":
            self.image_by_image = self._depends_on_padding()

    def forward(self, batch: ImageBatch | TracedBatch) -> tuple[Tensor, Tensor | None]:
        """Return (B, C, h, w) features and their (B, h, w) mask, None where nothing is padded."""
        if isinstance(batch, TracedBatch):
            return self._traced(batch)
        if self.padding == "official":
            return self._as_official(
                batch.pixels, batch.padding_mask if batch.has_padding else None
            )
        if self.image_by_image and len(batch.sizes_hw) > 1:
            return self._one_by_one(batch)
        if not self.pads_alone and not batch.has_padding:
            return self._features(batch.pixels), None
        pixels, mask = pad_to_multiple(batch.pixels, batch.padding_mask, self.stride)
        padded_hw = (pixels.shape[2], pixels.shape[3])
        if self.image_by_image:
            features = self._features(pixels)
        elif all(size == padded_hw for size in batch.sizes_hw):
            return self._features(pixels), None
        else:
            with self.extents.of(mask, self.stride):
                features = self._features(pixels)
        outside = mask[:, :: self.stride, :: self.stride]
        return features.masked_fill(outside.unsqueeze(1), 0.0), outside

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; batch norms without gradients keep their statistics.

        Folded weights are forgotten too, as `.data` writes leave them unnoticed.
        """
        super().train(mode)
        forget_folded(self.body)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    def _features(self, pixels: Tensor) -> Tensor:
        features = self.body(pixels)
        return features if isinstance(features, Tensor) else features[-1]

    def _as_official(self, pixels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Mask nothing inside the CNN; the mask reaches the feature map by nearest neighbour."""
        features = self._features(pixels)
        if mask is None:
            return features, None
        floats = mask.unsqueeze(1).to(pixels.dtype)
        return features, F.interpolate(floats, size=features.shape[2:]).squeeze(1) > 0.5

    def _traced(self, batch: TracedBatch) -> tuple[Tensor, Tensor | None]:
        """Do the same for any sizes in one graph, of a model that `traceable_copy` has prepared.

        A mask is given out wherever one is given; a feature map has none of its own to add, as no
        cell lies in what is padded to a multiple of the stride.
        """
        pixels, mask = batch.pixels, batch.padding_mask
        if self.padding == "official":
            return self._as_official(pixels, mask)
        if self.pads_alone:
            pixels = pad_traced(pixels, self.stride)
        if self.image_by_image or (mask is None and not self.pads_alone):
            return self._features(pixels), None
        own_sides = batch.own_sides()
        with self.extents.of_traced(own_sides):
            features = self._features(pixels)
        if mask is None:
            return features, None
        cells = (features.shape[2], features.shape[3])
        outside = outside_of(own_sides, cells, stride=self.stride)
        return features.masked_fill(outside.unsqueeze(1), 0.0), outside

    def _one_by_one(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Run each image alone, for layers that see the whole picture at once."""
        stride = self.stride
        height, width = (-(-side // stride) for side in batch.pixels.shape[2:])
        maps, masks = [], []
        for row, (image_height, image_width) in enumerate(batch.sizes_hw):
            alone = ImageBatch(
                batch.pixels[row : row + 1, :, :image_height, :image_width],
                batch.padding_mask[row : row + 1, :image_height, :image_width],
                ((image_height, image_width),),
            )
            features, mask = self.forward(alone)
            if mask is None:
                mask = features.new_zeros(1, *features.shape[2:], dtype=torch.bool)
            missing = (0, width - features.shape[3], 0, height - features.shape[2])
            maps.append(F.pad(features, missing))
            masks.append(F.pad(mask, missing, value=True))
        return torch.cat(maps), torch.cat(masks)

    @torch.no_grad()
    def _depends_on_padding(self) -> bool:
        """Whether an image's features change with the batch it is in, found by trying it.

        Squeeze-and-excitation, for example, averages over everything, padding included.
        """
        parameter = next(self.body.parameters())
        if parameter.is_meta:
            return False
        trial = copy.deepcopy(self).double().eval()
        for module in trial.body.modules():
            weight = getattr(module, "weight", None)
            # Norms that begin at zero would silence what comes before them.
            if isinstance(weight, Tensor) and weight.ndim == 1 and not weight.any():
                nn.init.ones_(weight)
        generator = torch.Generator().manual_seed(0)
        side = 2 * self.stride
        sizes = ((side - 11, side + 5), (side + side // 2 + 3, 2 * side))
        images = [
            torch.randn(3, *size, generator=generator, dtype=torch.float64, device="cpu").to(
                parameter.device
            )
            for size in sizes
        ]
        together, _ = trial(ImageBatch.from_images(images))
        alone, _ = trial(ImageBatch.from_images(images[:1]))
        difference = together[:1, :, : alone.shape[2], : alone.shape[3]] - alone
        return bool(difference.abs().max() > 1e-9 * alone.abs().max())


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
    channels = full.fc.in_features >> (4 - count)
    return trunk, ["maxpool", *names[4:]], 2 ** (count + 1 - dilation), channels


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
    return trunk, [f"stage{stage + 1}" for stage in range(count)], 2**count, channels


def _timm_cnn(name: str, stages: int | None, dilation: bool) -> Trunk:
    """Build a timm CNN that returns its last feature map as its list's last."""
    try:
        import timm
    except ImportError as error:
        raise DetrKitError(f"backbone {name!r} needs timm: pip install 'detr_kit[timm]'") from error
    options: dict[str, Any] = {} if stages is None else {"out_indices": tuple(range(stages))}
    if dilation:
        options["output_stride"] = 16
    try:
        body = timm.create_model(
            name.removeprefix("timm/"), pretrained=False, features_only=True, **options
        )
    # timm answers with many kinds of exceptions to names and options that it does not know.
    except Exception as error:
        raise DetrKitError(f"backbone {name!r}: timm cannot build it: {error}") from error
    levels = body.feature_info.module_name()
    if levels[-1].startswith("blocks."):  # the EfficientNet kind keeps stages after the last one
        body.blocks = body.blocks[: int(levels[-1].split(".")[1]) + 1]
    info = body.feature_info
    return body, levels, info.reduction()[-1], info.channels()[-1]


def _freeze(body: nn.Module, levels: list[str], count: int, name: str) -> None:
    """Take the gradients of everything up to the end of the given number of stages."""
    if count > len(levels):
        raise DetrKitError(f"frozen_stages {count}: {name} has {len(levels)}, the stem included")
    if count == 0:
        return
    last = levels[count - 1]
    reached = False
    for module_name, module in body.named_modules():
        # timm flattens "stages.0" to "stages_0" in some of its wrappers.
        inside = any(
            module_name == end or module_name.startswith(end + ".")
            for end in (last, last.replace(".", "_"))
        )
        if reached and not inside:
            return
        reached = reached or inside
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
