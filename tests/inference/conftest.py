from __future__ import annotations

from pathlib import Path

import pytest

from tests.inference.videos import write_video


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.avi")
