"""What tests of runs share: their weights, their equality, and two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from detr_kit.training.run import Run

REPOSITORY = Path(__file__).parents[2]


def torchrun(script: Path, *arguments: str, processes: int = 2) -> None:
    """Run a script in several processes; raises where one of them fails."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    subprocess.run(
        [*launcher, "--standalone", str(script), *arguments],
        check=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.last / "model.safetensors")


def assert_same_run(a: Run, b: Run) -> None:
    """Bit-equal weights, losses and AP."""
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    for mine, other in zip(a.metrics, b.metrics, strict=True):
        assert mine["train"] == other["train"]
        assert mine.get("val", {}).get("ap") == other.get("val", {}).get("ap")
