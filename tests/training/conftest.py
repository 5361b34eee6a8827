"""A generated data set and a tiny run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import pytest

from detr_kit.config import RunConfig, parse_config
from detr_kit.data.sample import write_sample
from detr_kit.models import deformable_attention
from detr_kit.models.sampling import sample_maps

TINY_DETR = {
    "name": "detr_small",
    "backbone_stages": 2,
    "hidden_dim": 32,
    "num_heads": 2,
    "feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 6,
}
TINY_YOLOS = {
    "name": "yolos_small",
    "hidden_dim": 32,
    "num_heads": 2,
    "feedforward_dim": 32,
    "depth": 2,
    "num_queries": 6,
    "drop_path": 0.1,
    "position_size_hw": [64, 64],
}

# Denoises; with `TINY_GROUPS` it has several groups of queries besides.
TINY_DEFORMABLE = {
    "name": "detr_fast",
    "backbone": "plain",
    "backbone_norm": "batch",
    "backbone_weights": "none",
    "levels": 2,
    "hidden_dim": 64,
    "num_heads": 2,
    "feedforward_dim": 32,
    "points": 2,
    "decoder_layers": 2,
    "num_queries": 6,
    "denoising_queries": 12,
}
TINY_GROUPS = {
    **TINY_DEFORMABLE,
    "name": "dino_r50",
    "encoder_layers": 1,
    "groups": 2,
}
TINY = {
    "detr": TINY_DETR,
    "yolos": TINY_YOLOS,
    "patches": {**TINY_YOLOS, "groups": 2, "patch_supervision": True},
    "deformable": TINY_DEFORMABLE,
    "groups": TINY_GROUPS,
}


@pytest.fixture
def sampling_as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let deformable attention go the way of a device: the CPU's own reads memory as it likes."""
    monkeypatch.setattr(deformable_attention, "sample", sample_maps)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sample"
    write_sample(folder, "easy", seed=3, train=10, val=5)
    return folder


class ConfigMaker(Protocol):
    """Makes the config of a tiny run: data folder, output folder, changed keys."""

    def __call__(self, data: Path, output: Path, **changes: Any) -> RunConfig: ...


@pytest.fixture(scope="session")
def tiny_config() -> ConfigMaker:
    return _tiny_config


def _tiny_config(sample: Path, output: Path, *, family: str = "detr", **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "output": str(output),
        "epochs": 4,
        "batch_size": 4,
        "model": TINY[family],
        "data": {
            "train": {
                "annotations": str(sample / "annotations/train.json"),
                "images": str(sample / "train"),
            },
            "val": {
                "annotations": str(sample / "annotations/val.json"),
                "images": str(sample / "val"),
            },
            "augmentation": "small_data",
            "num_workers": 0,
        },
        "image_size": {"rule": "square", "short_side": 64},
        "optimizer": {"lr": 1e-3, "lr_backbone": 1e-3},
        "schedule": {"kind": "cosine"},
    }
    return parse_config(values | changes, source="test")
