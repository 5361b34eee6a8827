from __future__ import annotations

import math

import pytest
import torch

from detr_kit.errors import DetrKitError
from detr_kit.models.positions import LearnedPositions, SinePositions


def test_sine_values_by_hand() -> None:
    encoded = SinePositions(8)(torch.zeros(1, 2, 4, dtype=torch.bool), torch.float64)
    assert encoded.shape == (1, 2, 4, 8)
    row, column = (1 / 2) * 2 * math.pi, (3 / 4) * 2 * math.pi  # cell (0, 2), counted from one
    expected = []
    for angle in (row, column):
        expected += [math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)]
    torch.testing.assert_close(
        encoded[0, 0, 2], torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_sine_ignores_padding() -> None:
    positions = SinePositions(16)
    mask = torch.ones(2, 5, 6, dtype=torch.bool)
    mask[0, :3, :4] = False
    mask[1] = False
    alone = positions(torch.zeros(1, 3, 4, dtype=torch.bool), torch.float64)
    assert torch.equal(positions(mask, torch.float64)[:1, :3, :4], alone)


def test_learned_positions_are_columns_then_rows() -> None:
    positions = LearnedPositions(6)
    encoded = positions(torch.zeros(2, 3, 4, dtype=torch.bool), torch.float32)
    assert encoded.shape == (1, 3, 4, 6)
    assert torch.equal(encoded[0, 2, 1, :3], positions.columns.weight[1])
    assert torch.equal(encoded[0, 2, 1, 3:], positions.rows.weight[2])
    with pytest.raises(DetrKitError, match="3 x 51 cells is larger than the table of 50"):
        positions(torch.zeros(1, 3, 51, dtype=torch.bool), torch.float32)


def test_sine_positions_without_padding_are_remembered() -> None:
    positions = SinePositions(8)
    encoded = positions.of_size((3, 4), torch.float32, torch.device("cpu"))
    assert positions.of_size((3, 4), torch.float32, torch.device("cpu")) is encoded
    assert torch.equal(encoded, positions(torch.zeros(1, 3, 4, dtype=torch.bool), torch.float32))
    wide = positions.of_size((3, 4), torch.float64, torch.device("cpu"))
    assert wide.dtype == torch.float64
    assert positions.of_size((4, 3), torch.float32, torch.device("cpu")).shape == (1, 4, 3, 8)
