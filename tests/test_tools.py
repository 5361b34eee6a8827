"""The benchmarks start, so that a renamed function is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "tools" / "benchmark"


@pytest.mark.parametrize(
    "script",
    ["annotations.py", "coco_sized.py", "evaluation.py", "pipeline.py", "resize.py", "workers.py"],
)
def test_scripts_start(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout.lower()
