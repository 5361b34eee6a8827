"""The benchmarks and studies start, so that a renamed function is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.mark.parametrize(
    "script",
    [
        "benchmark/annotations.py",
        "benchmark/coco_sized.py",
        "benchmark/evaluation.py",
        "benchmark/matching.py",
        "benchmark/pipeline.py",
        "benchmark/resize.py",
        "benchmark/training_step.py",
        "benchmark/workers.py",
        "crash_check.py",
        "interval_coverage.py",
        "memory_check.py",
        "nan_check.py",
        "same_runs.py",
    ],
)
def test_scripts_start(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / script), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout.lower()
