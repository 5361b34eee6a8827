"""Writing files so that a reader never meets half of one, whatever ends the process or machine."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` unless the block raises.

    What was written reaches the disk before the rename does. An OSError about the temporary file
    is raised as one about `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(target).with_suffix(f".tmp{target.suffix}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        temporary.unlink(missing_ok=True)


def is_onnx_file(path: str | Path) -> bool:
    """Return whether a name is that of an ONNX file, which ends in .onnx in any case."""
    return Path(path).suffix.lower() == ".onnx"


def is_one_of(path: str | Path, others: Iterable[str | Path]) -> bool:
    """Return whether `path` exists and is one of other files, whatever they are called."""
    if not Path(path).exists():
        return False
    return any(Path(other).exists() and Path(path).samefile(other) for other in others)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; swap it in for `path` unless the block raises.

    What was written reaches the disk before the swap does. A folder cannot be renamed over another,
    so the old one steps aside first; `recover_folder` puts it back if the process ended between
    the two renames.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(target).with_suffix(".tmp")
    temporary.mkdir()
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        aside = _aside(target)
        shutil.rmtree(aside, ignore_errors=True)
        if target.exists():
            target.rename(aside)
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(path: str | Path) -> None:
    """Undo an `atomic_folder` that was cut off after the old folder had stepped aside."""
    target = Path(path)
    if not target.exists():
        with suppress(FileNotFoundError):  # nothing to undo, or another process was faster
            _aside(target).rename(target)


def sweep(path: str | Path) -> None:
    """Recover `path`, and delete what writers that were cut off have left beside it.

    Only where no other process may be writing it now.
    """
    recover_folder(path)
    target = Path(path)
    for left in [*target.parent.glob(f".{target.name}.*.tmp*"), _aside(target)]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, has reached the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(target: Path) -> Path:
    """Return a hidden name that no other process takes, nor one on another machine."""
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}.x")


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
