"""Are two runs the same, bit for bit, in everything but the time they took?

    python tools/same_runs.py RUN RUN

Compares weights, optimiser, average, progress, metrics, detections and which files there are.
Exits with status 1, naming what differs, where they are not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from detr_kit.training.run_files import RESULTS_FILE, read_metrics

# What depends on the clock.
TIMES = {"seconds", "seconds_waiting", "images_per_second", "eval_seconds"}


def differences(whole: Path, other: Path) -> list[str]:
    """Name whatever is not the same in two runs' folders, but for times."""
    found: list[str] = []
    if not (other / "last").exists():
        return ["nothing was saved"]
    for part in ("last", "best"):
        mine, theirs = (load_file(run / part / "model.safetensors") for run in (whole, other))
        found += different(mine, theirs, f"{part}/model.safetensors")
    state = Path("last", "training_state", "state.pt")
    found += different(
        *(torch.load(run / state, weights_only=True) for run in (whole, other)), str(state)
    )
    found += different(read_metrics(whole), read_metrics(other), "metrics")
    results = [json.loads((run / RESULTS_FILE).read_text()) for run in (whole, other)]
    found += different(*results, RESULTS_FILE)
    names = [
        {path.name for path in run.rglob("*") if "events" not in path.name}
        for run in (whole, other)
    ]
    found += [f"{name}: in one run only" for name in sorted(names[0] ^ names[1])]
    return found


def different(mine: Any, theirs: Any, place: str) -> list[str]:
    if type(mine) is not type(theirs):
        return [f"{place}: {type(mine).__name__} and {type(theirs).__name__}"]
    if isinstance(mine, torch.Tensor):
        same = mine.dtype == theirs.dtype and mine.shape == theirs.shape
        same = same and torch.equal(*(bits(tensor) for tensor in (mine, theirs)))
        return [] if same else [f"{place}: other bits"]
    if isinstance(mine, dict):
        keys = [key for key in {**mine, **theirs} if key not in TIMES]
        missing = [
            f"{place}.{key}: missing" for key in keys if key not in mine or key not in theirs
        ]
        return missing + [
            line
            for key in keys
            if key in mine and key in theirs
            for line in different(mine[key], theirs[key], f"{place}.{key}")
        ]
    if isinstance(mine, list | tuple) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [line for i, pair in pairs for line in different(*pair, f"{place}[{i}]")]
    same = mine == theirs or (mine != mine and theirs != theirs)
    return [] if same else [f"{place}: {str(mine)[:60]} and {str(theirs)[:60]}"]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs=2)
    lines = differences(*parser.parse_args().run)
    print("\n".join(lines) or "the same")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
