"""Writing a detector as PyTorch's own exported program, checked as ONNX files are."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.export import ExportedProgram

from detr_kit.errors import DetrKitError
from detr_kit.export.check import Arrays, Difference, Run, differences, require_close
from detr_kit.export.metadata import ExportOptions, FileMetadata
from detr_kit.export.onnx_file import Exported, ExportReport, plain_copy
from detr_kit.export.program import export_program, save_program
from detr_kit.export.selected import SELECTED, TellingTokens, selects_tokens


def export_torch(
    detector: Exported,
    path: str | Path,
    *,
    mask: bool = True,
    postprocess: bool = False,
    check: bool = True,
) -> ExportReport:
    """Write a detector as a `.pt2` file, which `torch.export.load` reads without detr_kit.

    Arguments, check and errors are those of `export_onnx`, inputs and outputs those of
    `detr_kit.export.program.export_program`. The file says nothing of categories and
    preprocessing.
    """
    started = time.perf_counter()
    target = Path(path)
    if target.suffix.lower() != ".pt2":
        raise DetrKitError(f"{path}: the name of an exported program ends in .pt2")
    options = ExportOptions(mask, False, postprocess, "fp32")
    model = plain_copy(detector.model)
    program = export_program(model, detector.categories, mask=mask, postprocess=postprocess)
    found: tuple[Difference, ...] = ()
    if check:
        metadata = FileMetadata(detector.categories, detector.preprocessing, options)
        run = program_run(program, selects=selects_tokens(model))
        found = tuple(differences(run, model, metadata))
        require_close(found, "fp32", str(path))
    save_program(program, target)
    return ExportReport(
        target,
        options,
        opset=None,
        size_bytes=target.stat().st_size,
        seconds=time.perf_counter() - started,
        differences=found,
    )


def program_run(program: ExportedProgram, *, selects: bool) -> Run:
    """Return a function that runs a program; one that selects its queries tells their tokens."""
    module = program.module()

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode(), TellingTokens() as telling:
            outputs = module(*(torch.from_numpy(value) for value in inputs.values()))
        if selects:
            assert telling.tokens is not None
            outputs = {**outputs, SELECTED: telling.tokens}
        return {name: value.numpy() for name, value in outputs.items()}

    return run
