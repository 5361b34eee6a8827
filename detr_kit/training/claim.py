"""One training a folder: two would overwrite each other's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from detr_kit.errors import DetrKitError

_LOCK_FILE = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder; raises DetrKitError where another process of this machine does.

    The system lets go of it when the process ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DetrKitError(
            f"{folder}: another process is training there; wait for its end, or end it"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file
            (folder / _LOCK_FILE).unlink()
        lock.release()
