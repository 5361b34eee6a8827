"""What the tests of conversions share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.conversions.label_files import NAMES, picture, text


@pytest.fixture
def yolo_folder(tmp_path: Path) -> Path:
    """Two pictures, one with an object, in `images/` and `labels/`, with a classes.txt."""
    root = tmp_path / "data"
    picture(root / "images" / "a.png")
    picture(root / "images" / "b.png")
    text(root / "labels" / "a.txt", "1 0.5 0.5 0.25 0.5")
    text(root / "classes.txt", *NAMES)
    return root
