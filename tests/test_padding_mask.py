from __future__ import annotations

import pytest
import torch

from detr_kit.structures import padding_mask_of


@pytest.mark.parametrize("sizes_hw", [((4, 5), (4, 5)), ((4, 5), (2, 3)), ((3, 5), (4, 1))])
def test_the_mask_is_true_outside_each_image(sizes_hw: tuple[tuple[int, int], ...]) -> None:
    mask = padding_mask_of(sizes_hw, (4, 5), "cpu")
    assert (mask.shape, mask.dtype) == ((2, 4, 5), torch.bool)
    for own, (height, width) in zip(mask, sizes_hw, strict=True):
        assert not own[:height, :width].any()
        assert own[height:].all()
        assert own[:, width:].all()


def test_no_images() -> None:
    assert padding_mask_of((), (0, 0), "cpu").shape == (0, 0, 0)
