from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from detr_kit.demo import uploads
from detr_kit.demo.guard import Guard
from detr_kit.demo.uploads import LARGEST_UPLOADS, UPLOAD_AGE, UploadFolder

UPLOAD_BYTES = 100_000


def written(path: Path, size: int = 10, seconds_ago: float = 0) -> Path:
    """Write a file; tell the folder it is in."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    when = time.time() - seconds_ago
    os.utime(path, (when, when))
    os.utime(path.parent, (when, when))
    return path


def test_so_many_of_the_largest_uploads_fit(tmp_path: Path) -> None:
    folder = UploadFolder(tmp_path, UPLOAD_BYTES)
    for number in range(LARGEST_UPLOADS):
        assert folder.has_room()
        written(tmp_path / str(number) / "street.png", UPLOAD_BYTES)
    assert not folder.has_room()


def test_uploads_under_way_are_given_room(tmp_path: Path) -> None:
    folder = UploadFolder(tmp_path, UPLOAD_BYTES)
    written(tmp_path / "0" / "street.png", (LARGEST_UPLOADS - 1) * UPLOAD_BYTES)
    with folder.arriving():
        assert not folder.has_room()
    assert folder.has_room()


def test_room_is_given_back_by_an_upload_that_fails(tmp_path: Path) -> None:
    folder = UploadFolder(tmp_path, LARGEST_UPLOADS)
    for _ in range(LARGEST_UPLOADS):
        with pytest.raises(ValueError, match="of gradio"), folder.arriving():
            raise ValueError("of gradio")
    assert folder.has_room()


def test_small_files_cannot_be_many_either(tmp_path: Path) -> None:
    folder = UploadFolder(tmp_path, UPLOAD_BYTES)
    for number in range(2 * LARGEST_UPLOADS):
        written(tmp_path / f"tmp{number}", 0)
    assert not folder.has_room()


def test_what_lies_there_first_takes_no_room_and_stays(tmp_path: Path) -> None:
    thumbnail = written(tmp_path / "0" / "image.webp", 10**7, seconds_ago=10_000)
    folder = UploadFolder(tmp_path, UPLOAD_BYTES)
    assert folder.has_room()
    folder.sweep()
    assert thumbnail.exists()


def test_what_is_old_is_deleted_with_its_folder(tmp_path: Path) -> None:
    folder = UploadFolder(tmp_path, UPLOAD_BYTES)
    new = written(tmp_path / "0" / "street.png", seconds_ago=UPLOAD_AGE - 60)
    old = written(tmp_path / "1" / "street.png", seconds_ago=UPLOAD_AGE + 60)
    broken_off = written(tmp_path / "tmp2", seconds_ago=UPLOAD_AGE + 60)
    folder.sweep()
    assert new.exists()
    assert not old.exists()
    assert not broken_off.exists()
    now = time.time() - UPLOAD_AGE - 60
    os.utime(old.parent, (now, now))  # deleting its file wrote to it
    folder.sweep()
    assert not old.parent.exists()


def test_old_files_are_looked_for_as_long_as_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SWEEP_EVERY", 0)
    left: list[bool] = []

    async def gradio(scope: Any, receive: Any, send: Any) -> None:
        for number in range(2):
            old = written(tmp_path / f"tmp{number}", seconds_ago=UPLOAD_AGE + 60)
            await asyncio.sleep(0.05)
            left.append(old.exists())

    guard = Guard(gradio, folder=tmp_path, hosts=None, file_bytes=1000)
    nothing: Any = None
    asyncio.run(guard({"type": "lifespan"}, nothing, nothing))
    assert left == [False, False]
