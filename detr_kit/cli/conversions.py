"""Commands that turn labels into COCO files and back, and cut and join such files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from detr_kit.errors import DetrKitError

Annotations = Annotated[Path, typer.Argument(help="COCO-format json.")]


def import_command(
    source: Annotated[Path, typer.Argument(help="Folder of labels, or a data.yaml.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.json", help="COCO-format json to write.")],
    label_format: Annotated[
        Literal["yolo", "voc"] | None,
        typer.Option("--format", help="Told from the folder where left out."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the pictures, where it is not in a usual place."),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(help="File with the classes' names, one a line, or a data.yaml."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="One of several splits, such as train.")] = None,
    difficult_as_crowd: Annotated[
        bool,
        typer.Option(help="VOC: AP ignores difficult objects, and training leaves them out."),
    ] = True,
    on_bad_box: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="Stop at boxes without a side or outside, or leave them out and count."),
    ] = "raise",
) -> None:
    """Make a COCO json of YOLO or Pascal VOC labels."""
    from detr_kit.data.conversions.formats import import_labels

    report = import_labels(
        source,
        out,
        label_format=label_format,
        images=images,
        names=names,
        split=split,
        difficult_as_crowd=difficult_as_crowd,
        on_bad_box=on_bad_box,
    )
    typer.echo(report)


def export_labels_command(
    annotations: Annotations,
    out: Annotated[Path, typer.Argument(help="New or empty, or an export to add --split to.")],
    label_format: Annotated[Literal["yolo", "voc"], typer.Option("--format")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the pictures; OUT gets links to them."),
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the pictures instead.")] = False,
    split: Annotated[
        str | None,
        typer.Option(
            help="What the json is, such as train; call again for val, into the same OUT."
        ),
    ] = None,
    on_bad_box: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="Stop at a box without a side, or leave it out and count it."),
    ] = "raise",
) -> None:
    """Write a COCO json as YOLO or Pascal VOC labels."""
    from detr_kit.data.conversions.formats import export_labels

    typer.echo(
        export_labels(
            annotations,
            out,
            label_format,
            images=images,
            copy=copy,
            split=split,
            on_bad_box=on_bad_box,
        )
    )


def split_command(
    annotations: Annotations,
    parts: Annotated[
        list[str],
        typer.Argument(metavar="OUT.json=FRACTION...", help="Such as train.json=0.8 val.json=0.2"),
    ],
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
) -> None:
    """Deal out the pictures of a COCO json, with the same share of every class."""
    from detr_kit.data.conversions.subsets import split

    for report in split(annotations, dict(map(_part, parts)), seed=seed):
        typer.echo(report)


def _part(text: str) -> tuple[Path, float]:
    path, _, fraction = text.rpartition("=")
    try:
        # Without "=" all of the text is the fraction, and no number.
        return Path(path), float(fraction)
    except ValueError as error:
        raise DetrKitError(f"{text!r}: expected a file and a fraction, out.json=0.8") from error


def merge_command(
    sources: Annotated[list[Path], typer.Argument(help="COCO-format jsons.")],
    out: Annotated[Path, typer.Option(help="COCO-format json to write.")],
    prefix: Annotated[
        list[str] | None,
        typer.Option(help="Put before the file names of a source; once for each, in order."),
    ] = None,
) -> None:
    """Join COCO jsons into one; categories are joined by name."""
    from detr_kit.data.conversions.merging import merge

    report = merge(sources, out, prefixes=prefix or ())
    for line in (*report.notes, report):
        typer.echo(line)


def subset_command(
    annotations: Annotations,
    out: Annotated[Path, typer.Argument(metavar="OUT.json", help="COCO-format json to write.")],
    classes: Annotated[
        list[str],
        typer.Option(help="A name, or several with commas between them; may be repeated."),
    ],
    keep_empty: Annotated[
        bool,
        typer.Option("--keep-empty", help="Keep pictures that have none of the classes."),
    ] = False,
) -> None:
    """Write the part of a COCO json that has certain classes."""
    from detr_kit.data.conversions.subsets import subset

    typer.echo(subset(annotations, out, classes, keep_empty=keep_empty))


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("import")(import_command)
    app.command("export-labels")(export_labels_command)
    app.command("split")(split_command)
    app.command("merge")(merge_command)
    app.command("subset")(subset_command)
