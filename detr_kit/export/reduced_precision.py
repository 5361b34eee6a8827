"""Graphs with weights of 16 or 8 bits, made of those in single precision."""

from __future__ import annotations

import logging
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.shape_inference

from detr_kit.export.metadata import Precision
from detr_kit.export.runtime import require_onnxruntime

# Smaller constants are factors and shapes, not weights.
_LEAST_WEIGHTS = 4096
# How the converter's names of results in single precision end, in new and older releases.
_WIDE = re.compile(r"_cast_to_fp16$|(?<!graph)_output_cast_[0-9]+$")


def with_precision(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Return a core graph with other weights; inputs and outputs keep their types."""
    if precision == "fp32":
        return model
    require_onnxruntime()
    return _halved(model) if precision == "fp16" else _quantized(model)


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute in half precision, but not what it would spoil.

    Places of cells are counted and divided, and boxes multiplied by sizes in pixels: half
    precision tells 1000 pixels from 1001 and nothing between.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    _name_nodes(model.graph)
    kept = [node.name for node in (*_geometry(model.graph), *_after_products(model.graph))]
    halved = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=kept))
    del halved.model.graph.value_info[:]  # they tell the types from before
    halved.topological_sort()
    _undo_detours(halved.model.graph, _types(halved.model))
    halved.topological_sort()
    halved.prune_graph()
    return halved.model


def _quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Keep weights as 8 bits, with a scale for each output channel.

    Matrix products are computed in 8 bits: what comes in is rounded by its own range. The weights
    are unsigned, because signed ones overflow in the products of processors without VNNI.
    Convolutions are computed as before, ONNX Runtime's in 8 bits are the slower ones. All heads
    stay as they are, those too that queries are selected by and that make a layer's references:
    small, and rounding the last ones costs a YOLOS 2 points of AP.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _name_nodes(model.graph)
    seen = _reached(model.graph, {"pixels"})
    # What is multiplied with no picture, such as tables of positions, is not worth rounding.
    aside = [node for node in model.graph.node if _is_product(node) and node.output[0] not in seen]
    heads = _heads(model.graph)
    # The root logger is told to prepare the model in a way that needs static shapes.
    with tempfile.TemporaryDirectory() as folder, _silenced(logging.getLogger()):
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QUInt8,
            nodes_to_exclude=[node.name for node in (*aside, *heads)],
            extra_options={"MatMulConstBOnly": True},
        )
        quantized = onnx.load(path)
    kernels = {node.input[1] for node in quantized.graph.node if node.op_type == "Conv"}
    _compress(quantized.graph, kernels | {name for node in aside for name in node.input})
    return quantized


def _compress(graph: onnx.GraphProto, names: set[str]) -> None:
    """Store weights in 8 bits, a scale for each first index; they are widened when loaded.

    That is written as a cast and a product, which runtimes compute once, as all of constants.
    """
    widening = []
    for tensor in [tensor for tensor in graph.initializer if tensor.name in names]:
        if tensor.data_type != onnx.TensorProto.FLOAT or _count(tensor) < _LEAST_WEIGHTS:
            continue
        name, weight = tensor.name, onnx.numpy_helper.to_array(tensor)
        largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
        scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
        small = np.rint(weight / scale).astype(np.int8)
        graph.initializer.remove(tensor)
        for suffix, values in (("int8", small), ("scale", scale)):
            graph.initializer.append(onnx.numpy_helper.from_array(values, f"{name}_{suffix}"))
        to = onnx.TensorProto.FLOAT
        widening += [
            onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_wide"], to=to),
            onnx.helper.make_node("Mul", [f"{name}_wide", f"{name}_scale"], [name]),
        ]
    nodes = [*widening, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@contextmanager
def _silenced(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _geometry(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that know neither pixels nor weights: sizes, places, masks."""
    weights = {tensor.name for tensor in graph.initializer if _count(tensor) >= _LEAST_WEIGHTS}
    known = _reached(graph, {"pixels", *weights})
    for node in graph.node:
        if known.isdisjoint(node.output):
            yield node


def _reached(graph: onnx.GraphProto, names: set[str]) -> set[str]:
    """Return the names of everything computed from the values of `names`, not of their shapes."""
    reached = set(names)
    for node in graph.node:
        if node.op_type != "Shape" and reached.intersection(node.input):
            reached.update(node.output)
    return reached


def _after_products(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes whose results reach no further product with weights: the outputs' own."""
    read: set[str] = set()
    for node in reversed(graph.node):
        if _is_product(node) or read.intersection(node.output):
            read.update(node.input)
        else:
            yield node


def _heads(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the products that make scores and boxes, of what a normalisation gave.

    Those are all after the last normalisation, and before it those that boxes (a sigmoid, of the
    next layer's references) or a choice of tokens (a top-k) are made of without another one
    between. Sigmoids that gate what they are made of are no boxes.
    """
    before: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type == "LayerNormalization" or before.intersection(node.output):
            before.update(node.input)
    decides = _made_of(graph, _boxes_and_choices(graph))
    return [
        node
        for node in graph.node
        if _is_product(node)
        and (before.isdisjoint(node.output) or not decides.isdisjoint(node.output))
    ]


def _boxes_and_choices(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.node:
        gates = node.op_type == "Sigmoid" and all(
            reader.op_type == "Mul" and node.input[0] in reader.input
            for reader in readers.get(node.output[0], [])
        )
        if node.op_type == "TopK" or (node.op_type == "Sigmoid" and not gates):
            yield node


def _made_of(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the names of what nodes are computed from, back to the normalisations' outputs."""
    names = {name for node in nodes for name in node.input}
    for node in reversed(graph.node):
        if node.op_type != "LayerNormalization" and names.intersection(node.output):
            names.update(node.input)
    return names


def _undo_detours(graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
    """Read what was in single precision before it was halved and widened again.

    The converter does that between any two neighbours that stay in single precision.
    """
    halved = {node.output[0]: node.input[0] for node in _casts(graph, onnx.TensorProto.FLOAT16)}
    outputs = {value.name for value in graph.output}
    sources, renamed = {}, {}
    for node in _casts(graph, onnx.TensorProto.FLOAT):
        source, name = halved.get(node.input[0], ""), node.output[0]
        if types.get(source) != onnx.TensorProto.FLOAT:
            continue
        if name in outputs:
            renamed[source] = name
        else:
            sources[name] = source
        graph.node.remove(node)
    for node in graph.node:
        taken = [sources.get(name, name) for name in node.input]
        node.input[:] = [renamed.get(name, name) for name in taken]
        node.output[:] = [renamed.get(name, name) for name in node.output]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the types of all that a graph computes and takes."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _casts(graph: onnx.GraphProto, to: int) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "Cast" and node.attribute[0].i == to]


def _is_product(node: onnx.NodeProto) -> bool:
    return node.op_type in ("MatMul", "Gemm", "Conv")


def _count(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def _name_nodes(graph: onnx.GraphProto) -> None:
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
