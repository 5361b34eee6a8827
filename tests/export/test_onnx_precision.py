from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch

from detr_kit.export.check import Arrays
from detr_kit.export.core_graph import core_graph
from detr_kit.export.metadata import ExportOptions
from detr_kit.export.onnx_detector import OnnxDetector
from detr_kit.export.onnx_file import export_onnx
from detr_kit.export.reduced_precision import with_precision
from tests.export.onnx_files import drawn_pictures, exported_file, small_detector
from tests.export.small_models import TABLE
from tests.export.test_sigmoid_export import sigmoid_model

onnxruntime = pytest.importorskip("onnxruntime")
FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
FILES = [
    ("plain", {}),
    ("yolos", {}),
    pytest.param("detr", {"mask": False, "postprocess": True}, marks=pytest.mark.slow),
    pytest.param("yolos", {"postprocess": True}, marks=pytest.mark.slow),
]
# Largest differences of scores and of boxes, as parts of the picture, for random weights: twice to
# four times what they were when this was written.
BOUNDS = {"fp16": (2e-3, 1e-3), "int8": (4e-2, 2e-2)}


def graph_of(kind: str, **options: Any) -> onnx.ModelProto:
    return onnx.load(exported_file(kind, **options).path)


def run(model: onnx.ModelProto, height: int, width: int) -> Arrays:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    pixels = np.random.default_rng(0).standard_normal((2, 3, height, width)).astype(np.float32)
    mask = np.zeros((2, height, width), dtype=np.bool_)
    mask[1, :, width // 2 :] = True
    pixels[1, :, :, width // 2 :] = 0
    whole = {"pixels": pixels, "padding_mask": mask, "original_sizes_hw": np.ones((2, 2), int)}
    names = [value.name for value in session.get_outputs()]
    given = {value.name: whole[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(("kind", "options"), FILES, ids=str)
def test_a_graph_of_less_precision_finds_about_the_same(
    kind: str, options: dict[str, Any], precision: Any
) -> None:
    whole = graph_of(kind, **options)
    less = with_precision(copy.deepcopy(whole), precision)
    onnx.checker.check_model(less, full_check=True)
    expected, found = run(whole, 97, 141), run(less, 97, 141)
    for name, bound in zip(("scores", "boxes"), BOUNDS[precision], strict=True):
        key = next(key for key in expected if key.startswith(name))
        difference = np.abs(found[key] - expected[key]).max()
        assert 0 < difference < bound, name


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("kind", ["plain", "yolos"])
def test_inputs_and_outputs_keep_their_types(kind: str, precision: Any) -> None:
    whole = graph_of(kind).graph
    less = with_precision(graph_of(kind), precision).graph
    assert [value.SerializeToString() for value in less.input] == [
        value.SerializeToString() for value in whole.input
    ]
    assert [(value.name, value.type.tensor_type.elem_type) for value in less.output] == [
        (value.name, value.type.tensor_type.elem_type) for value in whole.output
    ]


@pytest.mark.parametrize(("precision", "part"), [("fp16", 0.5), ("int8", 0.25)])
@pytest.mark.parametrize("kind", ["plain", "yolos"])
def test_weights_take_less_room(kind: str, precision: Any, part: float) -> None:
    def weights(model: onnx.ModelProto) -> int:
        large = [t for t in model.graph.initializer if np.prod(t.dims) >= 4096]
        return sum(len(tensor.raw_data) for tensor in large)

    whole, less = graph_of(kind), with_precision(graph_of(kind), precision)
    assert weights(whole) > 0
    assert weights(less) == pytest.approx(part * weights(whole), rel=0.02)


def test_half_precision_spares_places_and_results() -> None:
    """What is counted in pixels or cells is not rounded to 11 bits on its way."""
    graph = onnx.shape_inference.infer_shapes(with_precision(graph_of("plain"), "fp16")).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.output}
    of_operator: dict[str, set[int]] = {}
    for node in graph.node:
        of_operator.setdefault(node.op_type, set()).add(types[node.output[0]])
    for operator in ("CumSum", "Sin", "Cos", "Sigmoid"):
        assert of_operator[operator] == {FLOAT}, operator
    assert of_operator["Conv"] == {FLOAT16}
    assert FLOAT16 in of_operator["LayerNormalization"]  # that of the queries alone is a constant
    makers = {name: node for node in graph.node for name in node.output}
    casts = [node for node in graph.node if node.op_type == "Cast"]
    halved_and_widened = [
        node.name
        for node in casts
        if node.attribute[0].i == FLOAT
        and node.input[0] in makers
        and makers[node.input[0]].op_type == "Cast"
        and types[makers[node.input[0]].input[0]] == FLOAT
    ]
    assert halved_and_widened == []


def test_8_bits_multiply_pictures_and_leave_tables_and_heads_alone() -> None:
    graph = with_precision(graph_of("yolos"), "int8").graph
    operators = [node.op_type for node in graph.node]
    # Two blocks; in the last one, queries are projected apart, as only detections ask there.
    assert operators.count("MatMulInteger") == 4 + 5
    assert "ConvInteger" not in operators
    # Two tables of positions along two axes, attention of two blocks, two heads of three layers.
    assert operators.count("MatMul") == 2 * 2 + 2 * 2 + 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "of_no_picture"), [("rt", 0), ("dino", 1), ("two_stage", 0)])
def test_8_bits_leave_the_heads_of_selections_and_of_earlier_layers_alone(
    kind: str, of_no_picture: int
) -> None:
    model: Any = sigmoid_model(kind, torch.float32)
    options = ExportOptions(mask=True, preprocess=False, postprocess=False, precision="int8")
    whole = core_graph(model, TABLE, options)
    names = {value.name for value in whole.graph.initializer}
    multiplied = [
        node for node in whole.graph.node if node.op_type == "MatMul" and node.input[1] in names
    ]
    graph = with_precision(whole, "int8").graph
    weights = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    spared = [
        weights[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    ]
    earlier, last = (heads.box_head for heads in model.heads), model.heads[-1].class_head
    chosen = (model.queries.heads.class_head, model.queries.heads.box_head)
    heads = [layer.weight for head in (*earlier, last, *chosen) for layer in head.layers]
    # Three layers for the boxes of the proposals and of two layers each, one for classes twice;
    # layers may share their heads.
    assert len(spared) == 3 * 3 + 2
    for weight in heads:
        assert any(np.array_equal(weight.detach().numpy().T, one) for one in spared)
    # DINO's first queries have learned content, the same for all pictures.
    rounded = [node.op_type for node in graph.node].count("MatMulInteger")
    assert rounded == len(multiplied) - len(spared) - of_no_picture


def test_quantising_does_not_touch_logging() -> None:
    before = logging.getLogger().level
    with_precision(graph_of("plain"), "int8")
    assert logging.getLogger().level == before


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("kind", ["plain", "yolos"])
def test_files_of_less_precision_take_pictures_too(
    tmp_path: Path, kind: str, precision: Any
) -> None:
    path = tmp_path / "a.onnx"
    detector = small_detector(kind)
    report = export_onnx(detector, path, preprocess=True, postprocess=True, precision=precision)
    assert report.options.precision == precision
    pictures = drawn_pictures((100, 130), (200, 90))
    found = OnnxDetector.from_file(path).predict(pictures, threshold=0.0)
    expected = detector.predict(pictures, threshold=0.0)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=BOUNDS[precision][0])
