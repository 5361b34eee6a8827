"""The command line. Commands are thin: each calls one function that Python users can call too.

torch is imported inside the commands that need it, so that `detr-kit --help` answers at once.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from detr_kit.cli import (
    conversions,
    data,
    demo,
    detectors,
    evaluation,
    exporting,
    latency,
    prediction,
    runs,
    training,
)
from detr_kit.errors import DetrKitError, DetrKitWarning

app = typer.Typer(
    help="Object detection with transformers: train, evaluate and ship DETR and YOLOS.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Listed in the help; `main` reads it."""


for commands in (
    training,
    runs,
    evaluation,
    prediction,
    exporting,
    latency,
    demo,
    detectors,
    data,
    conversions,
):
    commands.register(app)


def main() -> None:
    """Run a command; an error a user can mend is one line on stderr and exit status 1."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments  # accepted anywhere, not only before the command
    with warnings.catch_warnings():
        warnings.simplefilter("always", DetrKitWarning)
        warnings.showwarning = _show_warning
        try:
            app(args=[argument for argument in arguments if argument != "--debug"])
        except (DetrKitError, OSError) as error:
            if debug:
                raise
            print(f"detr-kit: {_line(error)}", file=sys.stderr)
            sys.exit(1)


def _line(error: Exception) -> str:
    """Name the file first, as all other lines do, and no number of the system."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _show_warning(
    message: Warning | str, category: type[Warning], *place: Any, **options: Any
) -> None:
    """Print what concerns the user's own things as one line, other warnings with their place."""
    if issubclass(category, DetrKitWarning):
        print(f"detr-kit: warning: {message}", file=sys.stderr)
    else:
        _show_with_place(message, category, *place, **options)


_show_with_place = warnings.showwarning
