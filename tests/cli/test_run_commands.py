"""Commands that look at runs, as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the records of two runs."""
    for name, ap in (("first", 0.25), ("second", 0.5)):
        (tmp_path / name).mkdir()
        row = {"epoch": 1, "step": 9, "lr": 1e-4, "seconds": 60, "val": {"ap": ap, "ap50": 0.75}}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plot_lists_and_draws_runs(run: Run, place: Path) -> None:
    code, out, err = run("plot", "first", "second")
    assert (code, err) == (0, "")
    for text in ("first", "second", "0.250", "0.500", "written to runs.png"):
        assert text in out
    assert (place / "runs.png").exists()
    code, out, _ = run("plot", "first", "--out", "page.html", "--metric", "ap50", "--x", "hours")
    assert code == 0
    assert "ap50" in out
    assert "0.750" in out
    assert (place / "page.html").exists()


def test_mistakes_are_one_line(run: Run, place: Path) -> None:
    for arguments, message in (
        (["third"], "third: no such run"),
        (["first", "--metric", "ap51"], "--metric ap51: no run has it; there are ap, ap50"),
        (["first", "--out", "runs.doc"], "runs.doc: not the name of a file to draw into"),
    ):
        code, out, err = run("plot", *arguments)
        assert (code, out) == (1, "")
        assert err.startswith(f"detr-kit: {message}")
        assert err.count("\n") == 1
    (place / "second" / "metrics.jsonl").write_text("")
    code, _, err = run("plot", "first", "second")
    assert code == 0
    assert err == "detr-kit: warning: second: no finished epoch yet\n"
