from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_kit.categories import CategoryTable
from detr_kit.config import ModelConfig
from detr_kit.data.dataset import SkippedPicturesWarning
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.evaluation import evaluate
from detr_kit.inference import Detector
from detr_kit.inference.predictor import Predictor
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

TABLE = CategoryTable((3, 7, 91), ("cat", "dog", "bird"))
PREPROCESSING = Preprocessing(SizeRule("detr", 48, 96), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
CONFIGS = {
    "detr": ModelConfig(
        name="detr_small",
        encoder_layers=1,
        decoder_layers=1,
        hidden_dim=16,
        num_heads=2,
        feedforward_dim=16,
        num_queries=9,
    ),
    "yolos": ModelConfig(
        name="yolos_small",
        depth=2,
        hidden_dim=24,
        num_heads=2,
        feedforward_dim=32,
        num_queries=9,
        position_size_hw=(48, 64),
    ),
}


def random_detector(family: str) -> Detector:
    torch.manual_seed(0)
    model = build_model(resolve(CONFIGS[family]), num_classes=len(TABLE))
    for name, parameter in model.named_parameters():
        if "embed" in name:  # far from uniform scores and equal boxes
            parameter.data.mul_(3)
    return Detector(model, TABLE, PREPROCESSING, device="cpu")


def coco_set(folder: Path, detector: Detector, categories: CategoryTable = TABLE) -> Path:
    """Noise pictures of different sizes, whose objects lie near what the detector finds."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for id_, (width, height) in enumerate([(64, 48), (50, 90), (120, 60), (64, 64), (33, 77)]):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{id_}.png")
        images.append({"id": id_, "file_name": f"{id_}.png", "width": width, "height": height})
        for row in detector.predict(pixels, threshold=0)[0].select([0, 2, 5]).to_coco(id_):
            if id_ == 3 or row["category_id"] not in categories.column_of:
                continue
            box = np.array(row["bbox"]) + rng.normal(0, 0.7, 4)
            low, high = box[:2].clip(0), (box[:2] + box[2:]).clip(1, (width, height))
            row["bbox"] = [*low.tolist(), *(high - low).clip(1).tolist()]
            del row["score"]
            annotations.append({**row, "id": len(annotations), "iscrowd": int(rng.random() < 0.2)})
    path = folder / "val.json"
    path.write_text(
        json.dumps(
            {"images": images, "annotations": annotations, "categories": categories.to_json()}
        )
    )
    return path


def by_hand(rows: list[dict[str, Any]], path: Path) -> list[float]:
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(path.read_text())
        for annotation in truth.dataset["annotations"]:
            annotation["id"] += 1
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        truth.createIndex()
        scorer = COCOeval(truth, truth.loadRes(rows), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return [float(value) for value in scorer.stats]


@pytest.mark.parametrize("family", ["detr", "yolos"])
def test_equal_to_predict_scored_by_pycocotools(tmp_path: Path, family: str) -> None:
    detector = random_detector(family)
    path = coco_set(tmp_path, detector)
    metrics = evaluate(detector, path, tmp_path, batch_size=2, results_path=tmp_path / "r.json")
    pictures = [tmp_path / f"{id_}.png" for id_ in range(5)]
    rows = [
        row
        for id_, found in enumerate(detector.predict(pictures, threshold=0, batch_size=3))
        for row in found.to_coco(id_)
    ]
    figures = [-1 if value is None else value for _, value in metrics.figures()]
    assert len(figures) == 12
    assert metrics.ap is not None
    assert 0.05 < metrics.ap < 0.95
    np.testing.assert_allclose(figures, by_hand(rows, path), rtol=0, atol=1e-6)
    written = json.loads((tmp_path / "r.json").read_text())
    np.testing.assert_allclose(by_hand(written, path), figures, rtol=0, atol=1e-6)


def test_a_file_with_fewer_categories_scores_those(tmp_path: Path) -> None:
    detector = random_detector("yolos")
    ids = np.concatenate(
        [
            one.category_ids
            for one in detector.predict(
                [np.full((48, 64, 3), level, np.uint8) for level in (0, 90, 255)], threshold=0
            )
        ]
    )
    most = int(np.bincount(ids).argmax())
    known = CategoryTable((most,), (TABLE.names[TABLE.column_of[most]],))
    path = coco_set(tmp_path, detector, known)
    metrics = evaluate(detector, path, tmp_path)
    assert list(metrics.per_class) == list(known.names)
    assert metrics.ap is not None
    assert metrics.ap > 0.05


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (CategoryTable((3, 8), ("cat", "cow")), "category id 8 is 'cow' there.*has no id 8"),
        (CategoryTable((3, 7), ("cat", "cow")), "category id 7 is 'cow' there.*calls id 7 'dog'"),
    ],
)
def test_other_categories_are_refused(tmp_path: Path, other: CategoryTable, message: str) -> None:
    detector = random_detector("yolos")
    path = coco_set(tmp_path, detector, other)
    with pytest.raises(DetrKitError, match=message) as caught:
        evaluate(detector, path, tmp_path)
    assert str(path) in str(caught.value)


def test_an_unused_column_is_not_known(tmp_path: Path) -> None:
    detector = random_detector("yolos")
    path = coco_set(tmp_path, detector)
    detector.categories = CategoryTable(TABLE.ids, TABLE.names, (True, False, True))
    with pytest.raises(DetrKitError, match="has no id 7"):
        evaluate(detector, path, tmp_path)


class Borrowed(Predictor):
    """A detector that tells nobody what runs it."""

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector.categories, detector.preprocessing)
        self.detect = detector.detect  # type: ignore[method-assign]

    def detect(self, *inputs: Any) -> list[Detections]:
        raise NotImplementedError


# The few queries of a random model are scored alike.
@pytest.mark.filterwarnings("ignore:results. the lowest score")
def test_a_detector_that_torch_does_not_run_gets_the_same_figures(tmp_path: Path) -> None:
    detector = random_detector("detr")
    annotations = coco_set(tmp_path, detector)
    expected = evaluate(detector, annotations, tmp_path, batch_size=2)
    assert expected.ap > 0
    assert evaluate(Borrowed(detector), annotations, tmp_path, batch_size=2).ap == pytest.approx(
        expected.ap, abs=1e-6
    )
    picture = min(tmp_path.glob("*.png"))
    picture.write_bytes(b"")
    with pytest.raises(DetrKitError, match=picture.name):
        evaluate(Borrowed(detector), annotations, tmp_path)
    with pytest.warns(SkippedPicturesWarning, match=picture.name):
        skipping = evaluate(Borrowed(detector), annotations, tmp_path, on_bad_image="skip")
    with pytest.warns(SkippedPicturesWarning, match=picture.name):
        same = evaluate(detector, annotations, tmp_path, on_bad_image="skip")
    assert skipping.ap == pytest.approx(same.ap, abs=1e-6)
