"""A place with data, a config and a checkpoint, and commands as a person types them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.cli import main
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD, parse_config
from detr_kit.data.sample import write_sample
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

CONFIG = """
epochs: 1
batch_size: 4
model: {name: yolos_small, hidden_dim: 16, num_heads: 1, feedforward_dim: 16, depth: 1,
        num_queries: 4, position_size_hw: [32, 32]}
data:
  num_workers: 0
  augmentation: none
  train: {annotations: sample/annotations/train.json, images: sample/train}
  val: {annotations: sample/annotations/val.json, images: sample/val}
image_size: {rule: square, short_side: 32}
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a data set, a config and the checkpoint of a random YOLOS."""
    write_sample(tmp_path / "sample", "easy", train=4, val=2)
    (tmp_path / "run.yaml").write_text(CONFIG)
    coco = json.loads((tmp_path / "sample/annotations/val.json").read_text())
    torch.manual_seed(0)
    numbers = resolve(parse_config({"epochs": 1, "model": _model()}, "test").model)
    spec = DetectorSpec(
        numbers,
        CategoryTable.from_coco(coco["categories"]),
        Preprocessing(SizeRule("square", 32, 32), IMAGENET_MEAN, IMAGENET_STD),
    )
    save_detector(tmp_path / "detector", build_model(numbers, len(spec.categories)), spec)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _model() -> dict[str, object]:
    return {
        "name": "yolos_small",
        "hidden_dim": 16,
        "num_heads": 1,
        "feedforward_dim": 16,
        "depth": 1,
        "num_queries": 4,
        "position_size_hw": [32, 32],
    }


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command; return exit status, standard output and standard error."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["detr-kit", *arguments])
        code: int | str | None = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return code, out, err

    return command
