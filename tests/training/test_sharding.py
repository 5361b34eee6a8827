"""Weights divided over two processes: the run that whole ones give, and all that is saved of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import detr_kit
from detr_kit.config import dump_config
from detr_kit.data.sample import write_sample
from detr_kit.training.run import Run, resume, train
from tests.training.runs import assert_same_run, torchrun

# Every process writes what it held, and what it was told, as <folder>/<run>.<rank>.json.
SCRIPT = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path

import torch
from detr_kit import DetrKitError, train
from detr_kit.training.keeper import Keeper
from detr_kit.training.run import resume
from detr_kit.training.session import Session
from detr_kit.training.sharding import own_part
from detr_kit.training.step import TrainingStep
from detr_kit.training.validation import Validation

rank = int(os.environ["RANK"])
folder = Path(sys.argv[1])
step, close, evaluate, due = (
    TrainingStep.__call__, Session.close, Validation.evaluate, Keeper.save_due
)

def with_a_nan(self, batches, at, counts, **more):
    if at == 4 and rank == 1:
        images, targets = batches[-1]
        targets = replace(targets, boxes_cxcywh=targets.boxes_cxcywh * torch.nan)
        batches = [*batches[:-1], (images, targets)]
    return step(self, batches, at, counts, **more)

def measured(self):
    weights = [own_part(weight) for weight in self.bare_model.parameters()]
    moments = [own_part(value) for state in self.optimizer.state.values() for value in
               (state["exp_avg"], state["exp_avg_sq"])]
    held.update(weights=sum(w.numel() for w in weights), moments=sum(m.numel() for m in moments))
    close(self)

def ask_to_stop(self, at):
    if at == 1 and rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return due(self, at)

def stopped(self, signals, alive):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(self, signals, alive)

TrainingStep.__call__, Session.close = with_a_nan, measured
for name in sys.argv[2:]:
    held = {}
    if name == "part":
        Keeper.save_due = ask_to_stop
        assert train(folder / "part.yaml").stopped_by
        Keeper.save_due, Validation.evaluate = due, stopped
        assert resume(folder / "part").stopped_by
        Validation.evaluate = evaluate
        assert resume(folder / "part").stopped_by is None
    else:
        try:
            train(folder / f"{name}.yaml")
        except DetrKitError as error:
            held["error"] = str(error)
    (folder / f"{name}.{rank}.json").write_text(json.dumps(held))
"""


def launch(tiny_config: Any, folder: Path, runs: dict[str, dict[str, Any]]) -> Path:
    """Take the runs, by name, one after the other in two processes."""
    # Eleven: the last step holds two pictures of one process and one of the other.
    write_sample(folder / "data", "easy", seed=3, train=11, val=5)
    for name, changes in runs.items():
        config = tiny_config(folder / "data", folder / name, **changes)
        (folder / f"{name}.yaml").write_text(dump_config(config))
    script = folder / "script.py"
    script.write_text(SCRIPT)
    torchrun(script, str(folder), *runs)
    return folder


def said_by(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]


def run_of(folder: Path, name: str) -> Run:
    return Run(folder / name, detr_kit.config.load_config(folder / f"{name}.yaml"))


def assert_nearly_same_run(a: Run, b: Run, *, atol: float) -> None:
    """The same losses to 1e-6, weights to `atol`; those of `best` too."""
    for mine, other in zip(a.metrics, b.metrics, strict=True):
        assert mine["train"] == pytest.approx(other["train"], rel=1e-6, abs=1e-6)
        assert mine["skipped_steps"] == other["skipped_steps"]
    for part in ("last", "best"):
        ours, theirs = (load_file(run.folder / part / "model.safetensors") for run in (a, b))
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def yolos(tiny_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of twice 1 + 1 pictures with an average, the fifth with a nan in one process."""
    whole = {
        "family": "yolos",
        "epochs": 2,
        "batch_size": 1,
        "accumulate": 2,
        "average": {"decay": 0.9},
        "guard": {"on_nonfinite": "skip"},
    }
    runs = {"whole": whole, "sharded": whole | {"sharding": "fsdp"}}
    runs["part"] = runs["sharded"]
    # Processes take seconds to start: those of the YOLOS train the other family too.
    for sharding in ("none", "fsdp"):
        runs[f"dino_{sharding}"] = whole | {"family": "groups", "epochs": 1, "sharding": sharding}
    return launch(tiny_config, tmp_path_factory.mktemp("yolos"), runs)


def test_sharded_processes_train_as_whole_ones_do(yolos: Path) -> None:
    whole, sharded = run_of(yolos, "whole"), run_of(yolos, "sharded")
    assert [row["skipped_steps"] for row in sharded.metrics] == [0, 1]
    assert_nearly_same_run(sharded, whole, atol=2e-6)


def test_sharded_processes_denoise_as_whole_ones_do(yolos: Path) -> None:
    """Three steps of a DINO with two groups of queries and batch norms, and an average."""
    ours, theirs = (run_of(yolos, f"dino_{sharding}") for sharding in ("fsdp", "none"))
    assert theirs.metrics[0]["train"]["dn_class"] > 0
    # AdamW moves biases of keys, whose gradients are rounding alone; other weights agree to 1e-6.
    assert_nearly_same_run(ours, theirs, atol=1e-5)


def test_each_process_holds_its_part_of_weights_and_moments(yolos: Path) -> None:
    total = said_by(yolos, "whole")[0]
    first, second = said_by(yolos, "sharded")
    for name in ("weights", "moments"):
        assert first[name] + second[name] == total[name]
        assert second[name] > 0.4 * total[name]


def test_a_sharded_run_that_stops_goes_on_as_if_it_had_not(yolos: Path) -> None:
    """It stops in the middle of an epoch, and again during an evaluation."""
    assert_same_run(run_of(yolos, "sharded"), run_of(yolos, "part"))


def test_checkpoints_of_sharded_runs_are_as_those_of_others(yolos: Path) -> None:
    run = run_of(yolos, "sharded")
    val = run.config.data.val
    assert val is not None
    metrics = detr_kit.evaluate(
        detr_kit.Detector.from_checkpoint(run.best), val.annotations, val.images
    )
    seen = max(run.metrics, key=lambda row: row["val"]["ap"])["val"]
    assert metrics.num_detections == seen["num_detections"]
    assert metrics.ar_100 == pytest.approx(seen["ar_100"], abs=1e-6)
    states = [
        torch.load(yolos / name / "last/training_state/state.pt", weights_only=True)
        for name in ("whole", "sharded")
    ]
    whole, sharded = ((state["optimizer"]["state"], state["average"]) for state in states)
    torch.testing.assert_close(sharded, whole, atol=1e-5, rtol=1e-3)


def test_one_process_goes_on_with_a_sharded_run(
    yolos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = resume(yolos / "part", ["epochs=3"])
    assert "sharding: with one process there is nothing to divide" in capsys.readouterr().out
    assert [row["step"] for row in run.metrics] == [3, 6, 9]


@pytest.mark.slow
def test_frozen_layers_and_values_that_are_not_finite(tiny_config, tmp_path: Path) -> None:
    """With the backbone frozen no layer has a backward pass; a failure is told as by whole ones."""
    kinds = {
        "frozen": {"optimizer": {"lr": 1e-3, "lr_backbone": 0.0}},
        "broken": {"optimizer": {"lr": 1e38, "clip": 0.0}},
    }
    runs = {
        f"{name}_{sharding}": {"family": "yolos", "epochs": 1, "batch_size": 2} | changes
        for name, of_kind in kinds.items()
        for sharding, changes in (("none", of_kind), ("fsdp", of_kind | {"sharding": "fsdp"}))
    }
    launch(tiny_config, tmp_path, runs)
    ours, theirs = run_of(tmp_path, "frozen_fsdp"), run_of(tmp_path, "frozen_none")
    assert_nearly_same_run(ours, theirs, atol=2e-6)
    none, fsdp = (
        [said["error"].replace(name, "") for said in said_by(tmp_path, name)]
        for name in ("broken_none", "broken_fsdp")
    )
    assert "step 1: the first value that is not finite is " in none[0]
    assert fsdp[0] == fsdp[1] == none[0]


DOUBLE = """
import sys

import torch
from accelerate import Accelerator

from detr_kit.config import ModelConfig
from detr_kit.losses import SetCriterion, StepCounts
from detr_kit.matching import HungarianMatcher
from detr_kit.models.zoo import build_model, resolve
from detr_kit.training.processes import Processes
from detr_kit.training.sharding import shard, whole
from detr_kit.training.step import TrainingStep
from tests.training.conftest import TINY_DETR
from tests.training.steps import CATEGORIES, PREPROCESSING, QUERIES, Double, batch

accelerator = Accelerator(cpu=True)
processes = Processes(accelerator)
numbers = {"dropout": 0.0, "backbone_norm": "batch", "activation_checkpointing": True}
own = [[[0, 1], [2]], [[3, 5], [4]]][processes.rank]  # by process, then batch

def trained(sharded):
    torch.manual_seed(0)
    config = ModelConfig(**{**TINY_DETR, **numbers})
    model = Double(build_model(resolve(config), num_classes=CATEGORIES)).train()
    if sharded:
        shard(model, accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    if not sharded:
        model = accelerator.prepare_model(model)
    optimizer = accelerator.prepare_optimizer(optimizer)
    criterion = SetCriterion(CATEGORIES, HungarianMatcher(), on_nonfinite="poison")
    step = TrainingStep(
        model, criterion, optimizer, accelerator, PREPROCESSING, num_queries=QUERIES, clip=0.1
    )
    for at in range(3):
        batches = [batch([10 * at + place for place in places]) for places in own]
        counts = StepCounts.of([targets for _, targets in batches], QUERIES)
        summed = processes.sum([counts.images, counts.objects, counts.pairs])
        step(batches, at, StepCounts(*map(int, summed)))
    state = accelerator.unwrap_model(model).state_dict()
    return {name: whole(tensor.detach()) for name, tensor in state.items()}

states = [trained(False), trained(True)]
if processes.is_main:
    torch.save(states, sys.argv[1])
"""


@pytest.mark.slow
def test_sharded_steps_of_a_detr_are_those_of_whole_ones(tmp_path: Path) -> None:
    """Float64, three clipped steps of AdamW with batch norms and activations computed again.

    Each step holds two batches in each process; some pictures are without objects.
    """
    script = tmp_path / "double.py"
    script.write_text(DOUBLE)
    torchrun(script, str(tmp_path / "states.pt"))
    none, fsdp = torch.load(tmp_path / "states.pt", weights_only=True)
    torch.testing.assert_close(fsdp, none, atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": "auto"}, "batch_size=auto: give a number"),
        ({"precision": "fp16"}, "precision=fp16: take bf16"),
        ({"compile": True}, "compile=true: leave it out"),
    ],
)
def test_what_does_not_go_with_sharding_is_refused(
    tiny_config, sample: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = tiny_config(sample, tmp_path / "run", sharding="fsdp", **change)
    with pytest.raises(detr_kit.DetrKitError, match=f"sharding=fsdp does not go with {message}"):
        train(config)
    assert not (tmp_path / "run").exists()
