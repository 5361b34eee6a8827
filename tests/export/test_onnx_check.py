from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detr_kit.boxes import cxcywh_to_xyxy
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD
from detr_kit.errors import DetrKitError
from detr_kit.export.check import (
    ALL_CASES,
    BOUNDS,
    Arrays,
    Difference,
    Run,
    differences,
    require_close,
)
from detr_kit.export.metadata import ExportOptions, FileMetadata
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.structures import ImageBatch, ModelOutput
from tests.export.small_models import TABLE

QUERIES = 5


class Drawn(nn.Module):
    """Finds what was drawn beforehand, whatever it is shown, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = 3 * torch.randn(3, QUERIES, len(TABLE) + 1, generator=generator)
        self.boxes = torch.rand(3, QUERIES, 4, generator=generator)
        self.shown: list[ImageBatch] = []

    def forward(self, batch: ImageBatch, all_layers: bool | None = None) -> ModelOutput:
        count = len(batch.pixels)
        self.shown.append(batch)
        return ModelOutput(self.logits[None, :count], self.boxes[None, :count])

    def scores(self) -> np.ndarray:
        """(B, Q, C)"""
        return self.logits.softmax(-1)[..., :-1].numpy() * np.array(TABLE.used)


def metadata(**options: bool) -> FileMetadata:
    preprocessing = Preprocessing(SizeRule("detr", 96, 160), IMAGENET_MEAN, IMAGENET_STD)
    chosen: dict[str, Any] = {"mask": True, "preprocess": False, "postprocess": False, **options}
    return FileMetadata(TABLE, preprocessing, ExportOptions(**chosen, precision="fp32"))


def detections_of(model: Drawn) -> Run:
    """What a graph with post-processing gives for what was drawn."""

    def run(inputs: Arrays) -> Arrays:
        sizes_hw = inputs["original_sizes_hw"]
        count = len(sizes_hw)
        scores = model.scores()[:count]
        order = np.argsort(-scores.max(-1), axis=1)
        boxes = cxcywh_to_xyxy(model.boxes[:count]).numpy()
        boxes = boxes * np.tile(sizes_hw[:, ::-1], 2)[:, None]
        return {
            "boxes_xyxy": np.take_along_axis(boxes, order[..., None], 1),
            "scores": np.take_along_axis(scores.max(-1), order, 1),
            "category_ids": TABLE.ids_array[np.take_along_axis(scores.argmax(-1), order, 1)],
        }

    return run


def raw_of(model: Drawn) -> Run:
    def run(inputs: Arrays) -> Arrays:
        count = len(inputs["pixels"])
        return {"scores": model.scores()[:count], "boxes_cxcywh": model.boxes[:count].numpy()}

    return run


def changed(run: Run, name: str, change: Any) -> Run:
    """Return a graph that does `change` to a copy of one output."""

    def other(inputs: Arrays) -> Arrays:
        found = {key: value.copy() for key, value in run(inputs).items()}
        change(found[name])
        return found

    return other


def worst(found: list[Difference]) -> tuple[float, float]:
    return max(one.scores for one in found), max(one.boxes for one in found)


def test_a_graph_that_does_the_same_has_no_difference() -> None:
    model = Drawn()
    assert worst(list(differences(raw_of(model), model, metadata()))) == (0.0, 0.0)
    found = differences(detections_of(model), model, metadata(postprocess=True))
    assert max(worst(list(found))) < 1e-6


def test_all_numbers_and_sizes_of_pictures_are_tried() -> None:
    model = Drawn()
    found = list(differences(raw_of(model), model, metadata()))
    assert [(one.batch_size, one.size_hw) for one in found] == list(ALL_CASES)
    assert {len(batch.pixels) for batch in model.shown} == {1, 2, 3}
    shapes = {tuple(batch.pixels.shape[2:]) for batch in model.shown}
    assert len(shapes) == 3
    assert any(height == width for height, width in shapes)
    assert any(height < width for height, width in shapes)
    assert any(height % 2 and width % 2 for height, width in shapes)


def test_with_a_mask_pictures_of_a_batch_differ_in_size() -> None:
    model = Drawn()
    list(differences(raw_of(model), model, metadata()))
    several = [batch for batch in model.shown if len(batch.pixels) > 1]
    assert all(len(set(batch.sizes_hw)) > 1 for batch in several)
    assert any(batch.has_padding for batch in model.shown if len(batch.pixels) == 1)
    for batch in model.shown:
        padded = batch.pixels.permute(0, 2, 3, 1)[batch.padding_mask]
        assert not padded.any()


def test_without_a_mask_nothing_is_padded() -> None:
    model = Drawn()
    list(differences(raw_of(model), model, metadata(mask=False)))
    assert not any(batch.has_padding for batch in model.shown)


def test_the_largest_differences_are_found() -> None:
    model = Drawn()

    def more(values: np.ndarray) -> None:
        values[-1, 1, 2] += 0.25

    in_scores = differences(changed(raw_of(model), "scores", more), model, metadata())
    assert worst(list(in_scores)) == (pytest.approx(0.25), 0.0)
    in_boxes = differences(changed(raw_of(model), "boxes_cxcywh", more), model, metadata())
    assert worst(list(in_boxes)) == (0.0, pytest.approx(0.25))


def test_detections_are_compared_in_parts_of_the_picture() -> None:
    model = Drawn()

    def move(boxes: np.ndarray) -> None:
        boxes[0, 2, 0] += 64.0  # of 640

    run = changed(detections_of(model), "boxes_xyxy", move)
    found = list(differences(run, model, metadata(postprocess=True)))
    assert worst(found)[1] == pytest.approx(0.1, abs=1e-6)
    assert worst(found)[0] < 1e-6


def test_equally_good_detections_may_come_in_any_order() -> None:
    model = Drawn()
    model.logits[:, 1] = model.logits[:, 0]
    best = detections_of(model)

    def swapped(inputs: Arrays) -> Arrays:
        found = best(inputs)
        for row, scores in enumerate(found["scores"]):
            first = int(np.flatnonzero(np.diff(scores) == 0)[0])
            for value in found.values():
                value[row, [first, first + 1]] = value[row, [first + 1, first]]
        return found

    found = differences(swapped, model, metadata(postprocess=True))
    assert max(worst(list(found))) < 1e-6


def test_detections_that_do_not_begin_with_the_best_are_a_difference() -> None:
    model = Drawn()
    best = detections_of(model)

    def backwards(inputs: Arrays) -> Arrays:
        return {name: value[:, ::-1] for name, value in best(inputs).items()}

    found = differences(backwards, model, metadata(postprocess=True))
    assert worst(list(found))[0] > 0.01


def test_another_category_is_a_difference_of_scores() -> None:
    model = Drawn()

    def rename(ids: np.ndarray) -> None:
        ids[0, 0] = next(id_ for id_ in (2, 7, 11, 90) if id_ != ids[0, 0])

    run = changed(detections_of(model), "category_ids", rename)
    found = differences(run, model, metadata(postprocess=True))
    assert worst(list(found))[0] > 0.01


def test_numbers_that_are_none_are_an_endless_difference() -> None:
    model = Drawn()

    def spoil(values: np.ndarray) -> None:
        values[0, 0, 0] = np.nan

    found = differences(changed(raw_of(model), "scores", spoil), model, metadata())
    assert worst(list(found)) == (np.inf, np.inf)


def test_the_bound_is_that_of_the_precision() -> None:
    found = [Difference(1, (8, 8), 1e-6, 1e-6), Difference(2, (8, 9), 1e-5, 2e-3)]
    with pytest.raises(DetrKitError, match=r"a\.onnx: not written: .* by 2\.0e-03 in boxes, in a"):
        require_close(found, "fp32", "a.onnx")
    require_close(found, "fp16", "a.onnx")
    require_close([Difference(1, (8, 8), 0.9, 0.9)], "int8", "a.onnx")
    with pytest.raises(DetrKitError, match=r"batch of 1 of 8 x 8; at most 0\.1 passes in fp16"):
        require_close([Difference(1, (8, 8), 0.9, 0.2)], "fp16", "a.onnx")
    assert BOUNDS["fp32"] == 1e-4


def test_no_difference_is_no_number_to_the_bound() -> None:
    for precision in ("fp32", "fp16", "int8"):
        for value in (float("nan"), float("inf")):
            with pytest.raises(DetrKitError, match="gives what is not finite"):
                require_close([Difference(1, (8, 8), value, 0.0)], precision, "a.onnx")
