"""The folder where uploads lie: how much may be in it, and for how long.

gradio (6.31) deletes what it lists as uploads. It leaves what was broken off, sent under another
name or refused half way, and an empty file for each picture that was opened.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# An uploaded file is deleted so many seconds after it came, looked for every so many.
UPLOAD_AGE, SWEEP_EVERY = 300, 60
# The folder has room for so many of the largest uploads.
LARGEST_UPLOADS = 20
# What the smallest file counts for: more of them would take long to look through.
_LEAST_BYTES = 64 * 2**10


class UploadFolder:
    """A folder that anyone may send files to, of `upload_bytes` at most each time.

    What is in it at first is the page's own (thumbnails): it stays, and takes up no room.
    """

    def __init__(self, path: Path, upload_bytes: int) -> None:
        self.path = path
        self.upload_bytes = upload_bytes
        self._arriving = 0
        self._own: frozenset[Path] = frozenset()
        self._own = frozenset(file for file, _ in self._files())

    def has_room(self) -> bool:
        """Whether one more upload fits, with all that those under way may bring."""
        taken = sum(max(found.st_size, _LEAST_BYTES) for _, found in self._files())
        coming = (self._arriving + 1) * self.upload_bytes
        return taken + coming <= LARGEST_UPLOADS * self.upload_bytes

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Keep room for an upload while it is under way."""
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    async def sweep_regularly(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            self.sweep()

    def sweep(self) -> None:
        """Delete what nobody has written to for a while."""
        latest = time.time() - UPLOAD_AGE
        for file, found in self._files():
            if found.st_mtime < latest:
                with suppress(OSError):  # gone, or open where that keeps it
                    file.unlink()
        for folder in self.path.iterdir():
            with suppress(OSError):  # a file, or not empty
                if folder.stat().st_mtime < latest:
                    folder.rmdir()

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, _, names in os.walk(self.path):
            for name in names:
                file = Path(folder, name)
                if file not in self._own:
                    with suppress(FileNotFoundError):
                        yield file, file.lstat()
