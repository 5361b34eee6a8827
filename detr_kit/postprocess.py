"""From a model's output to detections: the only place that makes pixels of boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detr_kit.boxes import cxcywh_to_xyxy
from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.sizes import SizeHW
from detr_kit.structures import ModelOutput, Scoring


def to_detections(
    output: ModelOutput,
    original_sizes_hw: Sequence[SizeHW],
    categories: CategoryTable,
    *,
    threshold: float = 0.0,
    image_names: Sequence[str] | None = None,
) -> list[Detections]:
    """Turn the last layer's output into one Detections an image, best score first.

    Softmax: over all columns, `no object` dropped, then the best column that stands for a category
    (DETR paper, section 3, and its official post-processing), one detection a query. Sigmoid: as
    many detections as there are queries, the best of all pairs of query and category, so that a
    query may give several or none (official code of Deformable DETR and RT-DETR). Columns that
    stand for no category give none. Boxes are scaled to the original sizes; what scores below
    `threshold` is left out. Half-precision output is widened to float32, float64 stays so until
    the arrays are made.

    Raises DetrKitError where the head does not fit the categories, or an output is not finite,
    naming the image by `image_names` or its position.
    """
    require_columns(output.logits.shape[-1], categories, output.scoring)
    rows = _scored_boxes(output, categories).cpu().numpy()  # the one transfer of the batch
    names = image_names or [f"{index} of the batch" for index in range(len(rows))]
    broken = [name for name, row in zip(names, rows, strict=True) if not np.isfinite(row).all()]
    if broken:
        raise DetrKitError(f"the model's output is not finite for image {', '.join(broken)}")
    return [
        _image_detections(row, size_hw, categories, threshold)
        for row, size_hw in zip(rows, original_sizes_hw, strict=True)
    ]


def require_columns(columns: int, categories: CategoryTable, scoring: Scoring) -> None:
    """Raise DetrKitError where a class head of so many columns does not fit the categories."""
    if scoring == "sigmoid" and columns != len(categories):
        raise DetrKitError(
            f"the class head has {columns} columns, but there are {len(categories)} categories"
        )
    if scoring == "softmax" and columns != len(categories) + 1:
        raise DetrKitError(
            f"the class head has {columns} columns, but {len(categories)} categories and "
            f"'no object' make {len(categories) + 1}"
        )


def _scored_boxes(output: ModelOutput, categories: CategoryTable) -> Tensor:
    """Return (B, Q, 6) on the device: score, column of the head, box xyxy in [0, 1].

    A column number is exact as a float32 up to 2^24.
    """
    wide = torch.promote_types(output.logits.dtype, torch.float32)
    boxes_cxcywh = output.boxes_cxcywh.to(wide)
    probabilities = probabilities_of(output)
    if not all(categories.used):
        used = torch.tensor(categories.used, device=probabilities.device)
        # -1 instead of a gather: the column numbers stay those of the head, and NaN is kept
        probabilities = probabilities.masked_fill(~used, -1.0)
    if output.scoring == "softmax":
        scores, columns = probabilities.max(dim=-1)
    else:
        scores, columns, query = best_pairs(probabilities)
        # What is broken may be in no row that is taken, or have a sound probability of 1.
        sound = (output.logits < torch.inf).flatten(1).all(1)
        sound &= boxes_cxcywh.isfinite().flatten(1).all(1)
        scores = scores.masked_fill(~sound.unsqueeze(1), torch.nan)
        boxes_cxcywh = boxes_cxcywh.gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
    boxes_xyxy = cxcywh_to_xyxy(boxes_cxcywh)
    return torch.cat([scores.unsqueeze(-1), columns.unsqueeze(-1).to(wide), boxes_xyxy], dim=-1)


def probabilities_of(output: ModelOutput) -> Tensor:
    """Return the last layer's (B, Q, C), without `no object`, in single precision at least."""
    wide = torch.promote_types(output.logits.dtype, torch.float32)
    logits = output.logits.to(wide)
    return logits.softmax(dim=-1)[..., :-1] if output.scoring == "softmax" else logits.sigmoid()


def best_pairs(probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, columns and queries (B, Q) of the best of (B, Q, C), the highest first."""
    _, queries, columns = probabilities.shape
    scores, places = probabilities.flatten(1).topk(queries, dim=1)
    return scores, places % columns, places // columns


def _image_detections(
    rows: np.ndarray, size_hw: SizeHW, categories: CategoryTable, threshold: float
) -> Detections:
    order = np.argsort(-rows[:, 0], kind="stable")
    rows = rows[order][rows[order, 0] >= threshold]
    columns = rows[:, 1].astype(np.int64)
    height, width = size_hw
    return Detections(
        rows[:, 2:] * np.array([width, height, width, height], dtype=rows.dtype),
        rows[:, 0],
        categories.ids_array[columns],
        [categories.names[column] for column in columns],
    )
