"""Starting a detector from the weights of another: other classes, other numbers of queries."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import MODEL_FILE, find_checkpoint, read_spec
from detr_kit.checkpoints.pretrained import LoadReport
from detr_kit.checkpoints.reading import read_tensors
from detr_kit.errors import DetrKitError

# Tensors (..., rows, D) whose last rows are one for each query.
_QUERY_ROWS = frozenset(
    {"queries.weight", "backbone.det_token", "backbone.pos_embed", "backbone.mid_pos_embed"}
)


def load_for_finetuning(
    model: nn.Module, checkpoint: str | Path, categories: CategoryTable
) -> LoadReport:
    """Copy the weights of a detector checkpoint, or of a run's best one, into `model`.

    Class columns are matched by category name; the columns of new categories keep their
    initialisation. With another number of queries the first ones are kept. Raises DetrKitError
    that lists every other tensor whose shape differs.
    """
    folder = find_checkpoint(checkpoint)
    source_categories = read_spec(folder).categories
    source = read_tensors(folder / MODEL_FILE)
    own = model.state_dict()
    class_keys = _class_keys(own)
    queries = (_num_queries(own), _num_queries(source))
    loaded, partly, wrong = [], [], []
    merged: dict[str, Tensor] = {}
    for name in own.keys() & source.keys():
        tensor, given = own[name], source[name]
        if name in class_keys and tensor.shape[1:] == given.shape[1:]:
            merged[name] = _match_classes(tensor, given, categories, source_categories)
            partly.append(name)
        elif given.shape == tensor.shape:
            merged[name] = given
            loaded.append(name)
        elif name in _QUERY_ROWS and _without_queries(tensor, queries[0]) == _without_queries(
            given, queries[1]
        ):
            merged[name] = _keep_first_queries(tensor, given, *queries)
            partly.append(name)
        else:
            wrong.append(f"{name} {tuple(given.shape)} for {tuple(tensor.shape)}")
    if wrong:
        raise DetrKitError(
            f"{folder}: tensors of other shapes than the configured model's: "
            f"{', '.join(sorted(wrong))}"
        )
    model.load_state_dict(merged, strict=False)
    return LoadReport(
        source=str(folder),
        loaded=tuple(sorted(loaded)),
        missing=tuple(sorted(own.keys() - source.keys())),
        dropped=tuple(sorted(source.keys() - own.keys())),
        partial=tuple(sorted(partly)),
    )


def _class_keys(own: dict[str, Tensor]) -> set[str]:
    """The tensors whose rows are class columns: the class head's last layer."""
    prefix = "heads.class_head.layers."
    layers = [int(name.removeprefix(prefix).split(".")[0]) for name in own if prefix in name]
    return {f"{prefix}{max(layers)}.{part}" for part in ("weight", "bias")}


def _num_queries(tensors: dict[str, Tensor]) -> int:
    rows = next(name for name in ("queries.weight", "backbone.det_token") if name in tensors)
    return tensors[rows].shape[-2]


def _match_classes(
    own: Tensor, given: Tensor, categories: CategoryTable, source_categories: CategoryTable
) -> Tensor:
    column_of = {name: column for column, name in enumerate(source_categories.names)}
    merged = own.clone()
    for column, name in enumerate(categories.names):
        if name in column_of:
            merged[column] = given[column_of[name]]
    merged[-1] = given[-1]  # no object
    return merged


def _without_queries(tensor: Tensor, queries: int) -> tuple[int, ...]:
    """Return the shape with the rows of queries taken off; they are the last rows."""
    return (*tensor.shape[:-2], tensor.shape[-2] - queries, tensor.shape[-1])


def _keep_first_queries(own: Tensor, given: Tensor, queries: int, given_queries: int) -> Tensor:
    before = own.shape[-2] - queries  # class token and patches, where there are any
    kept = before + min(queries, given_queries)
    merged = own.clone()
    merged[..., :kept, :] = given[..., :kept, :]
    return merged
