"""A training as a process among others: told to stop with all of its job, killed, started twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import detr_kit
from detr_kit.config import RunConfig, dump_config
from detr_kit.training.claim import claimed
from detr_kit.training.run import Run, resume, train
from detr_kit.training.signals import STOPPED_EXIT_CODE
from tests.training.runs import REPOSITORY, assert_same_run


def start(config: RunConfig, path: Path) -> subprocess.Popen[bytes]:
    """Train as a job of its own; return once its first epoch is there."""
    path.write_text(dump_config(config))
    job = subprocess.Popen(
        [sys.executable, "-m", "detr_kit.cli", "train", str(path)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not Run(config.output, config).metrics:
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return job


def with_a_worker(config: RunConfig) -> RunConfig:
    return config.model_copy(
        update={"data": config.data.model_copy(update={"num_workers": 1}), "epochs": 20}
    )


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_asks_to_be_started_again(
    tiny_config, sample: Path, tmp_path: Path
) -> None:
    """The signal reaches its workers and their server too, as a scheduler's does."""
    config = with_a_worker(tiny_config(sample, tmp_path / "part", evaluation={"every": 10}))
    job = start(config, tmp_path / "part.yaml")
    os.killpg(job.pid, signal.SIGTERM)
    assert job.wait(60) == STOPPED_EXIT_CODE
    assert len(Run(config.output, config).metrics) < 20
    whole = train(config.model_copy(update={"output": tmp_path / "whole"}))
    assert_same_run(whole, resume(config.output))


@pytest.mark.slow
def test_ctrl_c_while_the_workers_start_saves_what_there_is(
    tiny_config, sample: Path, tmp_path: Path
) -> None:
    config = with_a_worker(tiny_config(sample, tmp_path / "run"))
    (tmp_path / "run.yaml").write_text(dump_config(config))
    job = subprocess.Popen(
        [sys.executable, "-m", "detr_kit.cli", "train", str(tmp_path / "run.yaml")],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    assert job.stdout is not None
    assert job.stdout.readline().startswith(b"run ")  # the table; then come the workers
    time.sleep(0.5)
    os.killpg(job.pid, signal.SIGINT)
    with job.stdout:
        said = job.stdout.read().decode()
    assert job.wait(60) == STOPPED_EXIT_CODE
    assert "stopped by SIGINT before step" in said
    assert (config.output / "last/training_state/state.pt").exists()


@pytest.mark.slow
def test_a_killed_training_leaves_no_process(tiny_config, sample: Path, tmp_path: Path) -> None:
    config = with_a_worker(tiny_config(sample, tmp_path / "run"))
    job = start(config, tmp_path / "run.yaml")
    others = psutil.Process(job.pid).children(recursive=True)
    assert others
    job.kill()
    job.wait(60)
    _, alive = psutil.wait_procs(others, timeout=30)
    assert alive == []


def test_a_folder_is_trained_in_by_one_process(tiny_config, sample: Path, tmp_path: Path) -> None:
    config = tiny_config(sample, tmp_path / "run", epochs=1)
    with (
        claimed(config.output),
        pytest.raises(detr_kit.DetrKitError, match="run: another process is training there"),
    ):
        train(config)
    train(config)
    assert not (config.output / ".lock").exists()
