"""The command `benchmark`: how long a detector takes on this machine."""

from __future__ import annotations

import json
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from detr_kit.cli.options import AnyDetector
from detr_kit.errors import DetrKitError

_LOG_WIDTH = 120


class BackendName(str, Enum):
    """The names of `detr_kit.latency.backends.Backend`; Typer takes no list of literals."""

    EAGER = "eager"
    COMPILE = "compile"
    ONNX = "onnx"


def register(app: typer.Typer) -> None:
    app.command("benchmark")(benchmark_command)


def benchmark_command(
    checkpoint: AnyDetector,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEIGHTxWIDTH", help="Of the pictures; 480x640 by default. Can be repeated."
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Pictures a call. Can be repeated.")
    ] = None,
    backend: Annotated[
        list[BackendName] | None,
        typer.Option(help="What runs the model. Can be repeated."),
    ] = None,
    device: str | None = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="Half precision suits GPUs.")
    ] = "fp32",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Calls whose times count.")] = 30,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this json.")
    ] = None,
) -> None:
    """Measure latency and throughput by picture size, batch size and backend."""
    sizes_hw = [_size_hw(text) for text in size or ["480x640"]]

    from detr_kit.files import atomic_write
    from detr_kit.latency.benchmark import benchmark
    from detr_kit.latency.report import lines, tables, to_json

    report = benchmark(
        checkpoint,
        sizes_hw,
        batch_size or [1],
        [name.value for name in backend or []],
        device=device,
        precision=precision,
        threads=threads,
        repeats=repeats,
    )
    console = Console()
    if not console.is_terminal:  # a file keeps the columns whole; only a terminal has a width
        console = Console(width=_LOG_WIDTH)
    for table in tables(report):
        console.print(table)
    for line in lines(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if json_out is not None:
        with atomic_write(json_out) as temporary:
            text = json.dumps(to_json(report), indent=2) + "\n"
            temporary.write_text(text, encoding="utf-8")
        console.print(f"written to {json_out}", highlight=False, markup=False, soft_wrap=True)


def _size_hw(text: str) -> tuple[int, int]:
    """Read `480x640`: the height, then the width, as everywhere here."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise DetrKitError(f"--size {text}: expected HEIGHTxWIDTH in pixels, such as 480x640")
    return int(found[1]), int(found[2])
