from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.export.program import _ForgottenAnswers
from detr_kit.models.backbones import Backbone
from detr_kit.models.hybrid_encoder import HybridEncoder
from detr_kit.models.projections import LevelProjections
from detr_kit.models.pyramid import Level
from detr_kit.models.tracing import traceable_copy
from detr_kit.structures import ImageBatch, TracedBatch
from tests.drawn import draw_scales

LITE0 = "timm/tf_efficientnet_lite0"
SE = "timm/mobilenetv3_small_050"  # looks at a whole picture at once
FLOOR = "timm/convnext_atto"  # its convolutions round a side down
CNNS = ("resnet18", "plain", LITE0, SE)
Make = Callable[..., ImageBatch]


@pytest.fixture
def build_backbone() -> Callable[..., Backbone]:
    """A backbone in float64 with random statistics, scales and biases."""

    def build(name: str, num_levels: int = 3, norm: str = "batch", **options: object) -> Backbone:
        if name.startswith("timm/"):
            pytest.importorskip("timm")
        torch.manual_seed(0)
        backbone = Backbone(name, norm=norm, num_levels=num_levels, **options)  # type: ignore[arg-type]
        return draw_scales(backbone).double().eval()

    return build


def alone(batch: ImageBatch, row: int) -> ImageBatch:
    height, width = batch.sizes_hw[row]
    return ImageBatch.from_images([batch.pixels[row, :, :height, :width]])


def real_cells(
    levels: list[Level], size_hw: tuple[int, int], strides: tuple[int, ...], row: int = 0
) -> list[Tensor]:
    """Cut one image's own cells out of a batch's maps."""
    height, width = size_hw
    return [
        features[row, :, : -(-height // stride), : -(-width // stride)]
        for (features, _), stride in zip(levels, strides, strict=True)
    ]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max())
        assert scale > 0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * max(scale, 1.0))


@pytest.mark.parametrize(
    ("name", "levels", "options", "strides", "channels"),
    [
        ("resnet18", 3, {}, (8, 16, 32), (128, 256, 512)),
        ("resnet50", 4, {}, (4, 8, 16, 32), (256, 512, 1024, 2048)),
        ("resnet50", 2, {"stages": 3}, (8, 16), (512, 1024)),
        ("plain", 3, {}, (4, 8, 16), (64, 128, 192)),
        (LITE0, 3, {}, (8, 16, 32), (40, 112, 320)),
        (LITE0, 2, {"stages": 2}, (2, 4), (16, 24)),
        (LITE0, 1, {"stages": 1}, (2,), (16,)),
        (SE, 2, {"stages": 4}, (8, 16), (16, 24)),
    ],
)
def test_levels_are_the_last_stages(
    build_backbone: Callable[..., Backbone],
    make_batch: Make,
    name: str,
    levels: int,
    options: dict,
    strides: tuple,
    channels: tuple,
) -> None:
    backbone = build_backbone(name, levels, **options)
    assert (backbone.level_strides, backbone.level_channels) == (strides, channels)
    assert (backbone.stride, backbone.num_channels) == (strides[-1], channels[-1])
    side = 2 * strides[-1]
    with torch.no_grad():
        found = backbone.levels(make_batch((side, side), dtype=torch.float64))
    shapes = [features.shape for features, _ in found]
    assert shapes == [(1, c, side // s, side // s) for c, s in zip(channels, strides, strict=True)]
    if name != SE:  # a single image of it has a mask that hides nothing
        assert all(mask is None for _, mask in found)


@pytest.mark.parametrize("name", [*CNNS, FLOOR])
@pytest.mark.parametrize("padding", ["independent", "official"])
def test_the_last_level_is_that_of_a_single_one(
    build_backbone: Callable[..., Backbone], make_batch: Make, name: str, padding: str
) -> None:
    several = build_backbone(name, padding=padding)
    single = build_backbone(name, 1, padding=padding)
    batch = make_batch((64, 96), (40, 64), dtype=torch.float64)
    with torch.no_grad():
        features, mask = several.levels(batch)[-1]
        expected, expected_mask = single(batch)
        assert torch.equal(several(batch)[0], features)
    assert torch.equal(features, expected)
    assert torch.equal(mask, expected_mask)


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize(
    ("name", "levels", "stages"),
    [*((name, 3, None) for name in CNNS), (LITE0, 2, 2), (LITE0, 1, 1), (SE, 1, 2)],
)
def test_an_image_has_the_same_levels_alone_and_padded(
    build_backbone: Callable[..., Backbone],
    make_batch: Make,
    name: str,
    levels: int,
    stages: int | None,
    norm: str,
) -> None:
    backbone = build_backbone(name, levels, norm, stages=stages)
    assert backbone.image_by_image == (name == SE)
    batch = make_batch((45, 70), (90, 33), (33, 97), dtype=torch.float64)
    strides = backbone.level_strides
    with torch.no_grad():
        together = backbone.levels(batch)
        expected = backbone.levels(alone(batch, 0))
    size = batch.sizes_hw[0]
    assert_close(real_cells(together, size, strides), real_cells(expected, size, strides))
    for (features, mask), stride in zip(together, strides, strict=True):
        assert mask is not None
        assert features.shape[2:] == mask.shape[1:]
        for row, (height, width) in enumerate(batch.sizes_hw):
            real = torch.zeros_like(mask[row])
            real[: -(-height // stride), : -(-width // stride)] = True
            assert torch.equal(~mask[row], real)
        assert not features.masked_select(mask[:, None]).any()


@pytest.mark.parametrize("padding", ["independent", "official"])
@pytest.mark.parametrize("name", [*CNNS, FLOOR])
def test_sides_are_those_of_the_batch_rounded_up(
    build_backbone: Callable[..., Backbone], make_batch: Make, name: str, padding: str
) -> None:
    backbone = build_backbone(name, padding=padding)
    for sizes in (((45, 71),), ((45, 71), (33, 20))):
        with torch.no_grad():
            levels = backbone.levels(make_batch(*sizes, dtype=torch.float64))
        height, width = 45, 71
        if padding == "official" and name.startswith("timm/"):  # it knows no cells outside
            height, width = 64, 96
        for (features, _), stride in zip(levels, backbone.level_strides, strict=True):
            assert features.shape[2:] == (-(-height // stride), -(-width // stride))
        assert len({mask is None for _, mask in levels}) == 1


def test_official_masks_are_the_nearest_pixels(
    build_backbone: Callable[..., Backbone], make_batch: Make
) -> None:
    backbone = build_backbone("resnet18", padding="official")
    batch = make_batch((45, 70), (90, 33), dtype=torch.float64)
    with torch.no_grad():
        levels = backbone.levels(batch)
    for features, mask in levels:
        floats = batch.padding_mask[:, None].float()
        nearest = nn.functional.interpolate(floats, size=features.shape[2:])[:, 0].bool()
        assert mask is not None
        assert torch.equal(mask, nearest)
        assert features.masked_select(mask[:, None]).any()  # nothing is emptied


@pytest.mark.parametrize(
    ("name", "levels", "options", "message"),
    [
        ("resnet18", 5, {}, "levels: 5 feature maps are wanted of resnet18, whose stages give 4"),
        ("plain", 3, {"stages": 2}, "levels: 3 feature maps are wanted of plain"),
        (LITE0, 3, {"stages": 2}, "levels: 3 feature maps"),
        ("resnet18", 0, {}, "levels: 0 feature maps"),
        ("resnet50", 2, {"dilation": True}, r"strides of .* resnet50 are \[16, 16\]"),
    ],
)
def test_errors(name: str, levels: int, options: dict, message: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with pytest.raises(DetrKitError, match=message):
        Backbone(name, norm="batch", num_levels=levels, **options)


def test_one_dilated_level_is_no_error() -> None:
    assert Backbone("resnet50", norm="batch", dilation=True).level_strides == (16,)


class Neck(nn.Module):
    """All levels of a CNN and one more, and a hybrid encoder."""

    def __init__(self, backbone: Backbone, norm: str) -> None:
        super().__init__()
        self.backbone = backbone
        padding = backbone.padding
        levels = backbone.num_levels + 1
        self.projections = LevelProjections(backbone.level_channels, 16, levels, norm, padding)  # type: ignore[arg-type]
        self.encoder = HybridEncoder(
            16, 12, levels, num_heads=2, feedforward_dim=24, padding=padding
        )

    def forward(self, batch: ImageBatch | TracedBatch) -> list[Level]:
        return self.encoder(self.projections(self.backbone.levels(batch)))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", CNNS)
def test_everything_before_the_decoder_is_the_same_alone_and_padded(
    build_backbone: Callable[..., Backbone], make_batch: Make, name: str, norm: str
) -> None:
    neck = draw_scales(Neck(build_backbone(name), norm)).double().eval()
    strides = (*neck.backbone.level_strides, 2 * neck.backbone.stride)
    batch = make_batch((45, 70), (90, 33), (33, 97), dtype=torch.float64)
    with torch.no_grad():
        together, expected = neck(batch), neck(alone(batch, 0))
    size = batch.sizes_hw[0]
    assert_close(real_cells(together, size, strides), real_cells(expected, size, strides))


class Positional(nn.Module):
    """Takes tensors, and returns the maps and their masks; `torch.export` knows no dataclass."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, pixels: Tensor, padding_mask: Tensor | None = None) -> list[Level]:
        return self.neck(TracedBatch(pixels, padding_mask))


def traced(neck: Neck, inputs: tuple[Tensor, ...]) -> Callable[..., list[Level]]:
    """Trace a neck for any number and size of pictures."""
    count, height, width = (torch.export.Dim(name, min=1) for name in ("count", "height", "width"))
    sizes = {"pixels": {0: count, 2: height, 3: width}}
    if len(inputs) == 2:
        sizes["padding_mask"] = {0: count, 1: height, 2: width}
    open_sizes = torch.fx.experimental._config.patch(backed_size_oblivious=True)
    with torch.no_grad(), open_sizes, _ForgottenAnswers():
        graph = Positional(traceable_copy(neck, mask=len(inputs) == 2))
        program = torch.export.export(graph, inputs, dynamic_shapes=sizes, strict=False)
    return program.module()


@pytest.mark.parametrize(
    ("name", "norm", "padding", "mask"),
    [
        ("plain", "group", "independent", True),
        pytest.param("plain", "batch", "official", True, marks=pytest.mark.slow),
        pytest.param("resnet18", "batch", "independent", True, marks=pytest.mark.slow),
        pytest.param("resnet18", "group", "independent", False, marks=pytest.mark.slow),
        pytest.param(LITE0, "batch", "independent", True, marks=pytest.mark.slow),
        pytest.param(LITE0, "group", "independent", False, marks=pytest.mark.slow),
        pytest.param("timm/resnet18d", "batch", "official", True, marks=pytest.mark.slow),
        pytest.param(SE, "batch", "independent", False, marks=pytest.mark.slow),
    ],
)
def test_a_graph_of_any_size_gives_the_same_numbers(
    build_backbone: Callable[..., Backbone],
    make_batch: Make,
    name: str,
    norm: str,
    padding: str,
    mask: bool,
) -> None:
    levels = 2 if name == "plain" else 3
    neck = (
        draw_scales(Neck(build_backbone(name, levels, norm="frozen", padding=padding), norm))
        .double()
        .eval()
    )
    strides = (*neck.backbone.level_strides, 2 * neck.backbone.stride)
    example = make_batch((75, 103), (60, 90), dtype=torch.float64)
    program = traced(neck, (example.pixels, example.padding_mask)[: 1 + mask])
    for pictures in (((45, 70), (90, 33)), ((97, 33),), ((64, 64),), ((1, 5),)):
        batch = make_batch(*pictures, dtype=torch.float64)
        if batch.has_padding and not mask:
            continue
        with torch.no_grad():
            found = program(*(batch.pixels, batch.padding_mask)[: 1 + mask])
            expected = neck(batch)
        for row, size in enumerate(batch.sizes_hw):
            assert_close(
                real_cells(found, size, strides, row), real_cells(expected, size, strides, row)
            )
        # A graph cannot cut off what timm's CNNs are padded by, and has masks of it.
        for (features, ours), (cut, theirs) in zip(found, expected, strict=True):
            assert mask <= (ours is not None)
            if ours is None:
                assert features.shape == cut.shape
                continue
            assert ours.shape[1:] == features.shape[2:]
            height, width = cut.shape[2:]
            assert torch.equal(
                ours[:, :height, :width],
                torch.zeros_like(ours[:, :height, :width]) if theirs is None else theirs,
            )
            assert ours[:, height:].all()
            assert ours[:, :, width:].all()


def test_a_whole_picture_cannot_be_looked_at_with_a_mask(
    build_backbone: Callable[..., Backbone],
) -> None:
    neck = Neck(build_backbone(SE), "batch")
    with pytest.raises(DetrKitError, match="exported without a padding mask only"):
        traceable_copy(neck, mask=True)


def test_a_traceable_copy_has_no_batch_norm_left(
    build_backbone: Callable[..., Backbone],
) -> None:
    neck = Neck(build_backbone("plain", norm="frozen"), "batch")
    copied = traceable_copy(neck, mask=True)
    assert not [part for part in copied.modules() if isinstance(part, nn.BatchNorm2d)]
    assert [part for part in neck.modules() if isinstance(part, nn.BatchNorm2d)]
    assert not [key for key in copied.state_dict() if "running" in key]
