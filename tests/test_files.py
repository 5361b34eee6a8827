"""Files and folders are there whole or not at all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from detr_kit.files import atomic_folder, atomic_write, is_one_of, recover_folder


class DiskFullError(Exception):
    pass


def fill(writing: AbstractContextManager[Path]) -> None:
    """Begin to write and fail."""
    with writing as temporary:
        (temporary / "half" if temporary.is_dir() else temporary).write_text("half-wri")
        raise DiskFullError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(DiskFullError):
        fill(atomic_write(path))
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_swapped_whole(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    for content in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / content).write_text(content)
    with pytest.raises(DiskFullError):
        fill(atomic_folder(folder))
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_swap_that_was_cut_off_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "last"
    with atomic_folder(folder) as temporary:
        (temporary / "old").write_text("old")
    rename = Path.rename

    def die_before_the_second_rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", die_before_the_second_rename)
        swap = atomic_folder(folder)
        swap.__enter__()
        with pytest.raises(KeyboardInterrupt):
            swap.__exit__(None, None, None)
    assert not folder.exists()
    recover_folder(folder)
    assert (folder / "old").read_text() == "old"
    recover_folder(folder)  # nothing left to undo


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.mkdir()
    with pytest.raises(IsADirectoryError) as caught, atomic_write(target) as temporary:
        temporary.write_text("new")
    assert caught.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_files_are_the_same_by_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    (tmp_path / "link.json").symlink_to(path)
    assert is_one_of(tmp_path / "link.json", [tmp_path / "gone.json", path])
    assert not is_one_of(path, [tmp_path / "gone.json", tmp_path])
    assert not is_one_of(tmp_path / "gone.json", [tmp_path / "gone.json"])
