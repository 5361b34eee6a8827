"""Fine-tuning: what is kept of another detector, for other classes and numbers of queries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.checkpoints.finetune import load_for_finetuning
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing, SizeRule

SMALL = {
    "detr": {
        "name": "detr_small",
        "backbone": "plain",
        "encoder_layers": 1,
        "decoder_layers": 1,
        "num_queries": 5,
    },
    "yolos": {"name": "yolos_small", "depth": 2, "num_queries": 5, "position_size_hw": (64, 64)},
}
OLD = CategoryTable((1, 2, 3), ("cat", "dog", "owl"))
NEW = CategoryTable((4, 9), ("owl", "newt"))


def build(family: str, categories: CategoryTable, seed: int, **changes: int) -> nn.Module:
    torch.manual_seed(seed)
    config = ModelConfig(**{**SMALL[family], **changes})
    return build_model(resolve(config), num_classes=len(categories))


@pytest.fixture(params=["detr", "yolos"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(family: str, tmp_path: Path) -> nn.Module:
    model = build(family, OLD, seed=1)
    preprocessing = Preprocessing(SizeRule("square", 64, 64), IMAGENET_MEAN, IMAGENET_STD)
    numbers = resolve(ModelConfig(**SMALL[family]))
    save_detector(tmp_path / "old", model, DetectorSpec(numbers, OLD, preprocessing))
    return model


@pytest.mark.parametrize("queries", [3, 5, 8])
def test_kept_classes_and_queries(
    family: str, source: nn.Module, tmp_path: Path, queries: int
) -> None:
    fresh = build(family, NEW, seed=2, num_queries=queries)
    model = build(family, NEW, seed=2, num_queries=queries)
    report = load_for_finetuning(model, tmp_path / "old", NEW)
    ours, theirs, random = (m.state_dict() for m in (model, source, fresh))

    head = next(name for name in report.partial if "class_head" in name).rsplit(".", 1)[0]
    for part in ("weight", "bias"):
        name = f"{head}.{part}"
        assert torch.equal(ours[name][0], theirs[name][2])  # owl
        assert torch.equal(ours[name][1], random[name][1])  # newt is new
        assert torch.equal(ours[name][2], theirs[name][3])  # no object

    rows = "queries.weight" if family == "detr" else "backbone.det_token"
    kept = min(queries, 5)
    assert torch.equal(ours[rows][..., :kept, :], theirs[rows][..., :kept, :])
    assert torch.equal(ours[rows][..., kept:, :], random[rows][..., kept:, :])
    assert not report.missing
    assert not report.dropped
    for name in report.loaded:
        assert torch.equal(ours[name], theirs[name])


def test_other_shapes_are_all_listed(family: str, source: nn.Module, tmp_path: Path) -> None:
    model = build(family, NEW, seed=2, feedforward_dim=64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DetrKitError, match="other shapes") as caught:
        load_for_finetuning(model, tmp_path / "old", NEW)
    assert str(caught.value).count("(64,") >= 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
