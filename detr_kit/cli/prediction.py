"""The command `predict`: pictures, folders and videos in, drawings and json out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from detr_kit.cli.options import AnyDetector
from detr_kit.errors import DetrKitError
from detr_kit.outputs import require_output

if TYPE_CHECKING:
    from detr_kit.inference.predictor import Predictor
    from detr_kit.inference.thresholds import Threshold


def register(app: typer.Typer) -> None:
    app.command("predict")(predict_command)


def predict_command(
    checkpoint: AnyDetector,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Pictures and folders of them, or videos, or camera:0."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write drawn pictures or videos into this folder."),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", help="Write a COCO results json; of a video, a line a frame."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least score to keep; 0.5, or the file's with the next."),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            help="Json with a least score for each class: what eval --json or score --json wrote "
            "(its F1-best), or an object of your own."
        ),
    ] = None,
    nms: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="IoU above which the worse of two boxes of a class goes."),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Look at large pictures in tiles of this side, in pixels, too."),
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="What neighbouring tiles share; 0.2.")
    ] = None,
    track: Annotated[bool, typer.Option(help="Follow objects through a video.")] = False,
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO-format json whose image ids the results are to have."),
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="End a video, or a camera, after so many frames.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures at a time; 8, or 4 frames of a video.")
    ] = None,
    device: str | None = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="Half precision suits GPUs.")
    ] = "fp32",
    compile_layers: Annotated[
        bool, typer.Option("--compile", help="Compile the transformer; it pays on GPUs.")
    ] = False,
) -> None:
    """Find objects in pictures and videos."""
    videos = _videos_among(inputs)
    of_videos = {"--track": track or None, "--max-frames": max_frames}
    of_pictures = {"--tile": tile, "--overlap": overlap, "--annotations": annotations}
    _require_fitting(videos, inputs, json_out, of_pictures if videos else of_videos)
    if overlap is not None and tile is None:
        raise DetrKitError("--overlap: it is for tiles; give --tile too")
    if json_out is not None:
        require_output(json_out, [p for p in (thresholds, annotations) if p], option="--json")

    from detr_kit.export.opening import open_predictor

    predictor = open_predictor(
        checkpoint, device=device, precision=precision, compile=compile_layers
    )
    least = _threshold(predictor, threshold, thresholds)
    options: dict[str, Any] = {"threshold": least, "nms": nms}
    if videos:
        options |= {"track": track, "max_frames": max_frames, "batch_size": batch_size or 4}
        _predict_videos(predictor, videos, out, json_out, options)
    else:
        options |= {"tile": tile, "batch_size": batch_size or 8}
        options |= {} if overlap is None else {"overlap": overlap}
        options["known_ids"] = _ids_by_file_name(annotations)
        _predict_pictures(predictor, inputs, out, json_out, options)


def _predict_pictures(
    predictor: Predictor,
    inputs: list[str],
    out: Path | None,
    json_out: Path | None,
    options: dict[str, Any],
) -> None:
    """Do what can be done; unreadable pictures are a line each, and an exit status of 1."""
    from detr_kit.images import ImageError
    from detr_kit.inference.files import predict_files
    from detr_kit.training.signals import STOPPED_EXIT_CODE, StopSignals

    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    unreadable: list[ImageError] = []

    def note(error: ImageError) -> None:
        unreadable.append(error)
        errors.print(f"detr-kit: {error}", highlight=False, markup=False)

    with StopSignals() as signals:
        found = predict_files(
            predictor,
            inputs,
            out=out,
            json_path=json_out,
            on_unreadable=note,
            should_stop=lambda: signals.received is not None,
            **options,
        )
    if out is None and json_out is None:
        for picture, detections in found:
            objects = zip(detections.names, detections.scores, strict=True)
            text = ", ".join(f"{name} {score:.2f}" for name, score in objects)
            console.print(f"{picture}: {text or 'nothing found'}", highlight=False, markup=False)
    count = sum(len(detections) for _, detections in found)
    places = ", ".join(str(place) for place in (out, json_out) if place is not None)
    summary = f"{_count(len(found), 'picture')}, {_count(count, 'object')}"
    summary += f": {places}" if places and found else ""
    console.print(summary, highlight=False, markup=False)
    if signals.received is not None:
        errors.print(f"detr-kit: stopped early by {signals.received}", highlight=False)
        raise typer.Exit(STOPPED_EXIT_CODE)
    if unreadable:
        given = _count(len(found) + len(unreadable), "picture")
        raise DetrKitError(f"{len(unreadable)} of {given} could not be read")


def _predict_videos(
    predictor: Predictor,
    videos: list[str],
    out: Path | None,
    json_out: Path | None,
    options: dict[str, Any],
) -> None:
    """Write `out`/NAME.mkv for each; a stop ends them all."""
    from detr_kit.inference.video import predict_video
    from detr_kit.training.signals import STOPPED_EXIT_CODE

    if out is None and json_out is None:
        raise DetrKitError("a video needs --out FOLDER, --json FILE or both")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True)
    for video in videos:
        drawn = None if out is None else out / f"{Path(video.replace(':', '_')).stem}.mkv"
        summary = predict_video(predictor, video, out=drawn, json_lines=json_out, **options)
        places = ", ".join(str(place) for place in (drawn, json_out) if place is not None)
        console.print(f"{summary}: {places}", highlight=False, markup=False)
        if summary.stopped_by is not None:
            raise typer.Exit(0 if summary.is_camera else STOPPED_EXIT_CODE)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _videos_among(inputs: list[str]) -> list[str]:
    from detr_kit.inference.video_source import is_video

    return [given for given in inputs if is_video(given)]


def _require_fitting(
    videos: list[str], inputs: list[str], json_out: Path | None, others: dict[str, Any]
) -> None:
    """Raise DetrKitError for options of the `others`, and for videos that would share a file."""
    misplaced = next((option for option, value in others.items() if value is not None), None)
    if misplaced is not None:
        here, there = ("videos", "pictures") if videos else ("pictures", "videos")
        raise DetrKitError(f"{misplaced}: it is for {there}, not for {here}")
    if not videos:
        return
    if len(videos) < len(inputs):
        raise DetrKitError(f"{videos[0]}: give videos and pictures to separate commands")
    if json_out is not None and len(videos) > 1:
        raise DetrKitError(f"--json {json_out}: it is one file; give one video at a time")
    names = [Path(video).stem for video in videos]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DetrKitError(
            f"{twice}: two videos of this name would be one file; give them one by one"
        )


def _threshold(predictor: Predictor, one: float | None, of_classes: Path | None) -> Threshold:
    """Return one score for all, or the file's, where the number stands in for missing ones."""
    if of_classes is None:
        return 0.5 if one is None else one
    from detr_kit.inference.thresholds import DEFAULT, load_thresholds

    by_class = load_thresholds(of_classes, predictor.categories)
    return by_class if one is None else {**by_class, DEFAULT: one}


def _ids_by_file_name(annotations: Path | None) -> dict[str, int] | None:
    if annotations is None:
        return None
    from detr_kit.data.annotations import load_annotations

    loaded = load_annotations(annotations, on_bad_box="skip")
    return dict(zip(loaded.file_names, loaded.image_ids.tolist(), strict=True))
