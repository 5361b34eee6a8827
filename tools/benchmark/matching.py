"""Print time of the matching as ratios to matching layer by layer, and what it consists of.

    python tools/benchmark/matching.py [--device cpu] [--queries 100 300] [--repeats N]
                                       [--batch-size N] [--layers N] [--threads N]

`per layer` is the form of the official training code, written here once more: for each decoder
layer the cost of all queries with all objects of the batch (softmax, `cdist`, pairwise GIoU), its
transfer to the host, and scipy's solver image by image. `detr_kit` is `HungarianMatcher`. Every
repeat draws a new batch from its number: as many objects an image as COCO has (7 in the mean, up
to 63), queries that start where training starts (`untrained`: all answer about the same), and
queries of which some lie on each object (`trained`). Both sides must find the same pairs.

Each side does a batch five times, in turn, and its fastest counts: whatever else the machine does
can only add. Times are medians over the batches in milliseconds, ratios those of the same batch.
`cpu` is the time of all cores together, which other programs change less. `cost` is computed on the
device, `transfer` is its way to the host, `solver` everything from there to the pairs; `scipy` is
the solver's part that scipy's function itself takes, on the matrices as detr_kit hands them over.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_kit.boxes import cxcywh_to_xyxy
from detr_kit.matching import HungarianMatcher, matching_cost, solve, to_host
from detr_kit.structures import ModelOutput, TargetBatch

NUM_CLASSES = 91
OBJECTS_AN_IMAGE = 7.3
MOST_OBJECTS = 63
COSTS = {"class_cost": 1.0, "l1_cost": 5.0, "giou_cost": 2.0}
KINDS = ("untrained", "trained")
PARTS = ("cost", "transfer", "solver", "scipy")
ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """Seconds of one batch, by part, `whole` and `cpu`, for each of the two sides."""

    per_layer: dict[str, float]
    detr_kit: dict[str, float]


def drawn_batch(
    seed: int, kind: str, *, layers: int, images: int, queries: int
) -> tuple[ModelOutput, TargetBatch]:
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    drawn = rng.negative_binomial(0.9, 0.9 / (0.9 + OBJECTS_AN_IMAGE), images)
    counts = tuple(int(count) for count in np.minimum(drawn, MOST_OBJECTS))
    labels = torch.randint(0, NUM_CLASSES, (sum(counts),), generator=generator)
    objects = _drawn_boxes(generator, sum(counts))
    shape = (layers, images, queries)
    logits = torch.randn(*shape, NUM_CLASSES + 1, generator=generator)
    if kind == "untrained":
        boxes = 0.5 + 0.05 * torch.randn(*shape, 4, generator=generator)
    else:
        boxes = _drawn_boxes(generator, *shape)
        first = 0
        for image, count in enumerate(counts):
            near = torch.randperm(queries, generator=generator)[: 2 * count]
            own = torch.arange(first, first + count).repeat(2)[: len(near)]
            shaken = 1 + 0.1 * torch.randn(layers, len(near), 4, generator=generator)
            boxes[:, image, near] = objects[own] * shaken
            logits[:, image, near, labels[own]] += 6
            first += count
    targets = TargetBatch(labels, objects, counts, tuple(range(images)))
    return ModelOutput(logits, boxes.clamp(0.001, 1)), targets


def _drawn_boxes(generator: torch.Generator, *shape: int) -> Tensor:
    centers = torch.rand(*shape, 2, generator=generator)
    return torch.cat([centers, 0.02 + 0.5 * torch.rand(*shape, 2, generator=generator) ** 2], -1)


class Stopwatch:
    """Adds up the seconds of parts; waits for the device at the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts = dict.fromkeys(("whole", "cpu", *PARTS), 0.0)
        self.last = time.perf_counter()

    def start(self) -> None:
        self._wait()
        self.last = time.perf_counter()

    def stop(self, part: str) -> None:
        self._wait()
        self.parts[part] += time.perf_counter() - self.last
        self.last = time.perf_counter()

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def _pairwise_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """The GIoU with the checks that the official code makes, each of which reads the device."""
    assert (a_xyxy[:, 2:] >= a_xyxy[:, :2]).all()
    assert (b_xyxy[:, 2:] >= b_xyxy[:, :2]).all()
    a_area, b_area = ((one[:, 2:] - one[:, :2]).prod(1) for one in (a_xyxy, b_xyxy))
    low = torch.max(a_xyxy[:, None, :2], b_xyxy[:, :2])
    high = torch.min(a_xyxy[:, None, 2:], b_xyxy[:, 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = a_area[:, None] + b_area - intersection
    low = torch.min(a_xyxy[:, None, :2], b_xyxy[:, :2])
    high = torch.max(a_xyxy[:, None, 2:], b_xyxy[:, 2:])
    sides = (high - low).clamp(min=0)
    hull = sides[..., 0] * sides[..., 1]
    return intersection / union - (hull - union) / hull


@torch.no_grad()
def per_layer(output: ModelOutput, targets: TargetBatch, watch: Stopwatch | None) -> np.ndarray:
    """Return the (3, L, M) pairs; `watch` None leaves out the waits that it needs."""
    counts = list(targets.counts)
    first = np.cumsum([0, *counts])
    layers = []
    for layer_logits, layer_boxes in zip(
        output.layer_logits, output.layer_boxes_cxcywh, strict=True
    ):
        probability = layer_logits.flatten(0, 1).softmax(-1)
        boxes = layer_boxes.flatten(0, 1)
        l1 = torch.cdist(boxes, targets.boxes_cxcywh, p=1)
        giou = _pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes_cxcywh))
        cost = 5 * l1 - probability[:, targets.labels] - 2 * giou
        if watch is not None:
            watch.stop("cost")
        on_host = cost.view(*layer_logits.shape[:2], -1).cpu()
        if watch is not None:
            watch.stop("transfer")
        solved = [
            linear_sum_assignment(of_objects[image])
            for image, of_objects in enumerate(on_host.split(counts, -1))
        ]
        pairs = [
            np.stack([np.full_like(query, image), query, first[image] + target])
            for image, (query, target) in enumerate(solved)
        ]
        layers.append(np.concatenate(pairs, axis=1))
        if watch is not None:
            watch.stop("solver")
    return np.stack(layers, axis=1)


@torch.no_grad()
def in_parts(output: ModelOutput, targets: TargetBatch, watch: Stopwatch) -> np.ndarray:
    """What HungarianMatcher does, with a look at the clock between its parts."""
    cost = matching_cost(output, targets, **COSTS)
    watch.stop("cost")
    (on_host,) = to_host([cost])
    watch.stop("transfer")
    pairs, _ = solve(on_host, targets)
    watch.stop("solver")
    _scipy_alone(on_host, targets.counts)
    watch.stop("scipy")
    return pairs


def _scipy_alone(cost: np.ndarray, counts: tuple[int, ...]) -> None:
    first = 0
    for count in counts:
        for layer in range(cost.shape[1] if count else 0):
            linear_sum_assignment(cost[first : first + count, layer])
        first += count


def measure(output: ModelOutput, targets: TargetBatch, device: torch.device) -> Row:
    matcher = HungarianMatcher(**COSTS)
    wholes: dict[str, Callable[[], np.ndarray]] = {
        "per_layer": lambda: per_layer(output, targets, None),
        "detr_kit": lambda: matcher(output, targets).pairs,
    }
    in_steps = {"per_layer": per_layer, "detr_kit": in_parts}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in wholes}
    expected = per_layer(output, targets, None)
    for _ in range(ROUNDS):
        for name, whole in wholes.items():
            watch = Stopwatch(device)
            cpu = time.process_time()
            watch.start()
            found = [whole()]
            watch.stop("whole")
            watch.parts["cpu"] = time.process_time() - cpu
            watch.start()
            found.append(in_steps[name](output, targets, watch))
            runs[name].append(watch.parts)
            for pairs in found:
                np.testing.assert_array_equal(pairs, expected, err_msg="other pairs")
    return Row(
        **{
            name: {part: min(run[part] for run in own) for part in own[0]}
            for name, own in runs.items()
        }
    )


def table(title: str, rows: list[Row]) -> str:
    """Return the medians of both sides in milliseconds, and the ratios over the batches."""
    parts = ("whole", "cpu", *PARTS)
    lines = [f"{title:24}" + "".join(f"{part:>9}" for part in parts)]
    lines[0] += "".join(f"{text:^27}" for text in ("times faster", "times less cpu"))
    lines.append(" " * (24 + 9 * len(parts)) + f"{'min':>9}{'median':>9}{'max':>9}" * 2)
    for name in ("per_layer", "detr_kit"):
        line = f"{name:24}"
        for part in parts:
            median = np.median([getattr(row, name)[part] for row in rows])
            line += f"{1e3 * median:9.2f}" if median else " " * 9
        for part in ("whole", "cpu"):
            ratio = np.array([row.per_layer[part] / getattr(row, name)[part] for row in rows])
            line += f"{ratio.min():9.1f}{np.median(ratio):9.1f}{ratio.max():9.1f}"
        lines.append(line)
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="detr_kit's matching against layer by layer")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--queries", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, help="of torch; without it, torch decides")
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    print(
        f"batch {arguments.batch_size}, {arguments.layers} layers, {arguments.repeats} batches, "
        f"{device}, {torch.get_num_threads()} threads"
    )
    for queries in arguments.queries:
        for kind in KINDS:
            rows, objects = [], []
            for seed in range(arguments.repeats):
                shape = {"layers": arguments.layers, "images": arguments.batch_size}
                output, targets = drawn_batch(seed, kind, queries=queries, **shape)
                parts = (output.layer_logits, output.layer_boxes_cxcywh)
                on_device = ModelOutput(*(part.to(device) for part in parts))
                rows.append(measure(on_device, targets.to(device), device))
                objects.append(sum(targets.counts))
            print(table(f"{queries} queries, {kind}", rows), flush=True)
    print(f"objects a batch: {min(objects)} to {max(objects)}, mean {np.mean(objects):.0f}")


if __name__ == "__main__":
    main()
