"""Runs: repeated, resumed, split over processes; what they leave behind and refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import detr_kit
from detr_kit.data.sample import write_sample
from detr_kit.evaluation.coco import evaluate_results
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.metrics import CocoMetrics
from detr_kit.evaluation.results import result_columns
from detr_kit.training.run import train
from detr_kit.training.run_files import RESULTS_FILE
from detr_kit.training.validation import Validation
from tests.training.runs import assert_same_run, weights


def with_workers(config, num_workers: int):  # type: ignore[no-untyped-def]
    data = config.data.model_copy(update={"num_workers": num_workers})
    return config.model_copy(update={"data": data})


def test_seeded_runs_with_workers_are_identical(tiny_config, sample: Path, tmp_path: Path) -> None:
    runs = [
        train(with_workers(tiny_config(sample, tmp_path / name, epochs=2), workers))
        for name, workers in (("a", 2), ("b", 2), ("c", 0))
    ]
    assert_same_run(runs[0], runs[1])
    assert_same_run(runs[0], runs[2])


def test_another_seed_is_another_run(tiny_config, sample: Path, tmp_path: Path) -> None:
    runs = [
        train(tiny_config(sample, tmp_path / str(seed), epochs=1, seed=seed)) for seed in (0, 1)
    ]
    assert runs[0].metrics[0]["train"]["loss"] != runs[1].metrics[0]["train"]["loss"]


def test_accumulated_batches_equal_one_large_batch(
    tiny_config, sample: Path, tmp_path: Path
) -> None:
    # Without dropout and with norms that do not see the batch, splitting changes only rounding.
    steady = tiny_config(sample, tmp_path / "x").model.model_copy(
        update={"dropout": 0.0, "backbone_norm": "group"}
    )
    changes = {"model": steady.model_dump(), "epochs": 1}
    large = train(tiny_config(sample, tmp_path / "large", batch_size=10, **changes))
    split = train(tiny_config(sample, tmp_path / "split", batch_size=5, accumulate=2, **changes))
    assert split.metrics[0]["train"]["loss"] == pytest.approx(
        large.metrics[0]["train"]["loss"], rel=1e-4
    )
    assert split.metrics[0]["step"] == large.metrics[0]["step"] == 1


def test_bf16_trains_close_to_fp32(tiny_config, sample: Path, tmp_path: Path) -> None:
    losses = [
        train(tiny_config(sample, tmp_path / precision, epochs=1, precision=precision)).metrics[0][
            "train"
        ]["loss"]
        for precision in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_folder_of_a_run(tiny_config, sample: Path, tmp_path: Path) -> None:
    run = train(tiny_config(sample, tmp_path / "run", epochs=1))
    assert {path.name for path in run.folder.iterdir()} >= {
        "config.yaml",
        "last",
        "best",
        "metrics.jsonl",
        "events",
    }
    assert {path.name for path in run.best.iterdir()} == {"model.safetensors", "detector.json"}
    row = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert row.keys() == {
        "epoch",
        "step",
        "lr",
        "seconds",
        "images_per_second",
        "rates",
        "seconds_waiting",
        "skipped_images",
        "skipped_steps",
        "objects_cut",
        "matching",
        "train",
        "val",
        "eval_seconds",
    }
    assert list(run.folder.rglob("*.tmp*")) == []
    [found] = detr_kit.Detector.from_checkpoint(run.folder).predict(
        next((sample / "val").iterdir()), threshold=0.0
    )
    assert len(found) == 6


def test_best_holds_the_epoch_of_the_highest_ap(
    tiny_config, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Validation.evaluate
    scores = iter([0.1, 0.3, 0.2, 0.1, 0.3])
    monkeypatch.setattr(
        Validation, "evaluate", lambda *args: replace(evaluate(*args), ap=next(scores))
    )
    run = train(tiny_config(sample, tmp_path / "run", epochs=3))
    stopped = train(tiny_config(sample, tmp_path / "two", epochs=3), stop_after_epoch=2)
    best = load_file(run.best / "model.safetensors")
    for name, tensor in weights(stopped).items():
        assert torch.equal(best[name], tensor), name
    # what it found is kept with it, not what a later epoch found
    kept, expected = ((one.folder / RESULTS_FILE).read_text() for one in (run, stopped))
    assert kept == expected
    assert any(not torch.equal(best[name], tensor) for name, tensor in weights(run).items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_in_training_is_that_of_the_saved_detector(
    tiny_config,
    sample: Path,
    tmp_path: Path,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored: list[ResultColumns] = []

    def keep(results: ResultColumns, truth: GroundTruth, *, warn: bool) -> CocoMetrics:
        scored.append(results)
        return evaluate_results(results, truth, warn=warn)

    monkeypatch.setattr("detr_kit.training.validation.evaluate_results", keep)
    run = train(tiny_config(sample, tmp_path / "run", epochs=1, precision=precision))
    detector = detr_kit.Detector.from_checkpoint(run.last)
    coco = json.loads((sample / "annotations/val.json").read_text())
    assert set(scored[0].image_ids.tolist()) == {image["id"] for image in coco["images"]}
    for image in coco["images"]:
        [found] = detector.predict(sample / "val" / image["file_name"], threshold=0)
        expected = result_columns({image["id"]: found})
        own = scored[0].image_ids == image["id"]
        np.testing.assert_allclose(scored[0].scores[own], expected.scores, atol=1e-5)
        np.testing.assert_allclose(scored[0].boxes_xywh[own], expected.boxes_xywh, atol=1e-2)


def test_finetuning_keeps_classes_by_name(tiny_config, sample: Path, tmp_path: Path) -> None:
    run = train(tiny_config(sample, tmp_path / "first", epochs=1))
    changed = tmp_path / "changed"
    write_sample(changed, "easy", seed=4, train=4, val=2)
    for split in ("train", "val"):  # other ids in another order, the same names
        path = changed / "annotations" / f"{split}.json"
        coco = json.loads(path.read_text())
        new_id = {c["id"]: 100 - c["id"] for c in coco["categories"]}
        for category in coco["categories"]:
            category["id"] = new_id[category["id"]]
        for annotation in coco["annotations"]:
            annotation["category_id"] = new_id[annotation["category_id"]]
        path.write_text(json.dumps(coco))
    config = tiny_config(
        changed,
        tmp_path / "second",
        epochs=1,
        optimizer={"lr": 1e-12, "lr_backbone": 1e-12},
    )
    model = config.model.model_copy(update={"init_from": str(run.last)})
    config = config.model_copy(update={"model": model})
    tuned = weights(train(config))
    head = "heads.class_head.layers.0.weight"
    flipped = weights(run)[head][[3, 2, 1, 0, 4]]  # `no object` stays last
    torch.testing.assert_close(tuned[head], flipped, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", lambda coco: coco["images"].clear() or coco["annotations"].clear(), "no images"),
        ("train", lambda coco: coco["annotations"].clear(), "no objects to learn from"),
        ("val", lambda coco: coco["categories"][0].update(name="other"), "categories differ"),
    ],
)
def test_unusable_data_is_refused_before_anything_is_written(
    tiny_config,
    tmp_path: Path,
    split: str,
    change,
    message: str,  # type: ignore[no-untyped-def]
) -> None:
    write_sample(tmp_path / "data", "easy", train=2, val=1)
    path = tmp_path / "data/annotations" / f"{split}.json"
    coco = json.loads(path.read_text())
    change(coco)
    path.write_text(json.dumps(coco))
    with pytest.raises(detr_kit.DetrKitError, match=message) as caught:
        train(tiny_config(tmp_path / "data", tmp_path / "run"))
    assert path.name in str(caught.value)
    assert not (tmp_path / "run").exists()
