"""The modules that are exported: a model, and what makes detections of its output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detr_kit.boxes import cxcywh_to_xyxy
from detr_kit.categories import CategoryTable
from detr_kit.postprocess import best_pairs, probabilities_of
from detr_kit.structures import TracedBatch


class Graph(nn.Module):
    """What the four kinds share; their inputs are named as in `detr_kit.export.program`."""

    used: Tensor
    ids: Tensor

    def __init__(self, model: nn.Module, categories: CategoryTable) -> None:
        super().__init__()
        self.model = model
        self.scoring = model.scoring
        self.register_buffer("used", torch.tensor(categories.used))
        self.register_buffer("ids", torch.tensor(categories.ids))

    def scored(self, batch: TracedBatch) -> dict[str, Tensor]:
        """Return the probabilities of every category, 0 where a column stands for none."""
        probabilities, boxes_cxcywh = self._found(batch)
        scores = probabilities.masked_fill(~self.used, 0.0)
        return {"scores": scores, "boxes_cxcywh": boxes_cxcywh}

    def detections(self, batch: TracedBatch, original_sizes_hw: Tensor) -> dict[str, Tensor]:
        """Do what `detr_kit.postprocess.to_detections` does, but look for broken values."""
        probabilities, boxes_cxcywh = self._found(batch)
        # -1: a column that stands for no category is never the best one.
        probabilities = probabilities.masked_fill(~self.used, -1.0)
        if self.scoring == "sigmoid":
            scores, columns, order = best_pairs(probabilities)
        else:
            scores, columns = probabilities.max(dim=-1)
            scores, order = scores.sort(dim=-1, descending=True, stable=True)
            columns = columns.gather(1, order)
        size_whwh = original_sizes_hw.flip(1).repeat(1, 2).unsqueeze(1)  # (B, 1, 4)
        boxes_xyxy = cxcywh_to_xyxy(boxes_cxcywh) * size_whwh.to(boxes_cxcywh.dtype)
        return {
            "boxes_xyxy": boxes_xyxy.gather(1, order.unsqueeze(-1).expand(-1, -1, 4)),
            "scores": scores,
            "category_ids": self.ids[columns],
        }

    def _found(self, batch: TracedBatch) -> tuple[Tensor, Tensor]:
        """Return (B, Q, C) probabilities without `no object`, and (B, Q, 4) boxes."""
        output = self.model(batch, all_layers=False)
        return probabilities_of(output), output.boxes_cxcywh


class UnpaddedScores(Graph):
    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.scored(TracedBatch(pixels))


class PaddedScores(Graph):
    def forward(self, pixels: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        return self.scored(TracedBatch(pixels, padding_mask))


class UnpaddedDetections(Graph):
    def forward(self, pixels: Tensor, original_sizes_hw: Tensor) -> dict[str, Tensor]:
        return self.detections(TracedBatch(pixels), original_sizes_hw)


class PaddedDetections(Graph):
    def forward(
        self, pixels: Tensor, padding_mask: Tensor, original_sizes_hw: Tensor
    ) -> dict[str, Tensor]:
        return self.detections(TracedBatch(pixels, padding_mask), original_sizes_hw)


# By whether there is a mask, and whether there is post-processing.
GRAPHS: dict[tuple[bool, bool], type[Graph]] = {
    (False, False): UnpaddedScores,
    (True, False): PaddedScores,
    (False, True): UnpaddedDetections,
    (True, True): PaddedDetections,
}
