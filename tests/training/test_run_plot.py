"""Runs drawn together: whatever their records hold."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_kit.errors import DetrKitError
from detr_kit.training.run_files import METRICS_FILE
from detr_kit.training.run_plot import UnfinishedRunWarning, plot_runs
from detr_kit.visualization.run_comparison import draw_runs, require_metric


def row(epoch: int, ap: float | None = None, **more: Any) -> dict[str, Any]:
    train = {"loss": 9 / epoch, "class": 1 / epoch, "l1": 0.5, "giou": None, "grad_norm": 40.0}
    values: dict[str, Any] = {"epoch": epoch, "step": 10 * epoch, "lr": 0.1**epoch, "seconds": 90}
    values["train"] = train
    if ap is not None:
        values |= {"val": {"ap": ap, "per_class": {"cat": ap / 2}, "options": None}}
        values["eval_seconds"] = 30
    return values | more


def write_run(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / METRICS_FILE).write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    one = write_run(tmp_path / "one", row(1), row(2, 0.3), row(3), row(4, 0.2))
    two = write_run(tmp_path / "two", *(row(epoch, epoch / 100) for epoch in range(1, 41)))
    return [one, two]


def test_what_runs_came_to_is_told(runs: list[Path], tmp_path: Path) -> None:
    one, two = plot_runs(runs, tmp_path / "runs.png")
    assert one.cells() == ["one", "4", "40", "0:07:00", "2.250", "0.200", "0.300", "2"]
    assert two.cells() == ["two", "40", "400", "1:20:00", "0.225", "0.400", "0.400", "40"]
    by_class = plot_runs(runs, tmp_path / "runs.png", metric="per_class/cat")
    assert [summary.best for summary in by_class] == pytest.approx([0.15, 0.2])


def test_runs_and_axes_change_the_drawing(runs: list[Path], tmp_path: Path) -> None:
    drawn = []
    for place, (shown, x) in enumerate(
        [(runs, "epoch"), (runs, "step"), (runs, "hours"), (runs[:1], "epoch")]
    ):
        plot_runs(shown, tmp_path / f"{place}.png", x=x)  # type: ignore[arg-type]
        drawn.append(np.asarray(Image.open(tmp_path / f"{place}.png")))
    assert all(drawing.shape == drawn[0].shape for drawing in drawn)
    for first, second in itertools.combinations(drawn, 2):
        assert not np.array_equal(first, second)


def test_each_of_many_runs_is_in_the_key(tmp_path: Path) -> None:
    runs = {f"run {place}": [row(1, 0.1), row(2, 0.2)] for place in range(12)}
    draw_runs(runs, tmp_path / "runs.svg")
    text = (tmp_path / "runs.svg").read_text()
    assert all(f"<!-- {name} -->" in text for name in runs)


@pytest.mark.parametrize("name", ["_hidden", "$a_b$", "<script>alert(1)</script>", "\u202enur", ""])
def test_any_name_is_shown_as_it_is(tmp_path: Path, name: str) -> None:
    draw_runs({name: [row(1, 0.1)], "other": [row(1, 0.2)]}, tmp_path / "runs.html")
    page = (tmp_path / "runs.html").read_text()
    assert "<script" not in page
    if name in ("_hidden", "$a_b$"):
        assert f"<bdi>{name}</bdi>" in page


def test_a_page_has_the_table_and_is_the_same_each_time(runs: list[Path], tmp_path: Path) -> None:
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        plot_runs(runs, page)
    text = pages[0].read_text()
    assert "<bdi>0.300</bdi>" in text
    assert "data:image/svg+xml;base64," in text
    assert text == pages[1].read_text()


def test_odd_records_are_drawn_as_far_as_they_go(tmp_path: Path) -> None:
    odd = [
        write_run(tmp_path / "bare", {"epoch": 1}),
        write_run(tmp_path / "null", row(1, train=None, lr=None, val={"ap": None})),
        write_run(tmp_path / "zero", row(1, 0.0, lr=0.0, train={"grad_norm": 0.0, "loss": -1})),
        write_run(tmp_path / "large", row(1, 0.5, train={"loss": 1e300, "grad_norm": 1e-300})),
        write_run(tmp_path / "older", row(1), row(2, val={"map": 0.5})),
    ]
    bare, *_ = plot_runs(odd, tmp_path / "runs.png")
    assert bare.cells() == ["bare", "1", "0", "0:00:00", "-", "-", "-", "-"]


def test_a_run_without_an_epoch_is_left_out(runs: list[Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.warns(UnfinishedRunWarning, match="empty: no finished epoch yet"):
        summaries = plot_runs([runs[0], empty], tmp_path / "runs.png")
    assert [summary.name for summary in summaries] == ["one"]
    with pytest.raises(DetrKitError, match="no finished epoch to draw"):
        plot_runs([empty], tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / part / "run", row(1, 0.1)) for part in ("a", "b")]
    summaries = plot_runs(folders, tmp_path / "runs.png")
    assert [summary.name for summary in summaries] == ["a/run", "b/run"]
    with pytest.raises(DetrKitError, match="named twice"):
        plot_runs([folders[0], folders[0]], tmp_path / "runs.png")


def test_mistakes_are_one_line(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "runs.png"
    with pytest.raises(DetrKitError, match="nowhere: no such run"):
        plot_runs([tmp_path / "nowhere"], out)
    with pytest.raises(DetrKitError, match=r"metric apx: no run has it; there are ap, and per_cl"):
        plot_runs(runs, out, metric="apx")
    with pytest.raises(DetrKitError, match="per_class/dog: no run has it"):
        plot_runs(runs, out, metric="per_class/dog")
    with pytest.raises(DetrKitError, match=r"runs.txt: not the name of a file to draw into: \.png"):
        plot_runs(runs, tmp_path / "runs.txt")
    with pytest.raises(DetrKitError, match="it is a file of a run"):
        plot_runs(runs, runs[0] / METRICS_FILE)
    (runs[0] / METRICS_FILE).write_text("nonsense\n")
    with pytest.raises(DetrKitError, match="line 1 is no json"):
        plot_runs(runs, out)
    assert not out.exists()


def test_a_metric_is_not_asked_of_runs_without_evaluation() -> None:
    require_metric({"run": [row(1)]}, "ap")
    require_metric({"run": [row(1, val={"ap": None, "others": {"ap30": 0.1}})]}, "ap30")
