"""Runs that end in the middle, by a signal or a fault, and go on as if they had not."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import detr_kit
from detr_kit.config import RunConfig, dump_config
from detr_kit.training.keeper import Keeper
from detr_kit.training.run import resume, train
from detr_kit.training.signals import StopSignals
from detr_kit.training.step import TrainingStep
from detr_kit.training.validation import Validation
from tests.training.runs import assert_same_run, weights


def stop_before(step: int, patch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to the training itself when it is about to take a step."""
    due = Keeper.save_due

    def send(self: Keeper, at: int) -> bool:
        if at == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return due(self, at)

    patch.setattr(Keeper, "save_due", send)


def eventful(tiny_config: Any, sample: Path, output: Path, **changes: Any) -> RunConfig:
    """A run with all that has a state: an average, batch norms, a metric that is kept.

    Plain detectors have dropout besides, the family `deformable` the noise of denoising.
    """
    average = {"decay": 0.9, "warmup_steps": 3}
    return tiny_config(sample, output, epochs=3, average=average, **changes)


@pytest.mark.parametrize(
    ("family", "step"),  # of three an epoch: inside, inside, at the border
    [*itertools.product(("detr", "yolos"), (1, 4, 6)), ("deformable", 4)],
)
def test_a_signal_ends_a_run_after_its_step_and_nothing_is_lost(
    tiny_config, sample: Path, tmp_path: Path, family: str, step: int
) -> None:
    whole = train(eventful(tiny_config, sample, tmp_path / "whole", family=family))
    with pytest.MonkeyPatch.context() as patch:
        stop_before(step, patch)
        stopped = train(eventful(tiny_config, sample, tmp_path / "part", family=family))
    assert stopped.stopped_by == "SIGTERM"
    assert len(stopped.metrics) == (step - 1) // 3
    assert_same_run(whole, resume(stopped.folder))


def test_a_signal_during_an_evaluation_keeps_the_epoch_that_was_trained(
    tiny_config, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(eventful(tiny_config, sample, tmp_path / "whole"))
    evaluate = Validation.evaluate

    def interrupted(self: Validation, signals: StopSignals, alive: Callable[[], None]) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, signals, alive)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "evaluate", interrupted)
        part = train(eventful(tiny_config, sample, tmp_path / "part"))
        assert part.stopped_by == "SIGINT"
    trained: list[int] = []
    step = TrainingStep.__call__
    monkeypatch.setattr(
        TrainingStep,
        "__call__",
        lambda self, batches, at, *rest, **more: (
            trained.append(at) or step(self, batches, at, *rest, **more)
        ),
    )
    assert_same_run(whole, resume(part.folder))
    assert trained == [3, 4, 5, 6, 7, 8]


def test_the_second_signal_does_what_it_always_does() -> None:
    # Who starts the tests in the background may have it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_saves_between_epochs_are_resumed_from(
    tiny_config, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies, not one that is asked to stop: what was saved last counts."""
    config = eventful(tiny_config, sample, tmp_path / "part", checkpoint={"steps": 2})
    whole = train(eventful(tiny_config, sample, tmp_path / "whole"))
    step = TrainingStep.__call__

    def die(self: TrainingStep, batches: Any, at: int, *rest: Any, **more: Any) -> Any:
        if at == 5:
            raise MemoryError
        return step(self, batches, at, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", die)
        with pytest.raises(detr_kit.DetrKitError, match="out of memory"):
            train(config)
    state = torch.load(tmp_path / "part/last/training_state/state.pt", weights_only=True)
    assert state["progress"]["step"] == 4
    assert_same_run(whole, resume(tmp_path / "part"))


def test_a_save_that_fails_leaves_the_one_before(
    tiny_config, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(eventful(tiny_config, sample, tmp_path / "whole"))
    config = eventful(tiny_config, sample, tmp_path / "part", checkpoint={"steps": 1})
    saved = torch.save
    saves: list[Path] = []

    def full(value: Any, path: Path) -> None:
        saves.append(path)
        if len(saves) == 5:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        saved(value, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(detr_kit.DetrKitError, match=r"last: step \d .*No space.* is intact"):
            train(config)
    assert {path.name for path in (tmp_path / "part/last").iterdir()} == {
        "model.safetensors",
        "detector.json",
        "training_state",
    }
    assert_same_run(whole, resume(tmp_path / "part"))


@pytest.mark.parametrize("family", ["detr", "yolos", "patches", "groups"])
def test_resumed_run_equals_the_undisturbed_one(
    tiny_config, sample: Path, tmp_path: Path, family: str
) -> None:
    whole = train(tiny_config(sample, tmp_path / "whole", family=family))
    part = train(tiny_config(sample, tmp_path / "part", family=family), stop_after_epoch=2)
    assert [row["epoch"] for row in part.metrics] == [1, 2]
    resumed = resume(tmp_path / "part")
    assert [row["epoch"] for row in resumed.metrics] == [1, 2, 3, 4]
    assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": {"rule": "square", "short_side": 96}}, "preprocessing"),
        ({"optimizer": {"lr": 1e-3, "lr_backbone": 0.0}}, "groups are not those"),
    ],
)
def test_a_changed_run_is_not_continued(
    tiny_config, sample: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    run = train(tiny_config(sample, tmp_path / "run"), stop_after_epoch=1)
    changed = tiny_config(sample, tmp_path / "run", **changes)
    (run.folder / "config.yaml").write_text(dump_config(changed))
    with pytest.raises(detr_kit.DetrKitError, match=message):
        resume(run.folder)


def test_a_cut_off_line_of_metrics_does_not_stop_a_resume(
    tiny_config, sample: Path, tmp_path: Path
) -> None:
    run = train(tiny_config(sample, tmp_path / "run", epochs=2), stop_after_epoch=1)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "st')
    assert [row["epoch"] for row in resume(run.folder).metrics] == [1, 2]


def test_finished_run_is_left_alone(
    tiny_config, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny_config(sample, tmp_path / "run", epochs=1))
    before = (run.last / "model.safetensors").stat().st_mtime_ns
    resume(run.folder)
    assert "finished" in capsys.readouterr().out
    assert (run.last / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(detr_kit.DetrKitError, match="already holds a run"):
        train(tiny_config(sample, tmp_path / "run"))


def test_another_batch_size_keeps_the_pictures_of_each_step(
    tiny_config, sample: Path, tmp_path: Path
) -> None:
    steady = tiny_config(sample, tmp_path / "x").model.model_copy(
        update={"dropout": 0.0, "backbone_norm": "group"}
    )
    changes = {"model": steady.model_dump(), "epochs": 2}
    whole = train(tiny_config(sample, tmp_path / "whole", **changes))
    train(tiny_config(sample, tmp_path / "part", **changes), stop_after_epoch=1)
    split = resume(tmp_path / "part", ["batch_size=1"])
    assert split.config.batch_size == 1
    assert split.metrics[-1]["step"] == whole.metrics[-1]["step"]
    for name in ("loss", "class", "l1", "giou"):
        ours, theirs = (run.metrics[-1]["train"][name] for run in (split, whole))
        assert ours == pytest.approx(theirs, rel=1e-3), name


def test_a_finished_run_is_extended(
    tiny_config, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(sample, tmp_path / "run", epochs=1))
    run = resume(tmp_path / "run", ["epochs=2"])
    assert "2 epochs instead of 1: the learning rate goes on at" in capsys.readouterr().out
    assert [row["epoch"] for row in run.metrics] == [1, 2]
    assert detr_kit.config.load_config(run.folder / "config.yaml").epochs == 2


@pytest.mark.parametrize("change", ["model.num_queries=7", "seed=3", "accumulate=2"])
def test_a_change_that_makes_another_run_is_refused(
    tiny_config, sample: Path, tmp_path: Path, change: str
) -> None:
    train(tiny_config(sample, tmp_path / "run", epochs=2), stop_after_epoch=1)
    with pytest.raises(detr_kit.DetrKitError, match=f"key '{change.split('=')[0]}' cannot change"):
        resume(tmp_path / "run", [change])


def test_early_stopping_ends_a_run_for_good(
    tiny_config, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"metric": "ar_100", "patience": 2, "min_gain": 1.0}
    run = train(tiny_config(sample, tmp_path / "run", epochs=9, evaluation=evaluation))
    assert len(run.metrics) == 3
    assert "no gain of ar_100 in 2 evaluations" in capsys.readouterr().out
    resume(run.folder)
    assert "finished early after epoch 3" in capsys.readouterr().out
    assert len(resume(run.folder, ["evaluation.patience=3"]).metrics) == 4


@pytest.mark.parametrize(
    ("metric", "message"),
    [("map", "'map' is none of the metrics ap, "), ("ap_large", "ap_large has no value where")],
)
def test_a_metric_that_never_has_a_value_is_refused(
    tiny_config, sample: Path, tmp_path: Path, metric: str, message: str
) -> None:
    config = tiny_config(sample, tmp_path / "run", evaluation={"metric": metric})
    with pytest.raises(detr_kit.DetrKitError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()


def test_checkpoints_of_epochs_are_kept_by_the_policy(
    tiny_config, sample: Path, tmp_path: Path
) -> None:
    config = tiny_config(sample, tmp_path / "run", checkpoint={"keep": 2, "keep_every": 2})
    run = train(config.model_copy(update={"epochs": 5}))
    kept = sorted(path.name for path in (run.folder / "epochs").iterdir())
    assert kept == ["0002", "0004", "0005"]
    newest = load_file(run.folder / "epochs/0005/model.safetensors")
    for name, tensor in weights(run).items():
        assert torch.equal(newest[name], tensor), name


def test_the_best_checkpoint_holds_the_average(tiny_config, sample: Path, tmp_path: Path) -> None:
    run = train(eventful(tiny_config, sample, tmp_path / "run"))
    best = load_file(run.best / "model.safetensors")
    assert any(not torch.equal(best[name], tensor) for name, tensor in weights(run).items())


def test_another_metric_chooses_the_best_anew(
    tiny_config, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(sample, tmp_path / "run", epochs=3), stop_after_epoch=2)
    run = resume(tmp_path / "run", ["evaluation.metric=ar_1"])
    said = capsys.readouterr().out
    assert "`best` is chosen by ar_1 from the next evaluation on" in said
    assert "(epoch 3, highest ar_1)" in said
    best = load_file(run.best / "model.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in weights(run).items())


def test_steps_that_were_skipped_in_a_row_are_counted_on(
    tiny_config, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TrainingStep.__call__

    def planted(self: TrainingStep, batches: Any, *rest: Any, **more: Any) -> Any:
        batches[0][1].boxes_cxcywh[0, 2] = torch.nan
        return step(self, batches, *rest, **more)

    monkeypatch.setattr(TrainingStep, "__call__", planted)
    guard = {"on_nonfinite": "skip", "max_skipped": 4}
    train(tiny_config(sample, tmp_path / "run", guard=guard), stop_after_epoch=1)  # 3 steps
    with pytest.raises(detr_kit.DetrKitError, match=r"step 3: .* not finite"):
        resume(tmp_path / "run")


def test_the_checkpoint_of_an_epoch_is_kept_after_a_kill_just_before(
    tiny_config, sample: Path, tmp_path: Path
) -> None:
    config = tiny_config(sample, tmp_path / "run", epochs=3, checkpoint={"keep_every": 2})
    train(config, stop_after_epoch=2)
    shutil.rmtree(tmp_path / "run/epochs")
    run = resume(tmp_path / "run")
    assert [path.name for path in (run.folder / "epochs").iterdir()] == ["0002"]


def test_a_run_follows_its_data_to_another_place_but_not_to_other_data(
    tiny_config, sample: Path, tmp_path: Path
) -> None:
    train(tiny_config(sample, tmp_path / "run", epochs=2), stop_after_epoch=1)
    moved = tmp_path / "moved"
    shutil.copytree(sample, moved)
    annotations = moved / "annotations/train.json"
    change = [f"data.train.annotations={annotations}", f"data.train.images={moved / 'train'}"]
    coco = json.loads(annotations.read_text())
    coco["annotations"][3]["bbox"][0] += 1
    annotations.write_text(json.dumps(coco))
    with pytest.raises(detr_kit.DetrKitError, match=r"other pictures or objects than data\.train"):
        resume(tmp_path / "run", change)
    shutil.copy(sample / "annotations/train.json", annotations)
    run = resume(tmp_path / "run", change)
    assert len(run.metrics) == 2
    assert run.config.data.train is not None
    assert run.config.data.train.images == moved / "train"


@pytest.mark.parametrize("left", ["best", "epochs"])
def test_checkpoints_of_another_run_are_not_replaced(
    tiny_config, sample: Path, tmp_path: Path, left: str
) -> None:
    (tmp_path / "run" / left).mkdir(parents=True)
    with pytest.raises(detr_kit.DetrKitError, match=f"{left}: is of another run"):
        train(tiny_config(sample, tmp_path / "run"))


def test_a_report_that_was_cut_off_comes_with_the_next_resume(
    tiny_config, sample: Path, tmp_path: Path
) -> None:
    run = train(tiny_config(sample, tmp_path / "run", epochs=1))
    (run.folder / "report.html").unlink()
    resume(run.folder)
    assert (run.folder / "report.html").exists()


def test_a_first_save_that_fails_asks_for_a_new_start(
    tiny_config, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(detr_kit.DetrKitError, match=r"No space.*make room and start again"):
        train(tiny_config(sample, tmp_path / "run", epochs=1))


def test_want_of_memory_in_an_evaluation_is_explained(
    tiny_config, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Validation, "evaluate", too_much)
    with pytest.raises(detr_kit.DetrKitError, match=r"out of memory.*evaluation\.batch_size"):
        train(tiny_config(sample, tmp_path / "run", epochs=1))
