"""Print time of deformable attention as ratios to that of transformers, in one run.

    python tools/benchmark/deformable_attention.py [--dims 128 256] [--queries 60 300 0]
                                       [--batch-size N] [--repeats N] [--threads N]
                                       [--parts sampling module] [--grid]

Both sides get the same values, places, shares and weights, on a CPU, by turns; they must agree in
what they return and in all gradients. Maps are 40 x 32, 20 x 16 and 10 x 8 cells, 8 heads look at
4 points of each. Queries are those of a decoder, with boxes; 0 stands for an encoder, where every
cell is a query.

- `sampling` is `detr_kit.models.sampling.sample` against `MultiScaleDeformableAttention`: what
  comes after the projections. Places are drawn over the maps, a tenth of them outside.
- `module` is `DeformableAttention` against Deformable DETR's own, projections included, with drawn
  weights. Each image fills another part of the batch.

With `--grid`, detr_kit's side is `sample_maps`, what compilers, exporters and GPUs get.

A ratio of 2 is half of transformers' time; min, median and max are over the repeats. `cpu` is the
time of all cores together, which other programs change less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers.models.deformable_detr import modeling_deformable_detr as peer

from detr_kit.models import deformable_attention
from detr_kit.models.deformable_attention import DeformableAttention
from detr_kit.models.pyramid import Pyramid, flatten_levels
from detr_kit.models.sampling import sample, sample_maps

SIZES_HW = ((40, 32), (20, 16), (10, 8))
HEADS, POINTS = 8, 4
WARM_UP = 3
# The names of detr_kit's layers, and of those of transformers.
LAYERS = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "value": "value_proj",
    "proj": "output_proj",
}


@dataclass(frozen=True)
class Sides:
    """Two functions of the same tensors, which are differentiated by them."""

    inputs: tuple[Tensor, ...]
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]


def sampling(dim: int, queries: int, images: int) -> Sides:
    count = queries or sum(height * width for height, width in SIZES_HW)
    values = torch.randn(images, sum(h * w for h, w in SIZES_HW), HEADS, dim // HEADS)
    locations = torch.rand(images, count, HEADS, len(SIZES_HW), POINTS, 2) * 1.1 - 0.05
    shares = torch.rand(locations.shape[:-1]).flatten(3).softmax(-1).view(locations.shape[:-1])
    inputs = tuple(x.requires_grad_() for x in (values, locations, shares))
    sides_wh = torch.tensor(
        [[(float(width), float(height))] * POINTS for height, width in SIZES_HW]
    )
    theirs = peer.MultiScaleDeformableAttention()
    return Sides(
        inputs,
        lambda: sample(values, locations * sides_wh - 0.5, shares, SIZES_HW),
        lambda: theirs(values, None, list(SIZES_HW), None, locations, shares, 64),
    )


def module(dim: int, queries: int, images: int) -> Sides:
    ours = DeformableAttention(dim, HEADS, len(SIZES_HW), POINTS)
    config: Any = SimpleNamespace(
        d_model=dim, num_feature_levels=len(SIZES_HW), disable_custom_kernels=True
    )
    theirs = peer.DeformableDetrMultiscaleDeformableAttention(config, HEADS, POINTS)
    for name, other in LAYERS.items():
        # Not the state of the start alone: all points of a query would count alike.
        torch.nn.init.normal_(getattr(ours, name).weight, std=dim**-0.5)
        getattr(theirs, other).load_state_dict(getattr(ours, name).state_dict())
    memory = _padded_memory(dim, images)
    assert memory.padding_mask is not None
    real = ~memory.padding_mask
    shares = (memory.own_sizes_wh() / torch.tensor(SIZES_HW).flip(1))[:, None]
    if queries:
        query = torch.randn(images, queries, dim)
        reference = torch.rand(images, queries, 4)
        shares = shares.repeat(1, 1, 1, 2)
    else:
        query, reference = torch.randn_like(memory.tokens), memory.cell_centers()
    inputs = (query.requires_grad_(), memory.tokens.requires_grad_())
    shapes = torch.tensor(SIZES_HW)
    return Sides(
        inputs,
        lambda: ours(query, reference, memory),
        lambda: theirs(
            query,
            real,
            encoder_hidden_states=memory.tokens,
            reference_points=reference[:, :, None] * shares,
            spatial_shapes=shapes,
            spatial_shapes_list=list(SIZES_HW),
        )[0],
    )


def _padded_memory(dim: int, images: int) -> Pyramid:
    levels = []
    for height, width in SIZES_HW:
        mask = torch.ones(images, height, width, dtype=torch.bool)
        for image, row in enumerate(mask):
            fills = 1 - 0.4 * image / images
            row[: int(height * fills), : (width if image % 2 else int(width * fills))] = False
        levels.append((torch.randn(images, dim, height, width), mask))
    return flatten_levels(levels)


def assert_same(sides: Sides, grad: Tensor) -> None:
    results = []
    for side in (sides.theirs, sides.ours):
        output = side()
        results.append([output, *torch.autograd.grad(output, sides.inputs, grad)])
    for expected, found in zip(*results, strict=True):
        # A place on a cell's centre may be taken for either side's: few slopes differ.
        differ = (found - expected).abs() > 1e-4 * expected.abs().max()
        assert differ.float().mean() < 1e-3, "other numbers"


def measure(sides: Sides, repeats: int) -> np.ndarray:
    """Return (repeats, 2 sides, forward or both passes, wall or cpu) seconds."""
    grad = torch.randn_like(sides.ours())
    assert_same(sides, grad)

    def forward(side: Callable[[], Tensor]) -> object:
        with torch.no_grad():
            return side()

    def both(side: Callable[[], Tensor]) -> object:
        return torch.autograd.grad(side(), sides.inputs, grad)

    rows = []
    for _ in range(WARM_UP + repeats):
        row = []
        for side in (sides.theirs, sides.ours):
            for run in (forward, both):
                wall, cpu = time.perf_counter(), time.process_time()
                run(side)
                row += [time.perf_counter() - wall, time.process_time() - cpu]
        rows.append(row)
    return np.array(rows[WARM_UP:]).reshape(repeats, 2, 2, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description="deformable attention against transformers'")
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--queries", type=int, nargs="+", default=[60, 300, 0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, help="of torch; without it, torch decides")
    parser.add_argument(
        "--parts", nargs="+", choices=("sampling", "module"), default=["sampling", "module"]
    )
    parser.add_argument("--grid", action="store_true", help="sample maps, not rows")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(
        f"batch {arguments.batch_size}, {arguments.repeats} repeats, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'':38}{'milliseconds':^22}{'times faster':^27}{'times less cpu':^27}")
    columns = f"{'transformers':>13}{'detr_kit':>9}" + f"{'min':>9}{'median':>9}{'max':>9}" * 2
    print(f"{'':38}{columns}")
    sampler = sample_maps if arguments.grid else sample
    for part in arguments.parts:
        for dim in arguments.dims:
            for queries in arguments.queries:
                torch.manual_seed(0)
                sides = {"sampling": sampling, "module": module}[part](
                    dim, queries, arguments.batch_size
                )
                with (
                    mock.patch.multiple(__name__, sample=sampler),
                    mock.patch.object(deformable_attention, "sample", sampler),
                ):
                    seconds = measure(sides, arguments.repeats)
                for passes, name in enumerate(("forward", "both passes")):
                    own = seconds[:, :, passes]
                    kind = f"{queries} queries" if queries else "encoder"
                    line = f"{f'{part}, D {dim}, {kind}, {name}':38}"
                    theirs, ours = 1e3 * np.median(own[..., 0], axis=0)
                    line += f"{theirs:13.1f}{ours:9.1f}"
                    for clock in (0, 1):
                        ratio = own[:, 0, clock] / own[:, 1, clock]
                        line += f"{ratio.min():9.2f}{np.median(ratio):9.2f}{ratio.max():9.2f}"
                    print(line, flush=True)


if __name__ == "__main__":
    main()
