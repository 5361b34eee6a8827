"""A model that cannot learn a few pictures by heart is broken somewhere (B1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def repeated(coco: dict[str, Any], times: int) -> dict[str, Any]:
    """Return a split in which every picture comes so many times, each with an id of its own."""
    images, annotations = [], []
    for time in range(times):
        images += [image | {"id": image["id"] + 1000 * time} for image in coco["images"]]
        annotations += [
            one | {"id": one["id"] + 1000 * time, "image_id": one["image_id"] + 1000 * time}
            for one in coco["annotations"]
        ]
    return coco | {"images": images, "annotations": annotations}


@pytest.mark.parametrize("family", ["detr", "yolos"])
def test_four_pictures_are_learned_by_heart(tiny_config, tmp_path: Path, family: str) -> None:
    data = tmp_path / "data"
    write_sample(data, "easy", seed=11, train=4, val=1)
    once = data / "annotations/train.json"
    # Every picture ten times an epoch: ten steps, where a save after each would take longer.
    often = data / "annotations/often.json"
    often.write_text(json.dumps(repeated(json.loads(once.read_text()), 10)))
    train_split, val_split = (
        {"annotations": str(path), "images": str(data / "train")} for path in (often, once)
    )
    run = train(
        tiny_config(
            data,
            tmp_path / "run",
            epochs=35,
            model=SMALL[family],
            data={
                "train": train_split,
                "val": val_split,
                "augmentation": "none",
                "num_workers": 0,
            },
            optimizer={"lr": 2e-3, "lr_backbone": 2e-3, "clip": 1.0},
            schedule={"kind": "cosine", "per": "step", "warmup_steps": 20},
            evaluation={"every": 35},
        )
    )
    assert run.metrics[-1]["val"]["ap50"] > 0.9
