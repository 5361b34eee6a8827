"""Columns of an annotation file kept on disk, to be mapped into memory by every process.

An entry is a folder of `.npy` files and a `meta.json`, named after a hash of the json's content.
Hashing a large file takes a moment, so the cache also notes which content a file had at which
size, time and place on disk: while those stay the same, so does the content.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write

# Raise it when the meaning of the columns changes, and old entries are no longer read.
FORMAT = 2
# A file that was written this recently may change again without a change of its time.
_SETTLED_SECONDS = 1.0
_TEMPORARY = ".writing-"
_LEFT_SECONDS = 24 * 3600
# What reading an entry raises where it is not there or not whole.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, DetrKitError)

Signature = list[int]


def signature_of(path: Path) -> Signature | None:
    """Return what changes whenever the file is written: size, times and place on disk.

    None where there is no such file.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def digest_of(content: bytes | bytearray) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def known_digest(cache_dir: Path, path: Path) -> str | None:
    """Return the digest of a file whose signature is the noted one, None where it is not."""
    try:
        noted = json.loads(_note_path(cache_dir, path).read_text(encoding="utf-8"))
        return str(noted["digest"]) if noted["signature"] == signature_of(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_digest(cache_dir: Path, path: Path, signature: Signature | None, digest: str) -> None:
    """Note that the file had this content when it had this signature."""
    if signature is not None and time.time_ns() - signature[1] > _SETTLED_SECONDS * 1e9:
        note = {"path": str(path), "signature": signature, "digest": digest}
        with atomic_write(_note_path(cache_dir, path)) as temporary:
            temporary.write_text(json.dumps(note) + "\n", encoding="utf-8")


def _note_path(cache_dir: Path, path: Path) -> Path:
    return cache_dir / f"{digest_of(os.fsencode(path.resolve()))[:16]}.json"


def entry_folder(cache_dir: Path, digest: str, variant: str) -> Path:
    return cache_dir / f"{digest}-{variant}-{FORMAT}"


def store(
    folder: Path,
    arrays: dict[str, np.ndarray],
    meta: dict[str, Any],
    read: Callable[[Path], object],
) -> None:
    """Write an entry; where another process was faster, its equal entry stays.

    `read` raises one of DAMAGED on entries that are not whole; such a one is replaced. Raises
    OSError where the entry cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        (temporary / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")
        if not _renamed(temporary, folder) and not _is_whole(folder, read):
            # Moved aside first, in one step: it may be mapped, and others may be storing too.
            aside = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder.parent))
            _renamed(folder, aside / "damaged")
            shutil.rmtree(aside, ignore_errors=True)
            _renamed(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _renamed(source: Path, target: Path) -> bool:
    try:
        source.rename(target)
    except OSError:
        return False
    return True


def _is_whole(folder: Path, read: Callable[[Path], object]) -> bool:
    try:
        read(folder)
    except DAMAGED:
        return False
    return True


def _remove_leftovers(cache_dir: Path) -> None:
    """Remove what processes left that ended while they wrote, more than a day ago."""
    for folder in cache_dir.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays, mapped read-only, and the meta data of an entry.

    Raises one of DAMAGED where it is missing or not whole.
    """
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    arrays = {path.stem: _mapped(path) for path in folder.glob("*.npy")}
    return arrays, meta


def _mapped(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except EOFError as error:
        raise ValueError(f"{path} is cut off") from error
    # A plain view: numpy's memmap class costs time at each access.
    return np.asarray(array)
