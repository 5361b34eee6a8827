from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from detr_kit.errors import DetrKitError
from detr_kit.export import assembly, check, core_graph, onnx_file
from detr_kit.export.onnx_file import export_onnx
from detr_kit.export.preprocessing_graph import OPSET
from tests.export.onnx_files import exported_file, small_detector
from tests.export.small_models import MODELS

KINDS = ("plain", "yolos")
BATCH, HEIGHT, WIDTH = "batch", "height", "width"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the graph of `plain` from its file: tracing it takes seconds."""
    path = exported_file("plain").path
    monkeypatch.setattr(assembly, "core_graph", lambda *_: onnx.load(path))


def shapes(values: Any) -> dict[str, list[str | int]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_takes_any_number_and_size_of_pictures(kind: str) -> None:
    report = exported_file(kind)
    graph = onnx.load(report.path).graph
    assert shapes(graph.input) == {
        "pixels": [BATCH, 3, HEIGHT, WIDTH],
        "padding_mask": [BATCH, HEIGHT, WIDTH],
    }
    assert shapes(graph.output) == {"scores": [BATCH, 6, 5], "boxes_cxcywh": [BATCH, 6, 4]}


def test_a_file_with_everything_in_it_takes_pictures() -> None:
    report = exported_file("plain", preprocess=True, postprocess=True)
    graph = onnx.load(report.path).graph
    assert shapes(graph.input) == {"images": [BATCH, "image_height", "image_width", 3]}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert shapes(graph.output) == {
        "boxes_xyxy": [BATCH, 6, 4],
        "scores": [BATCH, 6],
        "category_ids": [BATCH, 6],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_tells_the_differences_of_every_size(kind: str) -> None:
    report = exported_file(kind)
    assert [(d.batch_size, d.size_hw) for d in report.differences] == list(check.ALL_CASES)
    assert 0 < max(difference.largest for difference in report.differences) < 1e-5
    assert report.opset == OPSET
    assert report.size_bytes == report.path.stat().st_size
    assert report.seconds > 0
    assert report.levels is None


def test_a_file_that_resizes_is_checked_in_parts_and_as_a_whole() -> None:
    report = exported_file("plain", preprocess=True, postprocess=True)
    cases = [(d.batch_size, d.size_hw) for d in report.differences]
    assert cases == [*check.ALL_CASES, *check.FEW_CASES]
    assert report.levels is not None
    assert report.levels < 1.001


def test_a_file_says_what_its_columns_and_pictures_are() -> None:
    model = onnx.load(exported_file("plain").path)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(texts["categories"])[3] == {"id": 11, "name": "owl", "used": True}
    assert json.loads(texts["preprocessing"])["size"] == {
        "rule": "detr",
        "short_side": 96,
        "long_side": 160,
    }
    assert json.loads(texts["export_options"])["precision"] == "fp32"
    assert model.producer_name == "detr_kit"
    assert model.opset_import[0].version == OPSET


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_says_nothing_of_the_machine_it_was_made_on(kind: str) -> None:
    content = exported_file(kind).path.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(Path(core_graph.__file__).parent).encode() not in content


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_computed_of_another_one(kind: str) -> None:
    """Slices of packed projections and folded norms are weights of their own."""
    graph = onnx.load(exported_file(kind).path).graph
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    movers = [node for node in graph.node if node.op_type in ("Slice", "Transpose", "Split")]
    assert not [node.name for node in movers if node.input[0] in weights]
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("kind", KINDS)
def test_attention_asks_no_weight_whether_it_is_a_number(kind: str) -> None:
    operators = {node.op_type for node in onnx.load(exported_file(kind).path).graph.node}
    assert "Softmax" in operators
    assert "IsNaN" not in operators


def test_the_detector_stays_what_it_was(tmp_path: Path, quick: None) -> None:
    detector = small_detector("plain")
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    detector.model.train()
    export_onnx(detector, tmp_path / "a.onnx")
    assert detector.model.training
    after = detector.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert any(parameter.requires_grad for parameter in detector.model.parameters())


def test_without_the_check_nothing_is_compared(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "differences", lambda *_, **__: pytest.fail("compared"))
    report = export_onnx(small_detector("plain"), tmp_path / "a.onnx", check=False)
    assert report.differences == ()
    assert report.path.is_file()


def test_a_graph_that_differs_from_its_model_is_not_written(tmp_path: Path, quick: None) -> None:
    detector = small_detector("plain")
    with torch.no_grad():
        detector.model.heads.class_head.layers[-1].bias[0] += (
            1.0  # the file's graph has the old one
        )
    path = tmp_path / "a.onnx"
    path.write_bytes(b"an older file")
    message = (
        rf"^{path}: not written: the exported graph differs from the model by \d\.\de-0\d in "
        r"scores, in a batch of \d of \d+ x \d+; at most 0\.0001 passes in fp32$"
    )
    with pytest.raises(DetrKitError, match=message):
        export_onnx(detector, path)
    assert path.read_bytes() == b"an older file"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_are_none_are_a_difference(tmp_path: Path, quick: None) -> None:
    detector = small_detector("plain")
    with torch.no_grad():
        detector.model.heads.class_head.layers[-1].bias[1] = float("nan")
    with pytest.raises(DetrKitError, match=r"a\.onnx: not written: the exported graph gives"):
        export_onnx(detector, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_too_large_for_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_graph, "_LARGEST_BYTES", 1000)
    with pytest.raises(DetrKitError, match="one ONNX file holds less than 2"):
        export_onnx(small_detector("plain"), tmp_path / "a.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mask"),
    [
        ("group", True),
        ("learned", True),
        ("dc5", True),
        ("lite0", True),
        ("lite0_batch", False),
        ("squeeze", False),
        ("official", True),
        ("yolos_first", True),
        ("yolos_official", True),
    ],
)
def test_every_kind_of_model_becomes_a_file(kind: str, mask: bool) -> None:
    if "timm" in str(MODELS[kind][1].get("backbone")):
        pytest.importorskip("timm")
    report = exported_file(kind, mask=mask)
    assert len(report.differences) == len(check.ALL_CASES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.pt", {}, r"a\.pt: an ONNX file's name ends in \.onnx"),
        ("a.onnx", {"mask": True, "preprocess": True}, "mask and preprocess exclude each other"),
        ("a.onnx", {"precision": "bf16"}, "precision 'bf16' is unknown"),
    ],
)
def test_options_that_make_no_file_are_refused(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DetrKitError, match=message):
        export_onnx(small_detector("plain"), tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_kit.export.runtime.find_spec", lambda name: None)
    with pytest.raises(DetrKitError, match=r"needs onnx, onnxscript, onnxruntime: pip install"):
        export_onnx(small_detector("plain"), tmp_path / "a.onnx")
