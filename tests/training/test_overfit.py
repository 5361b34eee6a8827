"""A model that cannot learn a few pictures by heart is broken somewhere (B1)."""

from __future__ import annotations

from pathlib import Path

import pytest

from detr_kit.data.sample import write_sample
from detr_kit.training.run import train

SMALL = {
    "detr": {
        "name": "detr_small",
        "backbone": "plain",
        "positions_at_input": True,
        "hidden_dim": 64,
        "feedforward_dim": 128,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_queries": 5,
        "dropout": 0.0,
    },
    "yolos": {
        "name": "yolos_small",
        "hidden_dim": 64,
        "num_heads": 4,
        "feedforward_dim": 128,
        "depth": 3,
        "num_queries": 5,
        "position_size_hw": [64, 64],
    },
}


@pytest.mark.parametrize("family", ["detr", "yolos"])
def test_four_pictures_are_learned_by_heart(tiny_config, tmp_path: Path, family: str) -> None:
    data = tmp_path / "data"
    write_sample(data, "easy", seed=11, train=4, val=1)
    split = {"annotations": str(data / "annotations/train.json"), "images": str(data / "train")}
    run = train(
        tiny_config(
            data,
            tmp_path / "run",
            epochs=350,
            model=SMALL[family],
            data={"train": split, "val": split, "augmentation": "none", "num_workers": 0},
            optimizer={"lr": 2e-3, "lr_backbone": 2e-3, "clip": 1.0},
            schedule={"kind": "cosine", "warmup_steps": 20},
            evaluation={"every": 350},
        )
    )
    assert run.metrics[-1]["val"]["ap50"] > 0.9
