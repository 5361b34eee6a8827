"""Commands that score what a detector found, explain the figures and compare them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from detr_kit.cli.options import Annotations, AnyDetector, BatchSize
from detr_kit.errors import DetrKitError

if TYPE_CHECKING:
    from detr_kit.evaluation.coco import Evaluation
    from detr_kit.evaluation.options import ScoringOptions

JsonOut = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]
HtmlOut = Annotated[
    Path | None, typer.Option("--html", help="Write a report that explains the figures.")
]
Ious = Annotated[
    list[float] | None,
    typer.Option("--iou", help="IoU threshold, again for more; COCO's ten by default."),
]
Areas = Annotated[
    list[str] | None,
    typer.Option(
        "--area",
        metavar="NAME=LEAST:MOST",
        help="Range of areas in square pixels, such as tiny=0:256, again for more; COCO's small, "
        "medium and large by default.",
    ),
]
MaxDetections = Annotated[
    list[int] | None,
    typer.Option(
        min=1,
        help="Best-scored detections of a picture and class that count, again for more; the "
        "largest is AP's. 1, 10 and 100 by default.",
    ),
]
ClassAgnostic = Annotated[bool, typer.Option("--class-agnostic", help="Take all classes for one.")]
WithInterval = Annotated[
    bool, typer.Option(help="Compute the 95 % interval of AP by a bootstrap over the pictures.")
]


def register(app: typer.Typer) -> None:
    app.command("eval")(eval_command)
    app.command("score")(score_command)
    app.command("compare")(compare_command)
    app.command("report")(report_command)


def eval_command(
    checkpoint: AnyDetector,
    annotations: Annotations,
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    json_out: JsonOut = None,
    html: HtmlOut = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Write the detections as a COCO results json."),
    ] = None,
    iou: Ious = None,
    area: Areas = None,
    max_detections: MaxDetections = None,
    class_agnostic: ClassAgnostic = False,
    interval: WithInterval = True,
    batch_size: BatchSize = 8,
    num_workers: Annotated[int, typer.Option(min=0)] = 0,
    on_bad_image: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="skip counts unreadable pictures as without detections."),
    ] = "raise",
    device: str | None = None,
) -> None:
    """Compute the COCO figures of a checkpoint on a data set."""
    options = _options(iou, area, max_detections, class_agnostic)
    _require_outputs([annotations], json=json_out, html=html, results=results)

    from detr_kit.evaluation.coco import evaluation_of
    from detr_kit.evaluation.results import write_results
    from detr_kit.evaluation.run import find_in_dataset
    from detr_kit.export.opening import open_predictor

    found = find_in_dataset(
        open_predictor(checkpoint, device=device),
        annotations,
        images,
        batch_size=batch_size,
        num_workers=num_workers,
        on_bad_image=on_bad_image,
    )
    if results is not None:
        write_results(results, found)
    evaluation = evaluation_of(found, annotations, options=options)
    title, subtitle = str(checkpoint), f"on {annotations}"
    _show(evaluation, interval, json_out, html, images, title, subtitle)


def score_command(
    results: Annotated[Path, typer.Argument(help="COCO results json of any detector.")],
    annotations: Annotations,
    json_out: JsonOut = None,
    html: HtmlOut = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures, for those in the report.")
    ] = None,
    iou: Ious = None,
    area: Areas = None,
    max_detections: MaxDetections = None,
    class_agnostic: ClassAgnostic = False,
    interval: WithInterval = True,
    backend: Annotated[
        Literal["numpy", "pycocotools"],
        typer.Option(help="pycocotools gives the same numbers, far slower."),
    ] = "numpy",
) -> None:
    """Compute the COCO figures of a results file."""
    options = _options(iou, area, max_detections, class_agnostic)
    _require_outputs([results, annotations], json=json_out, html=html)
    if images is not None and html is None:
        raise DetrKitError(f"--images {images}: pictures are for the report; give --html FILE too")

    from detr_kit.evaluation.coco import evaluation_of

    evaluation = evaluation_of(results, annotations, options=options, backend=backend)
    _show(evaluation, interval, json_out, html, images, str(results), f"on {annotations}")


def compare_command(
    results_a: Annotated[Path, typer.Argument(help="COCO results json of a detector.")],
    results_b: Annotated[Path, typer.Argument(help="That of another one.")],
    annotations: Annotations,
    json_out: JsonOut = None,
    iou: Ious = None,
    area: Areas = None,
    max_detections: MaxDetections = None,
    class_agnostic: ClassAgnostic = False,
) -> None:
    """Tell whether the difference of two results is more than chance, and in which classes."""
    options = _options(iou, area, max_detections, class_agnostic)
    _require_outputs([results_a, results_b, annotations], json=json_out)

    from detr_kit.evaluation.comparison import compare_results

    with _status("resampling the pictures"):
        comparison = compare_results(results_a, results_b, annotations, options=options)
    _write_json(json_out, comparison.to_dict())
    Console().print(comparison.table())


def report_command(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; report.html in the run by default.")
    ] = None,
) -> None:
    """Write the report of a run again: its figures, what costs AP, its worst pictures."""
    from detr_kit.training.report import write_run_report

    console = Console(soft_wrap=True)
    with _status("writing the report"):
        path = write_run_report(run_folder, out=out)
    console.print(f"written to {path}", highlight=False, markup=False)


def _options(
    iou: list[float] | None,
    area: list[str] | None,
    max_detections: list[int] | None,
    class_agnostic: bool,
) -> ScoringOptions:
    from detr_kit.evaluation.options import ScoringOptions

    given: dict[str, Any] = {}
    if iou:
        given["iou_thresholds"] = iou
    if area:
        named = [_area(text) for text in area]
        given["areas"] = dict(named)
        if len(given["areas"]) < len(named):
            raise DetrKitError("--area: two ranges have one name")
    if max_detections:
        given["max_detections"] = max_detections
    return ScoringOptions(class_agnostic=class_agnostic, **given)


def _area(text: str) -> tuple[str, tuple[float, float]]:
    """An open end is COCO's own, which is beyond all pictures."""
    from detr_kit.evaluation.options import ALL_AREAS, AREAS

    name, _, bounds = text.partition("=")
    low, colon, high = bounds.partition(":")
    try:
        if not (name and colon):
            raise ValueError("a part is missing")
        return name, (float(low), float(high) if high else AREAS[ALL_AREAS][1])
    except ValueError as error:
        raise DetrKitError(
            f"--area {text}: expected NAME=LEAST:MOST in square pixels, such as tiny=0:256 or "
            "big=9216:"
        ) from error


def _require_outputs(inputs: list[Path], **outputs: Path | None) -> None:
    """Raise DetrKitError where a file to write is one that was given, or two are one."""
    from detr_kit.outputs import require_output

    written: set[Path] = set()
    for name, path in outputs.items():
        if path is None:
            continue
        require_output(path, inputs, option=f"--{name}")
        if path.resolve() in written:
            raise DetrKitError(f"--{name} {path}: another output has that name too")
        written.add(path.resolve())


def _show(
    evaluation: Evaluation,
    with_interval: bool,
    json_out: Path | None,
    html: Path | None,
    images: Path | None,
    title: str,
    subtitle: str,
) -> None:
    """Print and write what was asked for."""
    metrics = evaluation.metrics
    if with_interval:
        from detr_kit.evaluation.bootstrap import ap_interval

        with _status("resampling the pictures for the interval of AP"):
            metrics = replace(metrics, ap_interval=ap_interval(evaluation))
        evaluation = replace(evaluation, metrics=metrics)
    if json_out is not None or html is not None:
        from detr_kit.evaluation.analysis import analyse

        with _status("looking for what costs AP"):
            analysis = analyse(evaluation)
        _write_json(json_out, metrics.to_dict() | {"analysis": analysis.to_dict()})
    if html is not None:
        from detr_kit.visualization.evaluation_report import write_evaluation_report

        with _status("writing the report"):
            write_evaluation_report(analysis, html, images=images, title=title, subtitle=subtitle)
    console = Console()
    console.print(metrics.table())
    for path in (json_out, html):
        if path is not None:
            console.print(f"written to {path}", highlight=False, markup=False, soft_wrap=True)


def _write_json(path: Path | None, values: dict[str, Any]) -> None:
    from detr_kit.files import atomic_write

    if path is not None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _status(text: str) -> Any:
    """Say what takes its time, on a terminal only."""
    return Console(stderr=True).status(text)
