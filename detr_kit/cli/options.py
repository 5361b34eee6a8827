"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the config's."),
]
Annotations = Annotated[Path, typer.Option(help="COCO-format json with the true objects.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures at a time.")]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Run or checkpoint folder, official .pth, Hugging Face folder or hub name.",
    ),
]
AnyDetector = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Run or checkpoint folder, exported .onnx, official .pth, Hugging Face folder or hub "
        "name.",
    ),
]
