"""The detector's own graph in ONNX: from normalised pixels to scores and boxes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import onnx
import onnxscript.optimizer
import torch
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError
from detr_kit.export.metadata import ExportOptions
from detr_kit.export.preprocessing_graph import OPSET
from detr_kit.export.program import export_program
from detr_kit.export.translations import TRANSLATIONS
from detr_kit.images import one_line

# Names of the axes that may have any length.
_AXES: dict[str, dict[int, str]] = {
    "pixels": {0: "batch", 2: "height", 3: "width"},
    "padding_mask": {0: "batch", 1: "height", 2: "width"},
    "original_sizes_hw": {0: "batch"},
}
# A message of protobuf, and so a file without a second one for the weights, ends at 2 GiB.
_LARGEST_BYTES = 2**31 - 2**24


def core_graph(
    model: nn.Module, categories: CategoryTable, options: ExportOptions
) -> onnx.ModelProto:
    """Return the graph of a model in single precision, with the inputs and outputs of `options`.

    Raises DetrKitError where the model cannot be exported, and where it is too large for a file.
    """
    weights = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    if weights > _LARGEST_BYTES:
        raise DetrKitError(
            f"the model's weights take {weights / 2**30:.1f} GiB, one ONNX file holds less than 2"
        )
    program = export_program(model, categories, mask=options.mask, postprocess=options.postprocess)
    try:
        with warnings.catch_warnings():  # of torch 2.11 about itself
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(options.inputs),
                output_names=list(options.outputs),
                custom_translation_table=TRANSLATIONS,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = one_line(error.__cause__ or error)  # its own message is for torch's developers
        raise DetrKitError(f"the model cannot be written as ONNX: {reason}") from error
    assert converted is not None
    # Slices of weights become weights, so that whoever quantises or reads the file finds them.
    onnxscript.optimizer.optimize_ir(
        converted.model, input_size_limit=_LARGEST_BYTES, output_size_limit=_LARGEST_BYTES
    )
    return _tidied(converted.model_proto)


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name the free axes; leave out what the exporter notes of the source code and its place."""
    graph = model.graph
    names = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, name in _AXES[value.name].items():
            names[dims[axis].dim_param] = name
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = _renamed(dim.dim_param, names)
    for message in (model, graph, *graph.node, *graph.initializer, *_values(graph)):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    model.producer_name = "detr_kit"
    return model


def _renamed(expression: str, names: dict[str, str]) -> str:
    """Rename symbols in an axis's length, which may be a formula of theirs."""
    return re.sub(r"\w+", lambda word: names.get(word.group(), word.group()), expression)


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.output, *graph.value_info)
