"""Small data sets for the tests of conversions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from detr_kit.images import EXIF_ORIENTATION

NAMES = ("circle", "star")


def picture(path: Path, width: int = 40, height: int = 20, orientation: int = 1) -> Path:
    """Write a black picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.new("L", (width, height)).save(path, exif=exif)
    return path


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def written(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def file_names(path: Path) -> list[str]:
    return [image["file_name"] for image in written(path)["images"]]


def category_names(path: Path) -> list[str]:
    return [category["name"] for category in written(path)["categories"]]
