from __future__ import annotations

import torch
from torch import Tensor

from detr_kit.models.pyramid import Level, flatten_levels


def drawn_levels(sizes_hw: list[tuple[int, int]], *, dtype: torch.dtype) -> list[Level]:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 5, *size, generator=generator, dtype=dtype) for size in sizes_hw]
    return [(features, None) for features in maps]


def corner_mask(size_hw: tuple[int, int], own_hw: list[tuple[int, int]]) -> Tensor:
    mask = torch.ones(len(own_hw), *size_hw, dtype=torch.bool)
    for row, (height, width) in zip(mask, own_hw, strict=True):
        row[:height, :width] = False
    return mask


def test_tokens_are_level_by_level_and_row_by_row() -> None:
    levels = drawn_levels([(4, 6), (2, 3)], dtype=torch.float32)
    pyramid = flatten_levels(levels)
    assert pyramid.tokens.shape == (2, 30, 5)
    assert pyramid.sizes_hw == ((4, 6), (2, 3))
    (fine, _), (coarse, _) = levels
    assert torch.equal(pyramid.tokens[1, 2 * 6 + 5], fine[1, :, 2, 5])
    assert torch.equal(pyramid.tokens[1, 24 + 3 + 1], coarse[1, :, 1, 1])


def test_maps_are_what_was_flattened() -> None:
    levels = drawn_levels([(4, 6), (2, 3), (1, 1)], dtype=torch.float32)
    pyramid = flatten_levels(levels)
    for found, (features, _) in zip(pyramid.maps(), levels, strict=True):
        assert torch.equal(found, features)
    assert [rows.shape for rows in pyramid.split(pyramid.tokens)] == [
        (2, 24, 5),
        (2, 6, 5),
        (2, 1, 5),
    ]
    doubled = pyramid.with_tokens(pyramid.tokens * 2)
    assert torch.equal(doubled.maps()[1], levels[1][0] * 2)


def test_masks_come_back_and_shares_are_width_before_height() -> None:
    sizes_hw = [(4, 6), (2, 3)]
    masks = [
        corner_mask((4, 6), [(4, 6), (3, 1)]),
        corner_mask((2, 3), [(2, 3), (2, 1)]),
    ]
    levels = drawn_levels(sizes_hw, dtype=torch.float64)
    pyramid = flatten_levels([(m, mask) for (m, _), mask in zip(levels, masks, strict=True)])
    for found, mask in zip(pyramid.masks(), masks, strict=True):
        assert found is not None
        assert torch.equal(found, mask)
    assert pyramid.filled_wh is not None
    assert pyramid.filled_wh.tolist() == [[[6, 4], [3, 2]], [[1, 3], [1, 2]]]


def test_without_masks_nothing_is_told_of_padding() -> None:
    pyramid = flatten_levels(drawn_levels([(4, 6), (2, 3)], dtype=torch.float32))
    assert pyramid.padding_mask is None
    assert pyramid.filled_wh is None
    assert pyramid.masks() == [None, None]


def test_own_sizes_are_those_of_the_unpadded_maps() -> None:
    levels = drawn_levels([(4, 6), (2, 3)], dtype=torch.float64)
    sizes_wh = flatten_levels(levels).own_sizes_wh()
    assert torch.equal(sizes_wh, torch.tensor([[[6, 4], [3, 2]]], dtype=torch.float64))
    masks = [corner_mask((4, 6), [(4, 6), (3, 1)]), corner_mask((2, 3), [(2, 3), (2, 1)])]
    padded = flatten_levels([(m, mask) for (m, _), mask in zip(levels, masks, strict=True)])
    expected = [[[6, 4], [3, 2]], [[1, 3], [1, 2]]]
    assert torch.equal(padded.own_sizes_wh(), torch.tensor(expected, dtype=torch.float64))


def test_half_precision_tokens_have_sizes_in_single_precision() -> None:
    # 2049 cells cannot be counted in half precision.
    wide = flatten_levels([(torch.zeros(1, 1, 1, 2049, dtype=torch.bfloat16), None)])
    assert wide.own_sizes_wh().tolist() == [[[2049, 1]]]
