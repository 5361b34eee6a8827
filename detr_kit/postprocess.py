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
from detr_kit.structures import ModelOutput


def to_detections(
    output: ModelOutput,
    original_sizes_hw: Sequence[SizeHW],
    categories: CategoryTable,
    *,
    threshold: float = 0.0,
    image_names: Sequence[str] | None = None,
) -> list[Detections]:
    """Turn the last layer's output into one Detections an image, best score first.

    Softmax over all columns, `no object` dropped, then the best column that stands for a category
    (DETR paper, section 3, and its official post-processing); boxes are scaled to the original
    sizes. Every query gives one detection; those scored below `threshold` are left out.
    Half-precision output is widened to float32, float64 stays so until the arrays are made.

    Raises DetrKitError where the head does not fit the categories, or an output is not finite,
    naming the image by `image_names` or its position.
    """
    columns = output.logits.shape[-1]
    if columns != len(categories) + 1:
        raise DetrKitError(
            f"the class head has {columns} columns, but {len(categories)} categories and "
            f"'no object' make {len(categories) + 1}"
        )
    rows = _scored_boxes(output, categories).cpu().numpy()  # the one transfer of the batch
    names = image_names or [f"{index} of the batch" for index in range(len(rows))]
    broken = [name for name, row in zip(names, rows, strict=True) if not np.isfinite(row).all()]
    if broken:
        raise DetrKitError(f"the model's output is not finite for image {', '.join(broken)}")
    return [
        _image_detections(row, size_hw, categories, threshold)
        for row, size_hw in zip(rows, original_sizes_hw, strict=True)
    ]


def _scored_boxes(output: ModelOutput, categories: CategoryTable) -> Tensor:
    """Return (B, Q, 6) on the device: score, column of the head, box xyxy in [0, 1].

    A column number is exact as a float32 up to 2^24.
    """
    wide = torch.promote_types(output.logits.dtype, torch.float32)
    probabilities = output.logits.to(wide).softmax(dim=-1)[..., :-1]  # (B, Q, C)
    if not all(categories.used):
        used = torch.tensor(categories.used, device=probabilities.device)
        # -1 instead of a gather: the column numbers stay those of the head, and NaN is kept
        probabilities = probabilities.masked_fill(~used, -1.0)
    scores, columns = probabilities.max(dim=-1)
    boxes_xyxy = cxcywh_to_xyxy(output.boxes_cxcywh.to(wide))
    return torch.cat([scores.unsqueeze(-1), columns.unsqueeze(-1).to(wide), boxes_xyxy], dim=-1)


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
