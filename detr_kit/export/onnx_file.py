"""Writing a detector as an ONNX file, checked against the model that it was made of."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError
from detr_kit.export.check import (
    FEW_CASES,
    Arrays,
    Difference,
    Run,
    check_preprocessing,
    differences,
    require_close,
)
from detr_kit.export.metadata import ExportOptions, FileMetadata, Precision
from detr_kit.export.runtime import open_session, require_export_tools, run_session
from detr_kit.export.selected import selects_tokens, telling_tokens
from detr_kit.files import atomic_write, is_onnx_file
from detr_kit.preprocess import Preprocessing

if TYPE_CHECKING:
    from detr_kit.export.assembly import Assembled


class Exported(Protocol):
    """What is read of a detector; `detr_kit.inference.Detector` has it."""

    model: nn.Module
    categories: CategoryTable
    preprocessing: Preprocessing


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it is from the model.

    `opset` is None for a program of PyTorch. `differences` are empty where nothing was checked.
    `levels` tells by how many of 255 levels resizing in the graph differs from Pillow's at most,
    None where the graph does not resize.
    """

    path: Path
    options: ExportOptions
    opset: int | None
    size_bytes: int
    seconds: float
    differences: tuple[Difference, ...]
    levels: float | None = None


def export_onnx(
    detector: Exported,
    path: str | Path,
    *,
    mask: bool | None = None,
    preprocess: bool = False,
    postprocess: bool = False,
    precision: Precision = "fp32",
    check: bool = True,
) -> ExportReport:
    """Write a detector as one ONNX file, for any number and size of pictures.

    `mask` lets pictures of a batch differ in size, padded to a common one: by default, unless the
    graph resizes. `preprocess` has the graph take uint8 pictures, resize and normalise them;
    `postprocess` has it give boxes in pixels and category ids, best first. `precision` fp16 halves
    the file, for GPUs; int8 quarters it, for CPUs. `docs/export.md` lists inputs and outputs.

    With `check`, the file is compared with the model before it gets its name: batches of 1, 2 and
    3, three sizes, padding inside where there is a mask. See `detr_kit.export.check`.

    Raises DetrKitError where the options exclude each other, where the model cannot be exported,
    where the graph differs from it, and where the extra `onnx` is not installed; the file is then
    not written.
    """
    started = time.perf_counter()
    target = Path(path)
    if not is_onnx_file(target):
        raise DetrKitError(f"{path}: an ONNX file's name ends in .onnx")
    options = ExportOptions(
        mask=not preprocess if mask is None else mask,
        preprocess=preprocess,
        postprocess=postprocess,
        precision=precision,
    )
    require_export_tools()
    import onnx

    from detr_kit.export.assembly import assemble

    model = plain_copy(detector.model)
    scoring: Any = getattr(model, "scoring", "softmax")
    metadata = FileMetadata(detector.categories, detector.preprocessing, options, scoring)
    assembled = assemble(model, metadata)
    found: tuple[Difference, ...] = ()
    levels = None
    with atomic_write(target) as temporary:
        onnx.save(assembled.whole, temporary)
        if check:
            if assembled.preprocessing is not None:
                levels = check_preprocessing(
                    _runner(assembled.preprocessing), metadata.preprocessing
                )
            found = tuple(_checked(temporary, assembled, model, metadata))
            require_close(found, precision, str(path))
    return ExportReport(
        target,
        options,
        opset=next(o.version for o in assembled.whole.opset_import if not o.domain),
        size_bytes=target.stat().st_size,
        seconds=time.perf_counter() - started,
        differences=found,
        levels=levels,
    )


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy in single precision on the CPU, in evaluation mode and without gradients."""
    return copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)


def _checked(
    path: Path, assembled: Assembled, model: nn.Module, metadata: FileMetadata
) -> Iterator[Difference]:
    whole = _runner(path, selects=selects_tokens(model))
    if assembled.preprocessing is None or assembled.core is None:
        yield from differences(whole, model, metadata)
        return
    # All sizes of batches and pictures through the part that does not resize them, and then a few,
    # as they become large, through the file.
    inner = replace(metadata, options=replace(metadata.options, preprocess=False))
    core = _runner(assembled.core, selects=selects_tokens(model))
    yield from differences(core, model, inner)
    preprocess = _runner(assembled.preprocessing)
    yield from differences(whole, model, metadata, preprocess=preprocess, cases=FEW_CASES)


def _runner(source: Any, *, selects: bool = False) -> Run:
    """Return a function that runs a file, or a graph in memory, on ONNX Runtime.

    One that selects its queries also tells which tokens they are of.
    """
    if selects:
        import onnx

        source = telling_tokens(onnx.load(source) if isinstance(source, Path) else source)
    session = open_session(source if isinstance(source, Path) else source.SerializeToString())
    names = [value.name for value in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, run_session(session, names, inputs, "the graph"), strict=True))

    return run
