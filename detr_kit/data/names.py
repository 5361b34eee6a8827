"""File names of annotation files, which must stay inside the image folder."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath


def stays_inside(file_name: str) -> bool:
    """Whether a relative path stays in its folder, read by the rules of either system."""
    windows = PureWindowsPath(file_name)
    parts = {*PurePosixPath(file_name).parts, *windows.parts}
    return (
        bool(parts)
        and ".." not in parts
        and "\0" not in file_name
        and not file_name.startswith("/")
        and not windows.anchor
    )
