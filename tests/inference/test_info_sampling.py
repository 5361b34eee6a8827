from __future__ import annotations

import torch
from torch import Tensor, nn

from detr_kit.inference.info import count_gflops
from detr_kit.models.deformable_attention import DeformableAttention
from detr_kit.models.pyramid import Pyramid
from detr_kit.structures import ImageBatch

DIM, QUERIES, POINTS, LEVELS_HW = 16, 7, 3, ((4, 5), (2, 3))


class Looking(nn.Module):
    """Deformable attention to nothing, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = DeformableAttention(DIM, 2, len(LEVELS_HW), POINTS)

    def forward(self, images: ImageBatch) -> Tensor:
        tokens = torch.zeros(1, sum(height * width for height, width in LEVELS_HW), DIM)
        reference = torch.full((1, QUERIES, 2), 0.5)
        query = torch.zeros(1, QUERIES, DIM)
        return self.attention(query, reference, Pyramid(tokens, LEVELS_HW))


def test_the_points_that_deformable_attention_adds_up_are_counted() -> None:
    tokens = sum(height * width for height, width in LEVELS_HW)
    points = 2 * len(LEVELS_HW) * POINTS  # of all heads
    projections = tokens * DIM * DIM + QUERIES * DIM * DIM
    where_and_how_much = QUERIES * DIM * points * 3
    four_cells_each = QUERIES * points * 4 * (DIM // 2)
    expected = projections + where_and_how_much + four_cells_each
    assert count_gflops(Looking(), (8, 8)) * 1e9 == expected
