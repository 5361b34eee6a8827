from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.projections import LevelProjections

CHANNELS = (4, 6)
SIZES = ((9, 7), (5, 4))  # of the given maps; two further levels have (3, 2) and (2, 1) cells


@pytest.fixture
def build_projections() -> Callable[..., LevelProjections]:
    def build(norm: str = "group", num_levels: int = 4, **options: object) -> LevelProjections:
        torch.manual_seed(0)
        projections = LevelProjections(CHANNELS, 8, num_levels, norm, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            for key, tensor in projections.state_dict().items():
                if key.endswith("running_var"):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.ndim == 1:
                    tensor.normal_(0, 1)
        return projections.double().eval()

    return build


def maps_of(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, channels, *size, generator=generator, dtype=torch.float64)
        for channels, size in zip(CHANNELS, sizes, strict=True)
    ]


def masks_of(*real: tuple[int, int]) -> list[Tensor]:
    masks = [torch.ones(1, *size, dtype=torch.bool) for size in SIZES]
    for mask, (height, width) in zip(masks, real, strict=True):
        mask[:, :height, :width] = False
    return masks


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_names_in_the_state_dict(
    build_projections: Callable[..., LevelProjections], norm: str
) -> None:
    state = build_projections(norm).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items() if key.endswith("0.weight")}
    assert shapes == {
        "0.0.weight": (8, 4, 1, 1),
        "1.0.weight": (8, 6, 1, 1),
        "2.0.weight": (8, 6, 3, 3),
        "3.0.weight": (8, 8, 3, 3),
    }
    assert ("0.0.bias" in state) == (norm == "group")
    assert ("2.1.running_mean" in state) == (norm == "batch")


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_further_levels_read_the_last_map_and_then_each_other(
    build_projections: Callable[..., LevelProjections], norm: str
) -> None:
    projections = build_projections(norm)
    maps = maps_of(*SIZES)
    with torch.no_grad():
        found = projections([(features, None) for features in maps])
        third = nn.Sequential.forward(projections[2], maps[1])
        expected = [
            nn.Sequential.forward(projections[0], maps[0]),
            nn.Sequential.forward(projections[1], maps[1]),
            third,
            nn.Sequential.forward(projections[3], third),
        ]
    assert [features.shape[2:] for features, _ in found] == [*SIZES, (3, 2), (2, 1)]
    for (features, mask), theirs in zip(found, expected, strict=True):
        assert mask is None
        torch.testing.assert_close(features, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("real", [((6, 3), (3, 2)), ((9, 1), (5, 1)), ((1, 7), (1, 4))])
def test_what_lies_in_the_padding_does_not_matter(
    build_projections: Callable[..., LevelProjections], norm: str, real: tuple
) -> None:
    projections = build_projections(norm)
    alone, padded, masks = maps_of(*real), maps_of(*SIZES), masks_of(*real)
    for features, ours, (height, width) in zip(padded, alone, real, strict=True):
        features[:, :, :height, :width] = ours
    with torch.no_grad():
        expected = projections([(features, None) for features in alone])
        found = projections(list(zip(padded, masks, strict=True)))
    for (features, mask), (theirs, _) in zip(found, expected, strict=True):
        height, width = theirs.shape[2:]
        torch.testing.assert_close(features[:, :, :height, :width], theirs, rtol=0, atol=1e-11)
        real_cells = torch.zeros_like(mask)
        real_cells[:, :height, :width] = True
        assert torch.equal(~mask, real_cells)


def test_official_norms_see_the_padding_and_masks_are_the_nearest(
    build_projections: Callable[..., LevelProjections],
) -> None:
    projections = build_projections("group", padding="official")
    maps, masks = maps_of(*SIZES), masks_of((6, 3), (3, 2))
    images = torch.ones(1, 37, 29, dtype=torch.bool)
    images[:, :22, :10] = False
    with torch.no_grad():
        expected = projections([(features, None) for features in maps])
        found = projections(list(zip(maps, masks, strict=True)), images)
        guessed = projections(list(zip(maps, masks, strict=True)))
    for (features, mask), (theirs, _) in zip(found, expected, strict=True):
        assert torch.equal(features, theirs)
        assert mask is not None
    for (_, mask), given in zip(found, masks, strict=False):
        assert mask is given
    for level, size in ((2, (3, 2)), (3, (2, 1))):
        for source, output in ((images, found), (masks[1], guessed)):
            nearest = F.interpolate(source[:, None].float(), size=size)[:, 0].bool()
            assert torch.equal(output[level][1], nearest)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_training_reaches_every_parameter(
    build_projections: Callable[..., LevelProjections], norm: str, padded: bool
) -> None:
    projections = build_projections(norm).train()
    maps = [features.requires_grad_() for features in maps_of(*SIZES)]
    masks = masks_of((6, 3), (3, 2)) if padded else [None, None]
    found = projections(list(zip(maps, masks, strict=True)))
    sum((features * features.detach().cos()).sum() for features, _ in found).backward()
    for name, tensor in (*projections.named_parameters(), *enumerate(maps)):
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


@pytest.mark.parametrize("dim", [8, 64, 256, 320])
def test_a_map_of_one_cell_says_something(dim: int) -> None:
    torch.manual_seed(0)
    projections = LevelProjections((4,), dim, 3)
    norm = projections[0][1]
    assert dim // norm.num_groups >= 2
    assert norm.num_groups == {8: 4, 64: 32, 256: 32, 320: 32}[dim]
    with torch.no_grad():
        found = projections([(torch.randn(1, 4, 1, 1), None)])
    assert all(features.shape == (1, dim, 1, 1) for features, _ in found)
    assert all(features.abs().max() > 0.1 for features, _ in found)


def test_half_precision_keeps_whole_statistics(
    build_projections: Callable[..., LevelProjections],
) -> None:
    projections = build_projections("group").float()
    levels = [
        (features.float(), mask)
        for features, mask in zip(maps_of(*SIZES), masks_of((6, 3), (3, 2)), strict=True)
    ]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = projections(levels)
    with torch.no_grad():
        expected = projections(levels)
    for (features, mask), (theirs, _) in zip(found, expected, strict=True):
        assert features.dtype == torch.float32
        difference = (features - theirs).masked_fill(mask[:, None], 0.0)
        assert difference.abs().max() < 0.05 * theirs.abs().max()


def test_fewer_levels_than_maps_are_refused() -> None:
    with pytest.raises(DetrKitError, match="levels 1: the backbone gives 2"):
        LevelProjections(CHANNELS, 8, 1)


def test_a_model_in_half_precision_goes_on_in_it(
    build_projections: Callable[..., LevelProjections],
) -> None:
    projections = build_projections("group").bfloat16()
    masks = masks_of((6, 3), (3, 2))
    maps = [features.bfloat16() for features in maps_of(*SIZES)]
    with torch.no_grad():
        padded = projections(list(zip(maps, masks, strict=True)))
        whole = projections([(features, None) for features in maps])
    assert {features.dtype for features, _ in padded + whole} == {torch.bfloat16}
