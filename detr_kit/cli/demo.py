"""The command `demo`: a page in the browser that shows what a detector finds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detr_kit.cli.options import AnyDetector


def register(app: typer.Typer) -> None:
    app.command("demo")(demo_command)


def demo_command(
    checkpoint: AnyDetector,
    examples: Annotated[
        Path | None, typer.Option(help="Folder of pictures to choose from on the page.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; other than this, the network gets in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port; the first free one from 7860 on by default."),
    ] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Score to start with.")] = 0.5,
    max_file_mb: Annotated[int, typer.Option(min=1, help="Largest file taken, in MB.")] = 20,
    max_megapixels: Annotated[
        int, typer.Option(min=1, help="Largest picture taken, in million pixels; 89 at most.")
    ] = 50,
    device: str | None = None,
) -> None:
    """Show what a detector finds on a page in the browser; needs the extra `demo`."""
    from detr_kit.demo.limits import Limits
    from detr_kit.demo.server import serve  # tells that gradio is missing before a model is read
    from detr_kit.export.opening import open_predictor
    from detr_kit.inference.inputs import expand_inputs

    limits = Limits(file_bytes=max_file_mb * 2**20, pixels=max_megapixels * 10**6)
    pictures = expand_inputs([examples]) if examples is not None else []
    serve(
        open_predictor(checkpoint, device),
        title=_name_of(checkpoint),
        examples=pictures,
        host=host,
        port=port,
        threshold=threshold,
        limits=limits,
    )


def _name_of(checkpoint: str) -> str:
    """Return the end of a path, for all to see; a hub's name as it is."""
    path = Path(checkpoint)
    return "/".join(path.absolute().parts[-2:]) if path.exists() else checkpoint
