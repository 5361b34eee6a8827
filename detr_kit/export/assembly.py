"""Putting an ONNX file together: the detector's graph, what stands before it, and its metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx
import onnx.checker
import onnx.compose
import onnx.helper
from torch import nn

from detr_kit.export.core_graph import core_graph
from detr_kit.export.metadata import FileMetadata
from detr_kit.export.preprocessing_graph import preprocessing_graph
from detr_kit.export.reduced_precision import with_precision


@dataclass(frozen=True)
class Assembled:
    """A file's content, and the two parts of it where resizing is one; else None."""

    whole: onnx.ModelProto
    core: onnx.ModelProto | None = None
    preprocessing: onnx.ModelProto | None = None


def assemble(model: nn.Module, metadata: FileMetadata) -> Assembled:
    """Return the graph of a model in single precision on the CPU, as `metadata.options` want it.

    Raises DetrKitError where the model cannot be exported.
    """
    options = metadata.options
    inner = replace(options, preprocess=False)
    core = with_precision(core_graph(model, metadata.categories, inner), options.precision)
    if not options.preprocess:
        return Assembled(_described(core, metadata))
    before = preprocessing_graph(
        metadata.preprocessing, ir_version=core.ir_version, original_sizes=options.postprocess
    )
    return Assembled(_described(_joined(before, core), metadata), core, before)


def _joined(before: onnx.ModelProto, core: onnx.ModelProto) -> onnx.ModelProto:
    prefixed = onnx.ModelProto()
    prefixed.CopyFrom(before)
    taken = {value.name for value in before.graph.input}
    for node in prefixed.graph.node:  # both graphs' inner names must differ
        for names in (node.input, node.output):
            names[:] = [_prefixed(name) if name and name not in taken else name for name in names]
    for output in prefixed.graph.output:
        output.name = _prefixed(output.name)
    joints = [(_prefixed(output.name), output.name) for output in before.graph.output]
    return onnx.compose.merge_models(prefixed, core, io_map=joints)


def _prefixed(name: str) -> str:
    return f"preprocessing/{name}"


def _described(model: onnx.ModelProto, metadata: FileMetadata) -> onnx.ModelProto:
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata.to_texts())
    model.producer_name = "detr_kit"
    model.graph.name = "detector"
    onnx.checker.check_model(model)
    return model
