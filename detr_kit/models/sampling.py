"""Sums of values that are sampled bilinearly from several feature maps.

Two forms compute the same. A GPU, a compiler and an exporter take PyTorch's own bilinear sampling,
a map at a time. A CPU takes weighted sums of rows (`F.embedding_bag`): the four cells around a
point are rows of d numbers that lie together, whereas a map has them apart, channel by channel.

Shape legend: B images, N queries, K levels, P points a level, S tokens of all levels together,
D channels, h heads of d = D / h channels each, M = B * N * h.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detr_kit.sizes import SizeHW

# So many points, or those of an image, a CPU samples at a time: they stay in its cache, and what
# they need on the way is not handed back to the system, which would take as long as all the rest.
_POINTS = 1 << 14
# Points a cell and head from which on it is quicker to sort points than the cells around them.
_CROWDED = 4
_MAX_ROWS = 1 << 29


def sample(values: Tensor, cells: Tensor, shares: Tensor, sizes_hw: tuple[SizeHW, ...]) -> Tensor:
    """Add up bilinearly sampled values, each times its share, and return (B, N, D).

    `values` is (B, S, h, d); `cells` (B, N, h, K, P, 2) are (x, y) in cells of the levels, 0 at
    the centre of the first one; `shares` is (B, N, h, K, P). All are of one floating dtype.
    Outside the maps everything is zero.
    """
    if not _is_for_rows(values, cells):
        return sample_maps(values, cells, shares, sizes_hw)
    images = max(1, _POINTS * len(cells) // shares.numel())
    if images >= len(cells):
        return _RowSampling.apply(values, cells, shares, sizes_hw)
    parts = zip(*(x.split(images) for x in (values, cells, shares)), strict=True)
    return torch.cat([_RowSampling.apply(*part, sizes_hw) for part in parts])


def sample_maps(
    values: Tensor, cells: Tensor, shares: Tensor, sizes_hw: tuple[SizeHW, ...]
) -> Tensor:
    """Do what `sample` does by `F.grid_sample`."""
    mixed = []
    for level, (rows, (height, width)) in enumerate(
        zip(values.split([height * width for height, width in sizes_hw], 1), sizes_hw, strict=True)
    ):
        # Laid out anew first: a view of a view would ask whether sizes that are symbols are 1.
        by_head = rows.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        maps = by_head.unflatten(3, (height, width)).flatten(0, 1)  # (B * h, d, height, width)
        x, y = cells[:, :, :, level].transpose(1, 2).flatten(0, 1).unbind(-1)  # (B * h, N, P)
        places = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
        sampled = F.grid_sample(maps, places, align_corners=False)  # (B * h, d, N, P)
        share = shares[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)
        mixed.append((sampled * share).sum(-1))
    of_heads = torch.stack(mixed).sum(0).unflatten(0, (-1, values.shape[2]))  # (B, h, d, N)
    return of_heads.permute(0, 3, 1, 2).flatten(2)


def _is_for_rows(values: Tensor, cells: Tensor) -> bool:
    return (
        values.device.type == "cpu"
        and values.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and cells.numel() > 0
        and max(values.shape[:-1].numel(), 2 * cells.numel()) < _MAX_ROWS
    )


class _Layout:
    """Where the cells of the levels lie among the rows of a table, and its constants for points.

    Each level has a border of zeros, one cell wide. Rows are counted by image, cell and head, in
    32 bits, with which sums of rows are twice as fast.
    """

    def __init__(self, sizes_hw: tuple[SizeHW, ...], heads: int, points: int) -> None:
        self.sizes_hw = sizes_hw
        self.heads = heads
        widths = torch.tensor([width for _, width in sizes_hw], dtype=torch.int32)
        heights = torch.tensor([height for height, _ in sizes_hw], dtype=torch.int32)
        areas = (widths + 2) * (heights + 2)
        self.cells = int(areas.sum())
        starts = areas.cumsum(0, dtype=torch.int32) - areas + widths + 3  # of the cells (0, 0)
        # Of the points of a head, (K * P,); `first` of all heads' points, (h * K * P,).
        self.sides = torch.stack([widths, heights], 1).repeat_interleave(points, 0)  # (K * P, 2)
        self.below = ((widths + 2) * heads).repeat_interleave(points)
        of_heads = torch.arange(heads, dtype=torch.int32).unsqueeze(1)
        self.first = (starts.repeat_interleave(points) * heads + of_heads).flatten()

    def table(self, values: Tensor) -> Tensor:
        """(B, S, h, d) -> (B * cells * h, d), with the borders."""
        table = values.new_zeros(values.shape[0], self.cells, *values.shape[2:])
        inner = [bordered[:, 1:-1, 1:-1] for bordered in self.split(table)]
        areas = [height * width for height, width in self.sizes_hw]
        for part, rows, size_hw in zip(inner, values.split(areas, 1), self.sizes_hw, strict=True):
            part.copy_(rows.unflatten(1, size_hw))
        return table.flatten(0, 2)

    def sides_of(self, cells: Tensor) -> Tensor:
        """Return the width and height of each point's level in the dtype of the points."""
        return self.sides.to(cells.dtype).view(*cells.shape[3:])

    def places(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return each point's row above and to the left (M, K * P) and how far it is (.., 2).

        Whatever lies outside is brought to the border. NaN stays in the distance.
        """
        sides = self.sides_of(cells)
        limited = torch.minimum(cells.clamp(min=-1), sides)
        place = torch.fmin(limited.floor(), sides - 1)
        fraction = limited.sub_(place)
        x, y = place.to(torch.int32).unbind(-1)  # (B, N, h, K, P)
        base = (y.flatten(3) * self.below).add_(x.flatten(3), alpha=self.heads).flatten(2)
        base += self.first
        base += torch.arange(len(base), dtype=torch.int32).view(-1, 1, 1) * (
            self.cells * self.heads
        )
        points = len(self.below)
        return base.view(-1, points), fraction.view(-1, points, 2)

    def split(self, table: Tensor) -> list[Tensor]:
        """(B, cells, h, d) -> views (B, height + 2, width + 2, h, d), one a level."""
        sizes_hw = [(height + 2, width + 2) for height, width in self.sizes_hw]
        parts = table.split([height * width for height, width in sizes_hw], 1)
        return [part.unflatten(1, size) for part, size in zip(parts, sizes_hw, strict=True)]

    def corners(self, base: Tensor) -> Tensor:
        """Return the rows of the four cells around points, (M, K * P) -> (M, 4 * K * P).

        `base` are those of the cells above and to the left.
        """
        rows = base.new_empty(base.shape[0], 4, base.shape[1])
        rows[:, 0] = base
        torch.add(base, self.heads, out=rows[:, 1])
        torch.add(base, self.below, out=rows[:, 2])
        torch.add(rows[:, 2], self.heads, out=rows[:, 3])
        return rows.flatten(1)


class _RowSampling(torch.autograd.Function):
    """`sample` by weighted sums of rows, in both passes.

    Backward, the queries' gradients are the rows, and each cell sums those of the points around it,
    for which these are sorted by cell.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, cells: Tensor, shares: Tensor, sizes_hw: tuple[SizeHW, ...]
    ) -> Tensor:
        layout = _Layout(sizes_hw, values.shape[2], shares.shape[-1])
        table = layout.table(values)
        base, fraction = layout.places(cells)
        share = shares.reshape(base.shape)
        bags = F.embedding_bag(
            layout.corners(base),
            table,
            per_sample_weights=_counts(share, fraction).flatten(1),
            mode="sum",
        )
        ctx.save_for_backward(table, cells, base, fraction, share)
        ctx.layout = layout
        return bags.view(*cells.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, cells, base, fraction, share = ctx.saved_tensors
        of_values, of_cells, of_shares, _ = ctx.needs_input_grad
        grad = grad.reshape(len(base), -1)
        values_grad = cells_grad = shares_grad = None
        if of_cells or of_shares:
            products = _products(grad, table, ctx.layout.corners(base)).view(len(base), 4, -1)
            cells_grad, shares_grad = _of_places(products, fraction, share)
            inside = (cells >= -1) & (cells < ctx.layout.sides_of(cells))
            cells_grad = cells_grad.view(cells.shape).mul_(inside)
            shares_grad = shares_grad.view(cells.shape[:-1])
        if of_values:
            values_grad = _of_values(grad, base, fraction, share, len(cells), ctx.layout)
        return values_grad, cells_grad, shares_grad, None


def _counts(share: Tensor, fraction: Tensor) -> Tensor:
    """Return what the four cells around points count, (M, K * P) -> (M, 4, K * P)."""
    x, y = fraction.unbind(-1)
    counts = share.new_empty(share.shape[0], 4, share.shape[1])
    right = share * x
    left = share - right
    torch.mul(left, y, out=counts[:, 2])
    torch.mul(right, y, out=counts[:, 3])
    torch.sub(left, counts[:, 2], out=counts[:, 0])
    torch.sub(right, counts[:, 3], out=counts[:, 1])
    return counts


def _products(grad: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Return the (M * R,) scalar products of (M, d) gradients and (M, R) rows of a table (T, d)."""
    _accept_sparse_rows()
    starts = torch.arange(0, rows.numel() + 1, rows.shape[1], dtype=rows.dtype)
    wanted = torch.sparse_csr_tensor(
        starts,
        rows.flatten(),
        table.new_zeros(rows.numel()),
        (len(grad), len(table)),
        check_invariants=False,  # they would want each row once, and in order
    )
    return torch.sparse.sampled_addmm(wanted, grad, table.t(), beta=0.0).values()


@cache
def _accept_sparse_rows() -> None:
    """Take note, once, that PyTorch calls them a beta version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        none = torch.zeros(1, dtype=torch.int32)
        torch.sparse_csr_tensor(none, none[:0], torch.zeros(0), (0, 1), check_invariants=False)


def _of_places(products: Tensor, fraction: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the points' places (M, K * P, 2) and shares (M, K * P)."""
    x, y = fraction.unbind(-1)
    above_left, above_right, below_left, below_right = products.unbind(1)
    above_step = above_right - above_left
    below_step = below_right - below_left
    above = torch.addcmul(above_left, above_step, x)
    step = torch.addcmul(below_left, below_step, x).sub_(above)
    places = torch.empty_like(fraction)
    torch.mul(step, share, out=places[..., 1])
    shares = above.addcmul_(step, y)
    torch.mul(below_step.sub_(above_step).mul_(y).add_(above_step), share, out=places[..., 0])
    return places, shares


def _of_values(
    grad: Tensor, base: Tensor, fraction: Tensor, share: Tensor, images: int, layout: _Layout
) -> Tensor:
    """Return the gradient of the (B, S, h, d) values from that of the queries, (M, d)."""
    rows = images * layout.cells * layout.heads
    counts = _counts(share, fraction)
    crowded = base.numel() > _CROWDED * rows
    if crowded:  # one sort for all four cells around a point, which then lie apart
        tables = _summed(base, counts.unbind(1), grad, rows)
    else:
        tables = _summed(layout.corners(base), [counts], grad, rows)
    levels = zip(
        *(layout.split(x.view(images, layout.cells, layout.heads, -1)) for x in tables), strict=True
    )
    if crowded:
        parts = [
            here[:, 1:-1, 1:-1] + right[:, 1:-1, :-2] + below[:, :-2, 1:-1] + both[:, :-2, :-2]
            for here, right, below, both in levels
        ]
    else:
        parts = [table[:, 1:-1, 1:-1] for (table,) in levels]
    return torch.cat([part.flatten(1, 2) for part in parts], dim=1)


def _summed(keys: Tensor, counts: Sequence[Tensor], grad: Tensor, rows: int) -> list[Tensor]:
    """Sum the (M, d) gradients by key, once with each of the counts, to (rows, d).

    `keys` are (M, R), and each of the counts is of as many numbers.
    """
    queries = torch.arange(len(keys), dtype=keys.dtype).repeat_interleave(keys.shape[1])
    keys, order = keys.flatten().sort()
    ends = torch.bincount(keys, minlength=rows).cumsum(0)
    starts = F.pad(ends[:-1], (1, 0)).to(keys.dtype)
    # Selected by index, which PyTorch does ten times as fast as it indexes.
    queries = queries.index_select(0, order)
    return [
        F.embedding_bag(
            queries,
            grad,
            starts,
            per_sample_weights=own.flatten().index_select(0, order),
            mode="sum",
        )
        for own in counts
    ]
