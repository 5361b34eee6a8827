from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path

import numpy as np

from detr_kit.evaluation.coco import evaluate_results
from detr_kit.evaluation.ground_truth import load_ground_truth

IMAGES, PER_IMAGE = 50, 100


def test_memory_stays_flat_over_evaluations(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 200, (IMAGES, 2)), rng.uniform(5, 99, (IMAGES, 2))], 1)
    content = {
        "images": [{"id": id_} for id_ in range(IMAGES)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": id_, "image_id": id_, "category_id": 1, "bbox": box}
            for id_, box in enumerate(boxes.tolist())
        ],
    }
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    truth = load_ground_truth(path)
    found = np.ones((IMAGES * PER_IMAGE, 7))
    found[:, 0] = np.arange(IMAGES).repeat(PER_IMAGE)
    found[:, 1:5] = boxes.repeat(PER_IMAGE, axis=0) + rng.normal(0, 2, (len(found), 4))
    found[:, 5] = rng.random(len(found))

    def kept_after_an_epoch() -> int:
        assert evaluate_results(found, truth).ap is not None
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        kept_after_an_epoch()
        before = kept_after_an_epoch()
        after = [kept_after_an_epoch() for _ in range(8)][-1]
    finally:
        tracemalloc.stop()
    # numpy keeps a few kB for itself; one column of the detections alone would take 40 kB an epoch
    assert after - before < 40_000
