"""The benchmarks and studies start, so that a renamed function is noticed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.mark.parametrize(
    "script",
    [
        "benchmark/annotations.py",
        "benchmark/coco_sized.py",
        "benchmark/deformable_attention.py",
        "benchmark/evaluation.py",
        "benchmark/inference.py",
        "benchmark/ladder.py",
        "benchmark/ladder_costs.py",
        "benchmark/matching.py",
        "benchmark/pipeline.py",
        "benchmark/resize.py",
        "benchmark/small_data.py",
        "benchmark/tiles.py",
        "benchmark/training_step.py",
        "benchmark/workers.py",
        "batch_check.py",
        "crash_check.py",
        "demo_check.py",
        "hostile_check.py",
        "interval_coverage.py",
        "memory_check.py",
        "nan_check.py",
        "onnx_check.py",
        "overfit.py",
        "same_runs.py",
        "video_check.py",
    ],
)
def test_scripts_start(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = TOOLS / script
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(path.parent)  # where Python looks first for what a script imports
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code in (0, None)
    assert path.name in capsys.readouterr().out
