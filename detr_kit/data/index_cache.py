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
import time
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.files import atomic_write

# Raise it when the meaning of the columns changes, and old entries are no longer read.
FORMAT = 1
# A file that was written this recently may change again without a change of its time.
_SETTLED_SECONDS = 1.0

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


def store(folder: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write an entry; where another process was faster, its equal entry stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        (temporary / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays, mapped read-only, and the meta data of an entry.

    Raises OSError or ValueError where it is missing or damaged.
    """
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    arrays = {path.stem: _mapped(path) for path in folder.glob("*.npy")}
    return arrays, meta


def _mapped(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    # A plain view: numpy's memmap class costs time at each access.
    return np.asarray(array)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
