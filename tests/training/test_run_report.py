"""The report that a run leaves behind, and what may be wrong when it is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import detr_kit
from detr_kit.config import dump_config, load_config
from detr_kit.data.sample import write_sample
from detr_kit.training.report import write_run_report
from detr_kit.training.run import Run, train
from detr_kit.training.run_files import read_metrics


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    write_sample(place / "data", "easy", train=2, val=3)
    return train(tiny_config(place / "data", place / "run", epochs=2)).folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to do anything to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_it_shows_the_figures_pictures_and_epochs(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for text in ("What costs AP50", "data:image/jpeg", "Losses of the last layer"):
        assert text in page
    ap = read_metrics(finished)[-1]["val"]["ap"]
    assert f"AP {ap:.3f}" in page


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError(), OSError(28, "No space left")])
def test_a_report_that_fails_ends_no_training(
    tiny_config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    write_sample(tmp_path / "data", "easy", train=2, val=1)
    monkeypatch.setattr("detr_kit.training.run.write_run_report", fail)
    trained = train(tiny_config(tmp_path / "data", tmp_path / "run", epochs=1))
    assert isinstance(trained, Run)
    assert trained.best.is_dir()
    assert not (trained.folder / "report.html").exists()
    shown = capsys.readouterr()
    assert "no report was written" in shown.out + shown.err


def test_pictures_that_were_moved_are_told_in_words(run: Path) -> None:
    config = load_config(run / "config.yaml")
    assert config.data.val is not None
    val = config.data.val.model_copy(update={"images": run / "gone"})
    data = config.data.model_copy(update={"val": val})
    page = write_run_report(run, config.model_copy(update={"data": data})).read_text()
    assert "data:image/jpeg" not in page


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "results.json"])
def test_a_file_of_the_run_is_not_overwritten(run: Path, name: str) -> None:
    before = (run / name).read_bytes()
    with pytest.raises(detr_kit.DetrKitError, match=f"{name}: it is a file of the run"):
        write_run_report(run, out=run / name)
    assert (run / name).read_bytes() == before


def test_what_is_missing_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(detr_kit.DetrKitError, match="nowhere: no such run"):
        write_run_report(tmp_path / "nowhere")
    (run / "results.json").unlink()
    with pytest.raises(detr_kit.DetrKitError, match=r"results.json: no such file, .*detr-kit eval"):
        write_run_report(run)
    config = load_config(run / "config.yaml")
    data = config.data.model_copy(update={"val": None})
    (run / "config.yaml").write_text(dump_config(config.model_copy(update={"data": data})))
    with pytest.raises(detr_kit.DetrKitError, match=r"config.yaml: it has no data.val"):
        write_run_report(run)


@pytest.mark.parametrize(
    ("line", "message"),
    [("garbage", "line 2 is no json"), ("[1, 2]", "line 2 is not the record of an epoch")],
)
def test_a_broken_record_is_named(run: Path, line: str, message: str) -> None:
    first = (run / "metrics.jsonl").read_text().splitlines()[0]
    (run / "metrics.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(detr_kit.DetrKitError, match=message):
        write_run_report(run)
    # a line without its end was being written when the process ended
    (run / "metrics.jsonl").write_text(f"{first}\n{line}")
    assert read_metrics(run) == [json.loads(first)]


def test_a_validation_split_without_objects_has_a_report(tiny_config, tmp_path: Path) -> None:
    write_sample(tmp_path / "data", "easy", train=2, val=2)
    path = tmp_path / "data/annotations/val.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    trained = train(tiny_config(tmp_path / "data", tmp_path / "run", epochs=1))
    assert "no ground truth" in (trained.folder / "report.html").read_text()
