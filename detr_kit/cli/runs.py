"""Commands that look at runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console


def register(app: typer.Typer) -> None:
    app.command("plot")(plot_command)


def plot_command(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Path, typer.Option(help="Picture (.png, .svg, .pdf) or page (.html) to write.")
    ] = Path("runs.png"),
    metric: Annotated[
        str, typer.Option(help="Figure of the validation: ap, ap50, ap_small, per_class/NAME, ...")
    ] = "ap",
    x: Annotated[
        Literal["epoch", "step", "hours"], typer.Option(help="What it is over.")
    ] = "epoch",
) -> None:
    """Draw the losses, AP, rates and gradients of runs together, and list what they came to."""
    from detr_kit.training.run_plot import plot_runs
    from detr_kit.visualization.run_comparison import comparison_table

    summaries = plot_runs(run_folders, out, metric=metric, x=x)
    console = Console()
    console.print(comparison_table(summaries, metric))
    console.print(f"written to {out}", highlight=False, markup=False, soft_wrap=True)
