"""Commands that train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detr_kit.cli.options import Overrides

if TYPE_CHECKING:
    from detr_kit.training.run import Run

StopAfter = Annotated[
    int | None,
    typer.Option(min=1, help="End early after this epoch; `resume` goes on."),
]


def register(app: typer.Typer) -> None:
    app.command("train")(train_command)
    app.command("resume")(resume_command)


def train_command(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Overrides = None,
    stop_after_epoch: StopAfter = None,
) -> None:
    """Train a detector: detr-kit train configs/detr_r50.yaml data.train.annotations=..."""
    from detr_kit.training.run import train

    run = train(config, overrides or [], stop_after_epoch=stop_after_epoch)
    _end(run)


def resume_command(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    overrides: Overrides = None,
    stop_after_epoch: StopAfter = None,
) -> None:
    """Continue a run from the step that was saved last: detr-kit resume RUN [epochs=100]."""
    from detr_kit.training.run import resume

    run = resume(run_folder, overrides or [], stop_after_epoch=stop_after_epoch)
    _end(run)


def _end(run: Run) -> None:
    """Draw the run; where a signal stopped it, exit with the status that asks for another start."""
    from detr_kit.training.signals import STOPPED_EXIT_CODE
    from detr_kit.visualization.curves import draw_curves

    # Under torchrun every process comes here; one of them draws.
    if os.environ.get("RANK", "0") == "0" and run.metrics:
        try:
            draw_curves(run.metrics, run.folder / "curves.png")
        except OSError as error:  # the training has come to its end all the same
            print(f"detr-kit: warning: {run.folder / 'curves.png'}: {error.strerror or error}")
    if run.stopped_by is not None:
        raise typer.Exit(STOPPED_EXIT_CODE)
