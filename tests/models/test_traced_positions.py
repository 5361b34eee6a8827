from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from detr_kit.models.resampling import bicubic_matrices, resample_grid
from detr_kit.structures import ImageBatch, TracedBatch


@given(
    before=st.integers(1, 90),
    sides=st.lists(st.integers(0, 100), min_size=1, max_size=4),
    more=st.integers(0, 3),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_matrices_are_those_of_the_resampling(
    before: int, sides: list[int], more: int, dtype: torch.dtype
) -> None:
    cells = max(sides) + more
    matrices = bicubic_matrices(before, torch.tensor(sides), cells, dtype)
    assert matrices.shape == (len(sides), cells, before)
    assert matrices.dtype == dtype
    column = torch.eye(before, dtype=torch.float64).unsqueeze(0)
    for matrix, side in zip(matrices, sides, strict=True):
        assert not matrix[side:].any()
        if side:
            expected = resample_grid(column, (before, 1), (side, 1))[0, :, 0].to(dtype)
            tolerance = 1e-12 if dtype == torch.float64 else 1e-6
            torch.testing.assert_close(matrix[:side], expected, rtol=0, atol=tolerance)


def test_a_grid_of_the_table_itself_is_kept_exactly() -> None:
    matrices = bicubic_matrices(54, torch.tensor([54]), 60, torch.float32)
    assert torch.equal(matrices[0, :54], torch.eye(54))


@pytest.mark.parametrize("padding", ["independent", "official"])
@pytest.mark.parametrize("table", ["first", "mid"])
def test_positions_are_those_of_each_picture(
    build: Callable[..., nn.Module],
    make_batch: Callable[..., ImageBatch],
    padding: str,
    table: str,
) -> None:
    vit = build("yolos_small", padding=padding).double().backbone
    # The second batch has a grid that the official model takes the positions for as they are.
    for sizes in (((97, 141), (64, 96), (24, 31)), ((128, 96), (50, 60))):
        batch = make_batch(*sizes, dtype=torch.float64)
        mask, *positions = vit._lay_out(batch)
        traced_mask, *traced = vit._lay_out_traced(TracedBatch(batch.pixels, batch.padding_mask))
        assert (mask is None) == (traced_mask is None) == (padding == "official")
        if mask is not None:
            assert torch.equal(mask, traced_mask)
        for layer in range(2) if table == "mid" else (0,):
            expected, found = (
                parts[table == "mid"].of_layer(layer) for parts in (positions, traced)
            )
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
