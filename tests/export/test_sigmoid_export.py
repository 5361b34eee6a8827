"""Exported detectors that score by sigmoids, of every family: graphs, files, and their check."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detr_kit.boxes import cxcywh_to_xyxy
from detr_kit.categories import CategoryTable
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.export.check import Arrays, Difference, differences
from detr_kit.export.graphs import GRAPHS
from detr_kit.export.metadata import ExportOptions, FileMetadata
from detr_kit.export.onnx_detector import OnnxDetector
from detr_kit.export.program import export_program
from detr_kit.inference.detector import Detector
from detr_kit.models.heads import DetectionHeads
from detr_kit.models.tracing import traceable_copy
from detr_kit.models.zoo import build_model, resolve
from detr_kit.postprocess import to_detections
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.structures import ImageBatch, ModelOutput
from tests.drawn import draw_values
from tests.export.small_models import TABLE, batch_of, small_model

PREPROCESSING = Preprocessing(SizeRule("detr", 96, 160), IMAGENET_MEAN, IMAGENET_STD)
SMALL = {
    "backbone": "plain",
    "backbone_norm": "frozen",
    "backbone_weights": "none",
    "levels": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "hidden_dim": 64,
    "num_heads": 2,
    "feedforward_dim": 24,
    "num_queries": 6,
    "points": 2,
}
# What differs in what a graph has to do: the encoder, where queries come from, what is scored.
DEFORMABLE: dict[str, dict[str, Any]] = {
    "deformable": {"name": "deformable_detr_r50"},
    "two_stage": {"name": "deformable_detr_r50_two_stage"},
    "dino": {"name": "dino_r50"},
    "rt": {"name": "detr_fast"},
    "softmax": {"name": "detr_fast", "scoring": "softmax", "denoising_queries": 0},
}
SIZES = ((97, 141), (160, 120), (24, 31))


def sigmoid_model(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    if kind not in DEFORMABLE:
        model: Any = small_model(kind, dtype)
        layer = model.heads.class_head.layers[0]
        torch.manual_seed(1)
        depth = len(model.heads.class_head.layers)
        model.heads = DetectionHeads(
            layer.in_features, len(TABLE), class_layers=depth, scoring="sigmoid"
        ).to(dtype)
        return model.eval()
    torch.manual_seed(0)
    config = ModelConfig(**SMALL | DEFORMABLE[kind])
    model = build_model(resolve(config), num_classes=len(TABLE))
    draw_values(model)
    with torch.no_grad():  # which begin as zeros
        for name, tensor in model.named_parameters():
            if name.endswith("box_head.layers.2.weight"):
                tensor.normal_(0, 0.2)
    return model.to(dtype).eval()


def batch_in(dtype: torch.dtype = torch.float64) -> ImageBatch:
    return batch_of(*SIZES, dtype=dtype)


@pytest.mark.parametrize("kind", ["detr", "yolos", *DEFORMABLE])
def test_a_graph_finds_what_the_model_does(kind: str) -> None:
    model, batch = sigmoid_model(kind), batch_in()
    inputs = [batch.pixels, batch.padding_mask]
    with torch.no_grad():
        output = model(batch)
    assert output.scoring == ("softmax" if kind == "softmax" else "sigmoid")
    scored = GRAPHS[True, False](traceable_copy(model, mask=True), TABLE)(*inputs)
    logits = output.logits
    expected = logits.softmax(-1)[..., :-1] if kind == "softmax" else logits.sigmoid()
    expected = expected * torch.tensor(TABLE.used)
    torch.testing.assert_close(scored["scores"], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(scored["boxes_cxcywh"], output.boxes_cxcywh, rtol=0, atol=1e-9)

    originals = ((480, 640), (333, 500), (100, 90))
    graph = GRAPHS[True, True](traceable_copy(model, mask=True), TABLE)
    found = graph(*inputs, torch.tensor(originals))
    for row, detections in enumerate(to_detections(output, originals, TABLE)):
        assert found["category_ids"][row].tolist() == detections.category_ids.tolist()
        for name in ("scores", "boxes_xyxy"):
            wanted = torch.from_numpy(getattr(detections, name))
            torch.testing.assert_close(found[name][row].float(), wanted, rtol=1e-5, atol=1e-4)


def test_a_head_that_does_not_fit_the_categories_is_refused() -> None:
    table = CategoryTable((1, 2), ("cat", "dog"))
    with pytest.raises(DetrKitError, match="has 5 columns, but there are 2 categories"):
        export_program(sigmoid_model("yolos"), table)


def metadata(*, postprocess: bool = False) -> FileMetadata:
    options = ExportOptions(mask=True, preprocess=False, postprocess=postprocess, precision="fp32")
    return FileMetadata(TABLE, PREPROCESSING, options, "sigmoid")


def test_metadata_tell_of_sigmoids() -> None:
    texts = metadata().to_texts()
    assert FileMetadata.from_texts(texts, "a.onnx") == metadata()
    assert json.loads(texts["scoring"]) == "sigmoid"
    assert json.loads(texts["format_version"]) == 2  # readers of the first would misread it


def test_files_from_before_there_was_a_choice_score_by_softmax() -> None:
    plain = FileMetadata(TABLE, PREPROCESSING, metadata().options)
    texts = plain.to_texts()
    assert json.loads(texts["format_version"]) == 1
    del texts["scoring"]
    assert FileMetadata.from_texts(texts, "a.onnx") == plain


def test_an_unknown_scoring_is_damage() -> None:
    with pytest.raises(DetrKitError, match=r"^a\.onnx: .*damaged: scoring 'argmax'"):
        FileMetadata.from_texts({**metadata().to_texts(), "scoring": '"argmax"'}, "a.onnx")


class Drawn(nn.Module):
    """Finds what was drawn beforehand, whatever it is shown."""

    scoring = "sigmoid"

    def __init__(self, queries: int = 7) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = 3 * torch.randn(3, queries, len(TABLE), generator=generator) - 1
        self.boxes = torch.rand(3, queries, 4, generator=generator)

    def forward(self, batch: ImageBatch, all_layers: bool | None = None) -> ModelOutput:
        count = len(batch.pixels)
        return ModelOutput(self.logits[None, :count], self.boxes[None, :count], "sigmoid")


class DrawnSession:
    """A session of ONNX Runtime that gives what was drawn."""

    def __init__(self, model: Drawn) -> None:
        self.model = model

    def run(self, names: list[str], inputs: Arrays) -> list[np.ndarray]:
        count = len(inputs["pixels"])
        scores = self.model.logits[:count].sigmoid().numpy() * np.array(TABLE.used)
        values = {"scores": scores, "boxes_cxcywh": self.model.boxes[:count].numpy()}
        return [values[name] for name in names]


def test_a_file_without_post_processing_gives_the_same_detections() -> None:
    model = Drawn()
    detector = OnnxDetector(DrawnSession(model), metadata())
    pictures = [np.zeros((40, 60, 3), np.uint8)] * 3
    originals = [(480, 640), (333, 500), (100, 90)]
    found = detector.detect(pictures, originals, ["a", "b", "c"])
    output = ModelOutput(model.logits[None], model.boxes[None], "sigmoid")
    for one, other in zip(found, to_detections(output, originals, TABLE), strict=True):
        assert one.names == other.names
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6)
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, rtol=1e-5, atol=1e-3)


def detections_of(model: Drawn) -> Any:
    """What a graph with post-processing gives for what was drawn."""

    def run(inputs: Arrays) -> Arrays:
        sizes_hw = [tuple(size) for size in inputs["original_sizes_hw"].tolist()]
        count = len(sizes_hw)
        output = ModelOutput(model.logits[None, :count], model.boxes[None, :count], "sigmoid")
        found = to_detections(output, sizes_hw, TABLE)
        names = ("boxes_xyxy", "scores", "category_ids")
        return {name: np.stack([getattr(one, name) for one in found]) for name in names}

    return run


def worst(run: Any, model: Drawn) -> Difference:
    found = differences(run, model, metadata(postprocess=True))
    return max(found, key=lambda difference: difference.largest)


def test_the_check_finds_nothing_where_detections_are_the_best_pairs() -> None:
    model = Drawn()
    assert worst(detections_of(model), model).largest < 1e-5


def swapped_boxes(found: Arrays) -> None:
    found["boxes_xyxy"] = found["boxes_xyxy"][:, ::-1]


def lower_scores(found: Arrays) -> None:
    found["scores"] = found["scores"] - 0.05


def other_categories(found: Arrays) -> None:
    ids = found["category_ids"]
    found["category_ids"] = np.where(ids == TABLE.ids[0], TABLE.ids[2], TABLE.ids[0])


def same_detection_again(found: Arrays) -> None:
    for value in found.values():
        value[:, 1] = value[:, 0]


@pytest.mark.parametrize(
    "fault", [swapped_boxes, lower_scores, other_categories, same_detection_again]
)
def test_the_check_finds_what_is_wrong_with_detections(fault: Any) -> None:
    model = Drawn()
    right = detections_of(model)

    def wrong(inputs: Arrays) -> Arrays:
        found = {name: value.copy() for name, value in right(inputs).items()}
        fault(found)
        return found

    assert worst(wrong, model).largest > 0.01


def test_the_check_finds_one_detection_a_query_where_pairs_are_asked_for() -> None:
    model = Drawn()

    def by_query(inputs: Arrays) -> Arrays:
        sizes_hw = inputs["original_sizes_hw"]
        count = len(sizes_hw)
        scores = model.logits[:count].sigmoid().numpy() * np.array(TABLE.used)
        order = np.argsort(-scores.max(-1), axis=1)
        boxes = cxcywh_to_xyxy(model.boxes[:count]).numpy()
        boxes = boxes * np.tile(sizes_hw[:, ::-1], 2)[:, None]
        return {
            "boxes_xyxy": np.take_along_axis(boxes, order[..., None], 1),
            "scores": np.take_along_axis(scores.max(-1), order, 1),
            "category_ids": TABLE.ids_array[np.take_along_axis(scores.argmax(-1), order, 1)],
        }

    assert worst(by_query, model).scores > 0.01


@cache
def program_of(kind: str) -> tuple[nn.Module, torch.export.ExportedProgram]:
    model = sigmoid_model(kind)
    return model, export_program(model, TABLE, mask=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yolos", *DEFORMABLE])
def test_a_program_takes_any_number_and_size_of_pictures(kind: str) -> None:
    model, program = program_of(kind)
    run = program.module()
    for sizes in (((64, 64),), ((97, 141), (97, 141)), ((31, 17),), ((33, 290),), SIZES):
        batch = batch_of(*sizes)
        with torch.no_grad():
            output = model(batch)
        logits = output.logits
        expected = logits.softmax(-1)[..., :-1] if kind == "softmax" else logits.sigmoid()
        found = run(batch.pixels, batch.padding_mask)
        used = torch.tensor(TABLE.used)
        torch.testing.assert_close(found["scores"], expected * used, rtol=0, atol=1e-9)
        torch.testing.assert_close(found["boxes_cxcywh"], output.boxes_cxcywh, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("yolos", {}),
        ("rt", {}),
        ("rt", {"mask": False, "postprocess": True}),
        ("dino", {"mask": False}),
    ],
)
def test_an_onnx_file_finds_what_the_detector_does(
    kind: str, options: dict[str, bool], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    from detr_kit.export.onnx_file import export_onnx

    detector = Detector(sigmoid_model(kind, torch.float32), TABLE, PREPROCESSING, "cpu")
    report = export_onnx(detector, tmp_path / "a.onnx", **options)
    assert max(difference.largest for difference in report.differences) < 1e-4
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (90, 120, 3), dtype=np.uint8) for _ in range(2)]
    for one, other in zip(
        OnnxDetector.from_file(tmp_path / "a.onnx").predict(pictures, threshold=0.0),
        detector.predict(pictures, threshold=0.0),
        strict=True,
    ):
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=1e-4)
        assert one.names == other.names
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=0.05)
