"""Runs in two processes: no hang, the gradients of one process, and what they exchange."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import detr_kit
from detr_kit.config import dump_config
from detr_kit.data.sample import write_sample
from detr_kit.training.run import Run, resume
from detr_kit.training.run_files import RESULTS_FILE, read_metrics
from tests.training.runs import REPOSITORY, torchrun
from tests.training.steps import make_double_step

PLAIN_DETR = {
    "name": "detr_small",
    "backbone": "plain",
    "positions_at_input": True,
    "hidden_dim": 64,
    "feedforward_dim": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_queries": 5,
    "dropout": 0.0,
}


@pytest.mark.slow
# Five images: three steps of 1 + 1 images, or two of 2 + 2 whose batch norms train.
@pytest.mark.parametrize(("family", "batch_size", "steps"), [("yolos", 1, 3), ("detr", 2, 2)])
def test_two_processes_with_an_empty_batch(
    tiny_config, tmp_path: Path, family: str, batch_size: int, steps: int
) -> None:
    """Under torchrun: some batches hold only images without objects (B4)."""
    data = tmp_path / "data"
    write_sample(data, "easy", seed=5, train=5, val=41)  # odd: one process has more
    path = data / "annotations/train.json"
    coco = json.loads(path.read_text())
    kept = {image["id"] for image in coco["images"][:3]}
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] in kept]
    path.write_text(json.dumps(coco))
    config = tmp_path / "run.yaml"
    split = {"annotations": str(path), "images": str(data / "train")}
    val = {"annotations": str(data / "annotations/val.json"), "images": str(data / "val")}
    changes = {
        "epochs": 60,
        "batch_size": batch_size,
        "evaluation": {"every": 60},
        "average": {"decay": 0.9},  # of running statistics too, which differ between processes
        "optimizer": {"lr": 2e-3, "lr_backbone": 2e-3, "clip": 1.0},
        "data": {"train": split, "val": val, "augmentation": "none", "num_workers": 0},
    }
    if family == "detr":
        changes["model"] = PLAIN_DETR
    tiny = tiny_config(data, tmp_path / "two", **{"family": family, **changes})
    config.write_text(dump_config(tiny))
    torchrun(REPOSITORY / "tools" / "train.py", str(config))
    run = Run(tmp_path / "two", tiny)
    detector = detr_kit.Detector.from_checkpoint(run.best)
    assert run.metrics[-1]["step"] == 60 * steps
    trained = run.metrics[-1]["val"]
    again = detr_kit.evaluate_results(run.folder / RESULTS_FILE, val["annotations"])
    assert {**again.to_dict(), "seconds": 0} == {**trained, "seconds": 0}
    for batch_size in (1, 8):
        metrics = detr_kit.evaluate(
            detector, val["annotations"], val["images"], batch_size=batch_size
        )
        assert metrics.ar_100 > 0
        for name in ("ap", "ap50", "ar_1", "ar_100", "num_images", "num_detections"):
            assert trained[name] == pytest.approx(getattr(metrics, name), abs=1e-6), name


SHARE_BUFFERS = """
import torch
from detr_kit.training.validation import share_buffers

torch.distributed.init_process_group("gloo")
norm = torch.nn.BatchNorm2d(3)
norm.running_mean.fill_(torch.distributed.get_rank() + 1)
norm.num_batches_tracked.fill_(torch.distributed.get_rank() + 5)
share_buffers(norm)
assert norm.running_mean.tolist() == [1, 1, 1]
assert norm.num_batches_tracked == 5
torch.distributed.destroy_process_group()
"""


def test_processes_evaluate_with_the_statistics_that_are_saved(tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    script.write_text(SHARE_BUFFERS)
    torchrun(script)


GRADIENTS = """
import sys

import torch
from accelerate import Accelerator

from detr_kit.losses import StepCounts
from detr_kit.training.processes import Processes
from detr_kit.training.step import TrainingStep
from tests.training.steps import QUERIES, batch, make_double_step

split = {1: [[[0, 1, 2, 3, 4]]], 2: [[[0, 1], [2]], [[3], [4]]]}  # by process, then batch
step = make_double_step()
processes = Processes(step.accelerator)
own = split[processes.count][processes.rank]
batches = [batch(places) for places in own]
counts = StepCounts.of([targets for _, targets in batches], QUERIES)
summed = processes.sum([counts.images, counts.objects, counts.pairs])
step(batches, 0, StepCounts(*map(int, summed)))
if processes.is_main:
    torch.save(step.accelerator.unwrap_model(step.model).state_dict(), sys.argv[1])
"""


def test_processes_and_batches_take_the_step_of_one(tmp_path: Path) -> None:
    """Float64, a step of plain gradient descent: five pictures at once, and as 2 + 1 and 1 + 1.

    The batch of the second process' first step is without objects.
    """
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    for processes in (1, 2):
        torchrun(script, str(tmp_path / f"{processes}.pt"), processes=processes)
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    start = make_double_step().model.state_dict()
    moved = 0.0
    for name, weight in one.items():
        moved = max(moved, float((weight - start[name]).abs().max()))
        torch.testing.assert_close(two[name], weight, atol=1e-12, rtol=0, msg=name)
    assert moved > 1e-3


STOPPED_AND_RESUMED = """
import os, shutil, signal, sys
from pathlib import Path

from detr_kit import train
from detr_kit.training.keeper import Keeper
from detr_kit.training.run import resume

folder, rank, due = Path(sys.argv[1]), int(os.environ["RANK"]), Keeper.save_due

def send(self, step):
    if step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return due(self, step)

train(folder / "whole.yaml")
Keeper.save_due = send  # the first process alone is asked
assert train(folder / "part.yaml").stopped_by
Keeper.save_due = due
if rank == 0:
    shutil.copytree(folder / "part", folder / "handed_over")
assert resume(folder / "part").stopped_by is None
"""


@pytest.fixture(scope="module")
def stopped(tiny_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes: a whole run, one stopped and resumed, and what it was when it stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    write_sample(folder / "data", "easy", seed=5, train=7, val=3)
    for name in ("whole", "part"):
        config = tiny_config(folder / "data", folder / name, epochs=3, batch_size=2)
        (folder / f"{name}.yaml").write_text(dump_config(config))
    script = folder / "script.py"
    script.write_text(STOPPED_AND_RESUMED)
    torchrun(script, str(folder))
    return folder


def test_two_processes_stop_and_go_on_as_if_they_had_not(stopped: Path) -> None:
    """A signal to one of them stops both."""
    whole, part = (
        load_file(stopped / name / "last/model.safetensors") for name in ("whole", "part")
    )
    for name, weight in whole.items():
        assert torch.equal(part[name], weight), name
    assert [row["epoch"] for row in read_metrics(stopped / "handed_over")] == [1]


def test_one_process_goes_on_with_the_steps_of_two(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = resume(stopped / "handed_over")
    assert "processes: 1 instead of 2; every step holds the same 4 pictures" in (
        capsys.readouterr().out
    )
    assert [row["step"] for row in run.metrics] == [2, 4, 6]
    assert run.metrics[-1]["images_per_second"] > 0
