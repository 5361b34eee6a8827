"""The numeric check of an exported graph against the model that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from detr_kit.boxes import cxcywh_to_xyxy
from detr_kit.errors import DetrKitError
from detr_kit.export.metadata import FileMetadata, Precision
from detr_kit.export.selected import SELECTED, given_tokens
from detr_kit.postprocess import probabilities_of
from detr_kit.preprocess import Preprocessing, resize
from detr_kit.sizes import SizeHW
from detr_kit.structures import CollatedImages, ImageBatch, ModelOutput

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]  # a graph: inputs by name to outputs by name

SIZES_HW: tuple[SizeHW, ...] = ((224, 224), (160, 320), (203, 157))  # square, wide, of odd sides
ALL_CASES = tuple((count, size_hw) for count in (1, 2, 3) for size_hw in SIZES_HW)
# For graphs that resize, to sizes at which a model takes its time.
FEW_CASES = tuple(zip((1, 2, 3), SIZES_HW, strict=True))
_SHRUNK = (1, (1234, 1777))
# Sides of pictures as parts of their batch's: where there is a mask, some are padded.
_PARTS_HW = ((1.0, 1.0), (0.7, 1.0), (1.0, 0.55))

# The largest differences that pass. In single precision only the order of summation differs: below
# 1e-5 for trained models. Half precision moves scores of a trained DETR by 0.03, as torch's own
# autocast does; graphs that are wrong are off by tenths. For 8 bits there is no bound that every
# model keeps: the figures are told, and what they cost is for AP to tell.
BOUNDS: dict[Precision, float | None] = {"fp32": 1e-4, "fp16": 0.1, "int8": None}
LEVELS_BOUND = 1.0


@dataclass(frozen=True)
class Difference:
    """The largest differences in a batch of `batch_size` pictures, padded to `size_hw`.

    `scores` are of probabilities, `boxes` of coordinates as parts of the picture's sides. Where
    queries are selected, `scores` are also of the selection: see `GivenTokens.difference`.
    """

    batch_size: int
    size_hw: SizeHW
    scores: float
    boxes: float

    @property
    def largest(self) -> float:
        return max(self.scores, self.boxes)


def differences(
    run: Run,
    model: nn.Module,
    metadata: FileMetadata,
    *,
    preprocess: Run | None = None,
    cases: Sequence[tuple[int, SizeHW]] = ALL_CASES,
) -> Iterator[Difference]:
    """Yield how far a graph is from its model on drawn pictures, for each case of sizes.

    The model runs in single precision on the CPU. Of a graph that resizes, `preprocess` is the
    part that does: the model gets its pixels, and `check_preprocessing` is for what they are.
    Graphs with post-processing may order equally good detections as they like.

    A graph that selects its queries tells which tokens they are, as `SELECTED`; the model makes
    its queries of the same. Without that, both must have selected the same in the same order.
    """
    for seed, (count, size_hw) in enumerate(cases):
        example = _example(metadata, count, size_hw, seed, preprocess)
        found = run(example.inputs)
        output, selection = _output(model, example.batch, found.pop(SELECTED, None))
        probabilities = probabilities_of(output).numpy()
        expected = {
            "scores": np.where(metadata.categories.used, probabilities, 0.0),
            "boxes_cxcywh": output.boxes_cxcywh.numpy(),
            "boxes_xyxy": cxcywh_to_xyxy(output.boxes_cxcywh).numpy(),
        }
        values = (*expected.values(), *found.values())
        if not all(np.isfinite(value).all() for value in values):
            scores = boxes = float("inf")
        elif metadata.options.postprocess:
            sizes_hw = np.array(example.original_sizes_hw)
            found["boxes_xyxy"] = found["boxes_xyxy"] / np.tile(sizes_hw[:, ::-1], 2)[:, None]
            pair = _of_pairs if output.scoring == "sigmoid" else _of_detections
            scores, boxes = pair(found, expected, metadata.categories.ids_array)
        else:
            scores, boxes = (
                float(np.abs(found[name] - expected[name]).max())
                for name in ("scores", "boxes_cxcywh")
            )
        yield Difference(count, size_hw, max(scores, selection), boxes)


def check_preprocessing(run: Run, preprocessing: Preprocessing) -> float:
    """Return by how many of 255 levels a graph's resizing differs from Pillow's, at most.

    Raises DetrKitError where it gives another size than the size rule, or differs by more than 1.
    """
    largest = 0.0
    scale = 255 * np.array(preprocessing.std)[:, None, None]
    for seed, (count, size_hw) in enumerate((*FEW_CASES, _SHRUNK)):
        images = np.stack(_pictures([size_hw] * count, seed))
        pixels = run({"images": images})["pixels"]
        target_hw = preprocessing.size_rule.target_hw(size_hw)
        if pixels.shape != (count, 3, *target_hw):
            raise DetrKitError(
                f"the graph resizes {size_hw} to {pixels.shape[2:]}, the size rule says {target_hw}"
            )
        resized = torch.from_numpy(np.stack([resize(image, target_hw) for image in images]))
        whole = CollatedImages(resized, (target_hw,) * count, (size_hw,) * count, (0,) * count)
        expected = whole.normalized(preprocessing.mean, preprocessing.std).pixels.numpy()
        largest = max(largest, float((np.abs(pixels - expected) * scale).max()))
    if not largest <= LEVELS_BOUND + 0.01:  # rounding, of single precision
        raise DetrKitError(
            f"the graph's resizing is {largest:.1f} of 255 levels off, more than {LEVELS_BOUND:g}"
        )
    return largest


def require_close(found: Sequence[Difference], precision: Precision, name: str) -> None:
    """Raise DetrKitError where a difference is above the bound, with the largest one.

    What is not finite never passes.
    """
    if not all(np.isfinite((one.scores, one.boxes)).all() for one in found):
        raise DetrKitError(f"{name}: not written: the exported graph gives what is not finite")
    bound = BOUNDS[precision]
    worst = max(found, key=lambda difference: difference.largest)
    if bound is not None and not worst.largest <= bound:
        kind = "scores" if worst.scores >= worst.boxes else "boxes"
        raise DetrKitError(
            f"{name}: not written: the exported graph differs from the model by "
            f"{worst.largest:.1e} in {kind}, in a batch of {worst.batch_size} of "
            f"{worst.size_hw[0]} x {worst.size_hw[1]}; at most {bound:g} passes in {precision}"
        )


def _output(
    model: nn.Module, batch: ImageBatch, tokens: np.ndarray | None
) -> tuple[ModelOutput, float]:
    """Return what a model finds, of a graph's tokens if given, and how wrong that choice is."""
    with torch.inference_mode():
        if tokens is None:
            return model(batch, all_layers=False), 0.0
        with given_tokens(model, torch.from_numpy(tokens)) as given:
            output = model(batch, all_layers=False)
    return output, given.difference


@dataclass(frozen=True)
class _Example:
    """The same pictures for a graph and for its model."""

    inputs: Arrays
    batch: ImageBatch
    original_sizes_hw: list[SizeHW]


def _example(
    metadata: FileMetadata, count: int, size_hw: SizeHW, seed: int, preprocess: Run | None
) -> _Example:
    options, preprocessing = metadata.options, metadata.preprocessing
    if options.preprocess:
        assert preprocess is not None
        images = np.stack(_pictures([size_hw] * count, seed))
        pixels = torch.from_numpy(preprocess({"images": images})["pixels"])
        return _Example({"images": images}, _unpadded(pixels), [size_hw] * count)
    parts = [_PARTS_HW[(seed + row) % len(_PARTS_HW)] for row in range(count)]
    sizes_hw = [
        (round(size_hw[0] * part[0]), round(size_hw[1] * part[1])) if options.mask else size_hw
        for part in parts
    ]
    padded = torch.zeros(count, *size_hw, 3, dtype=torch.uint8)
    for row, picture in zip(padded, _pictures(sizes_hw, seed), strict=True):
        row[: picture.shape[0], : picture.shape[1]] = torch.from_numpy(picture)
    original_sizes_hw = [(480 + 31 * row, 640 - 17 * row) for row in range(count)]
    collated = CollatedImages(
        padded, tuple(sizes_hw), tuple(original_sizes_hw), tuple(range(count))
    )
    batch = collated.normalized(preprocessing.mean, preprocessing.std)
    pixels = batch.pixels.contiguous()
    given = {
        "pixels": pixels.numpy(),
        "padding_mask": batch.padding_mask.numpy(),
        "original_sizes_hw": np.array(original_sizes_hw, dtype=np.int64),
    }
    inputs = {name: given[name] for name in options.inputs}
    return _Example(inputs, batch, original_sizes_hw)


def _unpadded(pixels: torch.Tensor) -> ImageBatch:
    count, _, height, width = pixels.shape
    mask = torch.zeros(count, height, width, dtype=torch.bool)
    return ImageBatch(pixels, mask, ((height, width),) * count)


def _pictures(sizes_hw: Sequence[SizeHW], seed: int) -> list[np.ndarray]:
    """Draw (H, W, 3) uint8 pictures: smooth patches of colour, and noise on them."""
    generator = np.random.default_rng(seed)
    pictures = []
    for height, width in sizes_hw:
        patches = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        noise = generator.normal(0, 12, (height, width, 3))
        pictures.append((resize(patches, (height, width)) + noise).clip(0, 255).astype(np.uint8))
    return pictures


def _of_detections(found: Arrays, expected: Arrays, ids: np.ndarray) -> tuple[float, float]:
    """Return the largest differences of scores and boxes between detections and their queries.

    Which query a detection came from is not told: they are paired so that they agree best.
    """
    column_of = {int(id_): column for column, id_ in enumerate(ids)}
    worst_score = worst_box = 0.0
    for row, scores in enumerate(found["scores"]):
        columns = [column_of[int(id_)] for id_ in found["category_ids"][row]]
        of_queries = expected["scores"][row]  # (Q, C)
        of_category = np.abs(scores[:, None] - of_queries[:, columns].T)  # (detections, queries)
        of_best = np.abs(scores[:, None] - of_queries.max(axis=1))
        score = np.maximum(of_category, of_best)
        corners = found["boxes_xyxy"][row][:, None] - expected["boxes_xyxy"][row][None]
        box = np.abs(corners).max(axis=2)
        pairs = linear_sum_assignment(score + box)
        out_of_order = np.diff(scores).max(initial=0.0)
        worst_score = max(worst_score, float(score[pairs].max()), float(out_of_order))
        worst_box = max(worst_box, float(box[pairs].max()))
    return worst_score, worst_box


def _of_pairs(found: Arrays, expected: Arrays, ids: np.ndarray) -> tuple[float, float]:
    """Do the same where a query may give a detection of each category, the best of all pairs."""
    column_of = {int(id_): column for column, id_ in enumerate(ids)}
    worst_score = worst_box = 0.0
    for row, scores in enumerate(found["scores"]):
        of_queries = expected["scores"][row]  # (Q, C)
        # These must be the highest ones there are, in order.
        highest = np.sort(of_queries, axis=None)[::-1][: len(scores)]
        worst_score = max(worst_score, float(np.abs(scores - highest).max(initial=0.0)))
        columns = np.array([column_of[int(id_)] for id_ in found["category_ids"][row]])
        corners = found["boxes_xyxy"][row][:, None] - expected["boxes_xyxy"][row][None]
        boxes = np.abs(corners).max(axis=2)  # (detections, queries)
        for column in np.unique(columns):
            own = columns == column
            score = np.abs(scores[own, None] - of_queries[:, column])
            if len(score) > len(of_queries):  # a query gives one of a category at most
                return float("inf"), float("inf")
            pairs = linear_sum_assignment(score + boxes[own])
            worst_score = max(worst_score, float(score[pairs].max()))
            worst_box = max(worst_box, float(boxes[own][pairs].max()))
    return worst_score, worst_box
