"""Runs in two processes: no hang, the gradients of one process, and what they exchange."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import detr_kit
from detr_kit.config import dump_config
from detr_kit.data.sample import write_sample
from detr_kit.training.run import Run
from detr_kit.training.run_files import RESULTS_FILE
from tests.training.runs import REPOSITORY, torchrun

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
