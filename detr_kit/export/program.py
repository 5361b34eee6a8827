"""A detector as one graph of PyTorch's own operators, by `torch.export`.

The graph holds for any number and size of pictures, and needs nothing of detr_kit to run:

    program = torch.export.load("detector.pt2")
    found = program.module()(pixels, padding_mask)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError
from detr_kit.export.graphs import GRAPHS, Graph
from detr_kit.files import atomic_write
from detr_kit.models.backbones import Backbone
from detr_kit.models.deformable_detr import DeformableDETR
from detr_kit.models.detr import DETR
from detr_kit.models.positions import LearnedPositions
from detr_kit.models.queries import Queries
from detr_kit.models.tracing import traceable_copy
from detr_kit.models.yolos import YOLOS
from detr_kit.postprocess import require_columns

Family = DETR | YOLOS | DeformableDETR


def export_program(
    model: nn.Module, categories: CategoryTable, *, mask: bool = True, postprocess: bool = False
) -> ExportedProgram:
    """Trace a detector of any family for any number and size of pictures.

    Inputs, by position: `pixels` (B, 3, H, W) in the parameters' precision, normalised, zero on
    padding; with `mask`, `padding_mask` (B, H, W) bool, True right of and below each picture; with
    `postprocess`, `original_sizes_hw` (B, 2) int64, the sizes that boxes are scaled to. Without
    `mask` every picture fills the batch, which is faster.

    The program returns a dict. Without `postprocess`: `scores` (B, Q, C) probabilities without
    `no object`, by softmax or sigmoid as the model scores, 0 in columns that stand for no category,
    and `boxes_cxcywh` (B, Q, 4) in [0, 1] of each unpadded picture. With it: `boxes_xyxy` (B, Q, 4)
    in pixels of the original sizes, `scores` (B, Q) and `category_ids` (B, Q) int64, best score
    first. Numbers are those of the model in evaluation, but nothing looks for broken ones. The
    program runs on the model's device; the model stays as it is.

    Sides are at least a patch of a YOLOS, and at most what learned positions of a DETR cover.

    Raises DetrKitError for another kind of model, where the categories do not fit the head, and
    for a timm CNN that cannot be exported, or not with a mask.
    """
    if not isinstance(model, DETR | YOLOS | DeformableDETR):
        raise DetrKitError(
            f"a {type(model).__name__} cannot be exported: it is no DETR, YOLOS or DeformableDETR"
        )
    require_columns(model.num_columns, categories, model.scoring)
    copied = traceable_copy(model, mask=mask)
    if isinstance(copied, DeformableDETR):
        copied.decoder.register_forward_pre_hook(_with_queries_in_order)
    graph = GRAPHS[mask, postprocess](copied, categories)
    inputs = _examples(model, mask=mask, postprocess=postprocess)
    least, most = _limits(model)
    if not isinstance(model, YOLOS) and model.backbone.name.startswith("timm/"):
        return _traced_timm(graph, inputs, model.backbone, most)
    return _traced(graph, inputs, least, most)


def save_program(program: ExportedProgram, path: str | Path) -> None:
    """Write a program to a `.pt2` file; `torch.export.load` reads it back.

    Raises DetrKitError for another ending, which PyTorch would complain about in reading.
    """
    if Path(path).suffix != ".pt2":
        raise DetrKitError(f"{path}: a program's file ends in .pt2")
    with atomic_write(path) as temporary:
        torch.export.save(program, temporary)


def _with_queries_in_order(decoder: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Lay out queries that all pictures share for each: products with a view ask how many."""
    queries: Queries = inputs[0]
    content = queries.content.clone(memory_format=torch.contiguous_format)
    return replace(queries, content=content), *inputs[1:]


def _examples(model: Family, *, mask: bool, postprocess: bool) -> dict[str, Tensor]:
    """Return inputs of two pictures whose sides are no multiples of anything, in order."""
    stride = _stride(model)
    pixels = next(model.parameters()).new_zeros(2, 3, 3 * stride + 5, 4 * stride + 7)
    inputs = {"pixels": pixels}
    if mask:
        inputs["padding_mask"] = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
    if postprocess:
        inputs["original_sizes_hw"] = torch.ones_like(pixels[:, 0, 0, :2], dtype=torch.int64)
    return inputs


def _stride(model: Family) -> int:
    return model.backbone.patch_size if isinstance(model, YOLOS) else model.backbone.stride


def _limits(model: Family) -> tuple[int, int | None]:
    """Return the least and the most that a side of a batch may have."""
    if isinstance(model, YOLOS):
        return model.backbone.patch_size, None
    if isinstance(model, DETR) and isinstance(model.positions, LearnedPositions):
        return 1, model.backbone.stride * model.positions.rows.num_embeddings
    return 1, None


class _ForgottenAnswers(TorchFunctionMode):
    """Lets two operators ask about sizes that are symbols without holding the program to it.

    Older PyTorch asks whether a pooling's stride divides a side, and whether an attention
    mask is of a single picture, though neither the result nor its shape depends on the answer.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Rounded up, the shape of a pooling does depend on it.
        pools = func is F.max_pool2d and not kwargs.get("ceil_mode")
        if not pools and func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        size = args[0].shape[0] if args else None
        if not isinstance(size, torch.SymInt):
            return func(*args, **kwargs)
        shape_env: Any = size.node.shape_env
        with shape_env.suppress_guards():
            return func(*args, **kwargs)


def _traced(
    graph: Graph, inputs: dict[str, Tensor], least: int, most: int | None
) -> ExportedProgram:
    batch = Dim("batch", min=1)
    height, width = (Dim(name, min=least, max=most) for name in ("height", "width"))
    dynamic = {
        "pixels": {0: batch, 2: height, 3: width},
        "padding_mask": {0: batch, 1: height, 2: width},
        "original_sizes_hw": {0: batch},
    }
    # Without it, a batch of one and a side of one cell would be taken for special cases.
    open_sizes = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), open_sizes, _ForgottenAnswers():
        return torch.export.export(
            graph.to(inputs["pixels"].device),
            tuple(inputs.values()),
            dynamic_shapes={name: dynamic[name] for name in inputs},
            strict=False,
        )


def _traced_timm(
    graph: Graph, inputs: dict[str, Tensor], backbone: Backbone, most: int | None
) -> ExportedProgram:
    """Trace a CNN that may do anything, and see whether the result takes a single picture."""
    try:
        program = _traced(graph, inputs, 1, most)
        program.module()(*(examples[:1] for examples in inputs.values()))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise DetrKitError(
            f"{backbone.name} cannot be exported for pictures of any number and size: {reason}"
        ) from error
    return program
