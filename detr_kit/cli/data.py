"""Commands that look at data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from detr_kit.cli.options import Overrides
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write, is_one_of


def register(app: typer.Typer) -> None:
    app.command("check")(check_command)
    app.command("show-batch")(show_batch_command)
    app.command("sample")(sample_command)


def check_command(
    annotations: Annotated[
        list[Path],
        typer.Argument(help="COCO-format json, or several: the splits of one data set."),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of the pictures; repeated where each split has its own."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with pictures.")] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            help="Write a repaired json to this new file, and a log of every change beside it."
        ),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", help="Write what was found, the first 20 cases of a kind, here."),
    ] = None,
    decode: Annotated[
        bool,
        typer.Option("--decode", help="Decode every picture, not its header alone."),
    ] = False,
    queries: Annotated[
        int,
        typer.Option(min=1, help="Most objects that the model can find in a picture."),
    ] = 100,
) -> None:
    """Find what is wrong with a data set; the exit status is 1 where there are errors."""
    _require_safe_outputs(annotations, json_out, html, fix)
    from detr_kit.data.checks.fix import fix as write_fixed
    from detr_kit.data.checks.run import check, splits_of
    from detr_kit.data.checks.text import repaired_text, report_text

    report = check(annotations, images or None, decode=decode, num_queries=queries)
    console = Console(soft_wrap=True)
    console.print(report_text(report, with_pictures=bool(images), being_fixed=fix is not None))
    if json_out is not None:
        with atomic_write(json_out) as path:
            path.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    if html is not None:
        from detr_kit.visualization.check_report import write_check_report

        write_check_report(report, splits_of(annotations, images or None), html)
    if fix is not None:
        repaired = write_fixed(annotations[0], fix, report, images=images[0] if images else None)
        console.print(repaired_text(repaired), markup=False, highlight=False)
    if report.num_errors:
        raise typer.Exit(1)


def _require_safe_outputs(
    annotations: list[Path], json_out: Path | None, html: Path | None, fix: Path | None
) -> None:
    """Raise DetrKitError, before anything is read, where an output would replace other files."""
    if fix is not None and len(annotations) > 1:
        raise DetrKitError("--fix repairs one annotation file at a time")
    outputs = [
        ("--json", json_out, (".json",)),
        ("--html", html, (".html", ".htm")),
        ("--fix", fix, ()),
        ("--fix", fix and fix.with_suffix(".log.txt"), ()),
    ]
    written: set[Path] = set()
    for option, path, suffixes in outputs:
        if path is None:
            continue
        if path.resolve() in written:
            raise DetrKitError(f"{option} {path}: another output has that name too")
        written.add(path.resolve())
        if not path.is_file():
            continue
        if is_one_of(path, annotations):
            raise DetrKitError(f"{option} {path}: it is a file to check; choose another to write")
        # Another json than an earlier report may be labels.
        if path.suffix.lower() not in suffixes or (option == "--json" and not _is_report(path)):
            raise DetrKitError(f"{option} {path}: it is there already; choose a new file to write")


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return b"".join(file.read(100).split()).startswith(b'{"annotations":["')


def show_batch_command(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("batch.png"),
    split: Annotated[Literal["train", "val"], typer.Option()] = "train",
    epoch: Annotated[int, typer.Option(min=1, help="Augmentation differs by epoch.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Which batch of the epoch.")] = 1,
) -> None:
    """Draw a batch as the model receives it: augmented, normalised, padded, with its boxes."""
    from detr_kit.config import load_config
    from detr_kit.visualization.batch import show_batch

    lines = show_batch(
        load_config(config, overrides or []), out, split=split, epoch=epoch, batch=batch
    )
    console = Console(soft_wrap=True)
    for line in (*lines, f"drawn in {out}"):
        console.print(line, highlight=False, markup=False)


def sample_command(
    out: Annotated[Path, typer.Argument(help="New folder to write.")],
    preset: Annotated[str, typer.Option(help="easy or hard.")] = "easy",
    seed: int = 0,
    train: Annotated[int, typer.Option(help="Number of training pictures.")] = 1000,
    val: Annotated[int, typer.Option(help="Number of validation pictures.")] = 200,
) -> None:
    """Write a generated data set of shapes, to try things out."""
    from detr_kit.data.sample import write_sample

    write_sample(out, preset, seed=seed, train=train, val=val)
    Console().print(f"{out}: {train} training and {val} validation pictures", highlight=False)
