"""The command `export`: a detector as a file that runs without detr_kit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from detr_kit.cli.options import Checkpoint
from detr_kit.errors import DetrKitError
from detr_kit.files import is_onnx_file

if TYPE_CHECKING:
    from detr_kit.export.onnx_file import ExportReport
    from detr_kit.inference.detector import Detector

_FORMATS = {".onnx": "onnx", ".pt2": "torch"}


def register(app: typer.Typer) -> None:
    app.command("export")(export_command)


def export_command(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New file, .onnx or .pt2.")],
    given_form: Annotated[
        Literal["onnx", "torch"] | None,
        typer.Option("--format", help="ONNX or torch.export; by default, what OUT ends in."),
    ] = None,
    mask: Annotated[
        bool | None,
        typer.Option(
            "--mask/--no-mask",
            help="Whether pictures of a batch may be padded; without, it is faster. On unless "
            "--preprocess.",
        ),
    ] = None,
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="Take uint8 pictures; resize them in the graph.")
    ] = False,
    postprocess: Annotated[
        bool, typer.Option("--postprocess", help="Give boxes in pixels and category ids.")
    ] = False,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(help="Of weights and products: fp16 suits GPUs, int8 CPUs."),
    ] = "fp32",
    check: Annotated[
        bool, typer.Option(help="Compare the file with the model before it is kept.")
    ] = True,
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO-format json: print the AP of the model and of the file on it."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of its pictures.")] = None,
) -> None:
    """Write a detector as a file that runs without detr_kit: ONNX, or torch.export's."""
    form = _format_of(out, given_form)
    if (annotations is None) != (images is None):
        raise DetrKitError("--annotations and --images belong together")
    if form == "torch":
        _require_plain(preprocess=preprocess, precision=precision, annotations=annotations)
    if is_onnx_file(checkpoint):
        raise DetrKitError(f"{checkpoint}: is exported already; give what it was exported from")

    from detr_kit.inference.detector import Detector

    detector = Detector.from_checkpoint(checkpoint, device="cpu")
    options: dict[str, Any] = {"mask": mask, "postprocess": postprocess, "check": check}
    if form == "onnx":
        options |= {"preprocess": preprocess, "precision": precision}
    with Console(stderr=True).status(f"exporting{' and checking' if check else ''}"):
        report = _export(detector, out, form, options)
    _show(report)
    if annotations is not None and images is not None:
        _show_accuracy(detector, report, annotations, images)


def _export(detector: Detector, out: Path, form: str, options: dict[str, Any]) -> ExportReport:
    from detr_kit.export.onnx_file import export_onnx
    from detr_kit.export.torch_file import export_torch

    if form == "onnx":
        return export_onnx(detector, out, **options)
    return export_torch(detector, out, **options | {"mask": options["mask"] is not False})


def _format_of(out: Path, given: str | None) -> str:
    of_name = _FORMATS.get(out.suffix.lower())
    if of_name is None or given not in (None, of_name):
        ends = [suffix for suffix, form in _FORMATS.items() if given in (None, form)]
        raise DetrKitError(f"{out}: its name must end in {' or '.join(ends)}")
    return of_name


def _require_plain(*, preprocess: bool, precision: str, annotations: Path | None) -> None:
    given = {
        "--preprocess": preprocess,
        f"--precision {precision}": precision != "fp32",
        "--annotations": annotations is not None,
    }
    named = [name for name, is_given in given.items() if is_given]
    if named:
        raise DetrKitError(f"{named[0]} is for ONNX files, not for torch.export's")


def _show(report: ExportReport) -> None:
    console = Console(soft_wrap=True)
    if report.differences:
        table = Table("batch", "height x width", "scores", "boxes", box=None)
        for found in report.differences:
            height, width = found.size_hw
            table.add_row(
                str(found.batch_size),
                f"{height} x {width}",
                f"{found.scores:.1e}",
                f"{found.boxes:.1e}",
            )
        console.print("Largest differences from the model, boxes as parts of a picture's sides:")
        console.print(table)
    if report.levels is not None:
        console.print(f"resizing: {report.levels:.0f} of 255 levels off Pillow's at most")
    options = report.options
    for kind, names in (("inputs", options.inputs), ("outputs", options.outputs)):
        console.print(f"{kind}: {', '.join(names)}", highlight=False)
    opset = "" if report.opset is None else f", opset {report.opset}"
    console.print(
        f"written to {report.path}: {report.size_bytes / 1e6:.1f} MB{opset}, "
        f"{options.precision}, {report.seconds:.0f} s"
        + ("" if report.differences else ", not checked"),
        highlight=False,
        markup=False,
    )


def _show_accuracy(
    detector: Detector, report: ExportReport, annotations: Path, images: Path
) -> None:
    from detr_kit.evaluation.run import evaluate
    from detr_kit.export.onnx_detector import OnnxDetector

    table = Table("AP", "AP50", "of", box=None)
    for name, predictor in (
        ("the model", detector),
        (f"the file, {report.options.precision}", OnnxDetector.from_file(report.path)),
    ):
        metrics = evaluate(predictor, annotations, images)
        table.add_row(f"{metrics.ap:.4f}", f"{metrics.ap50:.4f}", name)
    Console(soft_wrap=True).print(table)
