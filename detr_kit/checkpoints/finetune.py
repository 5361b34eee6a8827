"""Starting a detector from the weights of another: other classes, queries or picture sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.listing import listed
from detr_kit.checkpoints.opened import (
    ALL_GROUPS,
    FURTHER_GROUPS,
    OpenedCheckpoint,
    class_tables,
)
from detr_kit.checkpoints.report import LoadReport
from detr_kit.errors import DetrKitError
from detr_kit.models.resampling import resample_grid
from detr_kit.sizes import SizeHW

# Tables (..., G * Q, D) of which each row belongs to a query, group after group.
_QUERY_KEYS = frozenset({"queries.weight", "backbone.det_token", *ALL_GROUPS, *FURTHER_GROUPS})
# Tables (..., 1 + P + Q, D) of class token, patches and queries, by the setting of their size.
_POSITION_KEYS = {
    "backbone.pos_embed": "position_size_hw",
    "backbone.mid_pos_embed": "mid_position_size_hw",
}
_SELECTING_HEAD = "queries.heads.class_head."
# Settings that change what the same weights compute, or how many of them there are, each with what
# it is in checkpoints that do not name it.
_SILENT_SETTINGS = {
    "centered_positions": True,
    "cross_attention": None,
    "decoder_layers": None,
    "decoder_norm": None,
    "shared_heads": None,
    "temperature": None,
    "depth": None,
    "dilation": None,
    "encoder": None,
    "encoder_layers": None,
    "level_norm": None,
    "norm_eps": None,
    "num_heads": None,
    "position_encoding": None,
    "positions_at_input": None,
    "pre_norm": None,
    "query_positions": None,
    "query_selection": None,
    "refinement": None,
    "scoring": "softmax",
}


def load_for_finetuning(
    model: nn.Module,
    architecture: Mapping[str, Any],
    opened: OpenedCheckpoint,
    categories: CategoryTable,
) -> LoadReport:
    """Copy what fits of a detector's weights into `model`, which has `architecture`'s numbers.

    Class columns are matched by name, whatever their order and letter case, in every head; the
    columns of new categories keep their initialisation. With another number of queries the first
    ones of each group are kept; position tables of another grid are resampled. Layers that only one
    side has are left as initialised, or dropped, and said. Raises DetrKitError for another family
    or backbone, and where another tensor's shape differs; the model is then untouched.
    """
    theirs = opened.spec.architecture
    require_same_kind(architecture, opened)
    own, source = model.state_dict(), opened.tensors
    columns = _kept_columns(categories, opened.spec.categories)
    class_keys = {*class_tables(own)}
    sizes = (len(categories), len(opened.spec.categories))
    query_keys = _query_keys(architecture, theirs)
    queries = (architecture["num_queries"], theirs["num_queries"])
    merged: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name in sorted(own.keys() & source.keys()):
        tensor, given = own[name], source[name]
        if name in class_keys and tensor.shape[1:] == given.shape[1:]:
            moves = _columns_of(name, columns, architecture, theirs)
            merged[name] = _match_classes(tensor, given, moves, sizes)
        elif name in query_keys and _tables_agree(tensor, given):
            merged[name] = _first_queries(tensor, given, queries)
        elif name in _POSITION_KEYS and _tables_agree(tensor, given):
            layouts = (_layout(name, numbers) for numbers in (architecture, theirs))
            merged[name] = _fit_positions(tensor, given, *layouts)
        elif tensor.shape == given.shape:
            merged[name] = given
        else:
            wrong.append(f"{name} {tuple(given.shape)} for {tuple(tensor.shape)}")
    if wrong:
        raise DetrKitError(
            f"{opened.source}: tensors of other shapes than the configured model's: {listed(wrong)}"
        )
    model.load_state_dict(merged, strict=False)
    return LoadReport(
        source=opened.source,
        loaded=tuple(name for name in merged if merged[name] is source[name]),
        missing=tuple(sorted(own.keys() - source.keys())),
        dropped=tuple(sorted(source.keys() - own.keys())),
        partial=tuple(name for name in merged if merged[name] is not source[name]),
        notes=_notes(architecture, opened, categories, columns, query_keys & merged.keys()),
    )


def require_same_kind(architecture: Mapping[str, Any], opened: OpenedCheckpoint) -> None:
    """Raise DetrKitError where the weights are of another family or of another backbone."""
    theirs = opened.spec.architecture
    for key in ("family", "backbone"):
        if architecture.get(key) != theirs.get(key):
            raise DetrKitError(
                f"{opened.source}: its {key} is {theirs.get(key)}, but the configured model's is "
                f"{architecture.get(key)}"
            )


def _kept_columns(own: CategoryTable, source: CategoryTable) -> dict[int, int]:
    """Return our column to the source's, for the categories that both name."""
    column_of = {
        name.strip().casefold(): column
        for column, (name, used) in enumerate(zip(source.names, source.used, strict=True))
        if used
    }
    return {
        column: column_of[name.strip().casefold()]
        for column, name in enumerate(own.names)
        if name.strip().casefold() in column_of
    }


def _columns_of(
    name: str, columns: dict[int, int], own: Mapping[str, Any], source: Mapping[str, Any]
) -> dict[int, int]:
    """Return where the rows of one class table come from.

    A two-stage Deformable DETR chooses its queries by the first column, which stands for all
    categories there whatever its name is; the others of that head are never read.
    """
    if name.startswith(_SELECTING_HEAD) and _proposes(own) and _proposes(source):
        return {**columns, 0: 0}
    return columns


def _proposes(architecture: Mapping[str, Any]) -> bool:
    return architecture.get("query_positions") == "proposal"


def _match_classes(
    own: Tensor, given: Tensor, columns: Mapping[int, int], sizes: tuple[int, int]
) -> Tensor:
    """Return the kept columns' rows; all of `given` if nothing moves.

    `sizes` count the categories of both sides. A row after them is that of `no object`, which is
    kept where both have one; heads with sigmoids have none.
    """
    if len(own) == len(given) and columns == {column: column for column in range(sizes[0])}:
        return given
    merged = own.clone()
    for column, source_column in columns.items():
        merged[column] = given[source_column]
    if len(own) > sizes[0] and len(given) > sizes[1]:
        merged[-1] = given[-1]
    return merged


def _query_keys(own: Mapping[str, Any], source: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the tables of queries.

    A two-stage Deformable DETR has none, but a layer of one of these names.
    """
    return frozenset() if _proposes(own) or _proposes(source) else _QUERY_KEYS


def _first_queries(own: Tensor, given: Tensor, queries: tuple[int, int]) -> Tensor:
    """Return a table (..., G * Q, D) with the first queries of the first groups from `given`.

    `queries` are the numbers of a group's queries on both sides.
    """
    if own.shape == given.shape and queries[0] == queries[1]:
        return given
    merged = own.clone()
    ours, theirs = (
        table.unflatten(-2, (-1, count))
        for table, count in zip((merged, given), queries, strict=True)
    )
    groups, kept = (min(ours.shape[dim], theirs.shape[dim]) for dim in (-3, -2))
    ours[..., :groups, :kept, :] = theirs[..., :groups, :kept, :]
    return merged


def _tables_agree(own: Tensor, given: Tensor) -> bool:
    """Whether two tables differ in their number of rows at most."""
    return own.shape[:-2] == given.shape[:-2] and own.shape[-1] == given.shape[-1]


def _layout(name: str, architecture: Mapping[str, Any]) -> tuple[SizeHW, int]:
    """Return a position table's grid of patches, and its number of queries."""
    height, width = architecture[_POSITION_KEYS[name]]
    patch = architecture["patch_size"]
    return (height // patch, width // patch), architecture["num_queries"]


def _fit_positions(
    own: Tensor, given: Tensor, layout: tuple[SizeHW, int], given_layout: tuple[SizeHW, int]
) -> Tensor:
    if layout == given_layout:
        return given
    (grid, queries), (given_grid, given_queries) = layout, given_layout
    table = given.flatten(0, -3)  # (L, 1 + P + Q, D)
    patches = resample_grid(table[:, 1:-given_queries], given_grid, grid).flatten(1, 2)
    counts = (queries, given_queries)
    of_queries = _first_queries(own.flatten(0, -3)[:, -queries:], table[:, -given_queries:], counts)
    return torch.cat([table[:, :1], patches, of_queries], dim=1).view(own.shape)


def _notes(
    architecture: Mapping[str, Any],
    opened: OpenedCheckpoint,
    categories: CategoryTable,
    columns: Mapping[int, int],
    query_tables: Collection[str],
) -> tuple[str, ...]:
    """Say what became of classes, queries and positions, and which settings differ.

    `query_tables` names the tables of queries that both sides have.
    """
    theirs = opened.spec.architecture
    kept = [categories.names[column] for column in columns]
    new = [name for column, name in enumerate(categories.names) if column not in columns]
    notes = [
        f"classes: {len(kept)} of {len(categories)} kept by name"
        + (f" ({listed(kept)})" if kept else "")
        + (f", new: {listed(new)}" if new else "")
    ]
    if query_tables:
        groups, given_groups = (side.get("groups", 1) for side in (architecture, theirs))
        where = " in each group" if min(groups, given_groups) > 1 else ""
        notes += _kept("queries", architecture["num_queries"], theirs["num_queries"], where)
        notes += _kept("groups", groups, given_groups)
    for name, setting in _POSITION_KEYS.items():
        if architecture.get(setting) and theirs.get(setting):
            grid, given_grid = _layout(name, architecture)[0], _layout(name, theirs)[0]
            if grid != given_grid:
                notes.append(
                    f"positions: {setting} resampled from {given_grid[0]} x {given_grid[1]} "
                    f"patches to {grid[0]} x {grid[1]}"
                )
    for key, default in _SILENT_SETTINGS.items():
        mine, other = architecture.get(key, default), theirs.get(key, default)
        if mine is not None and other is not None and mine != other:
            notes.append(
                f"warning: {key} is {mine} here and {other} in the checkpoint, whose weights were "
                "made for that"
            )
    return (*notes, *opened.notes)


def _kept(what: str, own: int, given: int, where: str = "") -> list[str]:
    if own == given:
        return []
    new = f", {own - given} new" if own > given else ""
    return [f"{what}: the first {min(own, given)} of {given} kept{where}{new}"]
