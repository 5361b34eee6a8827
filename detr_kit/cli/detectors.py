"""Commands that tell or change what a detector is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from detr_kit.cli.options import Checkpoint, Overrides


def register(app: typer.Typer) -> None:
    app.command("info")(info_command)
    app.command("convert")(convert_command)


def info_command(
    source: Annotated[str, typer.Argument(metavar="CONFIG|CHECKPOINT")],
    overrides: Overrides = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Height and width for GFLOPs, by default what 480 x 640 pixels are resized to."
        ),
    ] = None,
) -> None:
    """Show parameters, GFLOPs, categories, where the weights come from, and the model's numbers."""
    from detr_kit.inference.info import describe

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in describe(source, overrides or [], size_hw=size).items():
        table.add_row(name, value)
    Console().print(table, highlight=False, markup=False)


def convert_command(
    source: Checkpoint,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, or .pth file.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Numbers of the model that its file does not tell, such as dilation=true.",
        ),
    ] = None,
    to: Annotated[
        Literal["detr_kit", "official", "huggingface"],
        typer.Option(help="What to write: a folder, a .pth, or a folder for transformers."),
    ] = "detr_kit",
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO-format json that names an official head's columns by id."),
    ] = None,
) -> None:
    """Write a DETR or YOLOS of any kind in another form."""
    from detr_kit.checkpoints.convert import convert
    from detr_kit.checkpoints.listing import listed
    from detr_kit.config import parse_overrides
    from detr_kit.data.annotations import load_annotations

    table = load_annotations(annotations, on_bad_box="skip").categories if annotations else None
    opened = convert(
        source,
        out,
        form=to,
        architecture=parse_overrides(settings or []),
        categories=dict(zip(table.ids, table.names, strict=True)) if table else None,
    )
    console = Console(soft_wrap=True)
    lines = [
        f"{source}: {opened.kind}",
        f"{len(opened.tensors)} tensors, {len(opened.spec.categories)} class columns, "
        f"{sum(opened.spec.categories.used)} used",
    ]
    if opened.dropped:
        lines.append(f"{len(opened.dropped)} keys dropped: {listed(opened.dropped, 4)}")
        assert opened.key_map is not None
        lines += sorted({opened.key_map.dropped_because(key) for key in opened.dropped})
    for line in (*lines, *opened.notes, f"written to {out}"):
        console.print(line, highlight=False, markup=False)
