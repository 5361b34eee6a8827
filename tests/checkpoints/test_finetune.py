"""Fine-tuning: what is kept of another detector, for other classes and numbers of queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.checkpoints.finetune import _kept_columns, load_for_finetuning
from detr_kit.checkpoints.report import LoadReport
from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

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


def build(family: str, categories: CategoryTable, seed: int, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    config = ModelConfig(**{**SMALL[family], **changes})
    return build_model(resolve(config), num_classes=len(categories))


def finetuned(model: nn.Module, family: str, tmp_path: Path, **changes: Any) -> LoadReport:
    numbers = resolve(ModelConfig(**{**SMALL[family], **changes}))
    return load_for_finetuning(model, numbers, open_checkpoint(tmp_path / "old"), NEW)


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
    report = finetuned(model, family, tmp_path, num_queries=queries)
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
        finetuned(model, family, tmp_path, feedforward_dim=64)
    assert str(caught.value).count("(64,") >= 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_names_match_whatever_their_case_and_unused_columns_never() -> None:
    coco = CategoryTable.from_columns(["-", "Person", "unused_9", "-"], unused="-")
    own = CategoryTable((5, 6, 7), ("person ", "unused_0", "unused_9"))
    assert _kept_columns(own, coco) == {0: 1, 2: 2}


def test_the_report_says_what_became_of_classes_and_queries(
    family: str, source: nn.Module, tmp_path: Path
) -> None:
    model = build(family, NEW, seed=2, num_queries=8)
    report = finetuned(model, family, tmp_path, num_queries=8)
    assert report.notes[:2] == (
        "classes: 1 of 2 kept by name (owl), new: newt",
        "queries: the first 5 of 5 kept, 3 new",
    )
    assert "\n" not in report.summary()
    assert report.notes[0] in report.lines()


@pytest.mark.parametrize("family", ["yolos"])
@pytest.mark.parametrize("queries", [3, 8])
def test_positions_of_another_grid_are_resampled(
    family: str, source: nn.Module, tmp_path: Path, queries: int
) -> None:
    changes = {"num_queries": queries, "position_size_hw": (48, 96)}
    fresh = build(family, NEW, seed=2, **changes)
    model = build(family, NEW, seed=2, **changes)
    report = finetuned(model, family, tmp_path, **changes)
    assert "positions: position_size_hw resampled from 4 x 4 patches to 3 x 6" in report.notes
    ours, theirs, random = (m.backbone.pos_embed for m in (model, source, fresh))
    grid = theirs[:, 1:-5].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    resampled = F.interpolate(grid, (3, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(ours[:, 1:-queries], resampled.flatten(2).mT)
    assert torch.equal(ours[:, 0], theirs[:, 0])
    kept = min(queries, 5)
    assert torch.equal(ours[:, -queries:][:, :kept], theirs[:, -5:][:, :kept])
    assert torch.equal(ours[:, -queries:][:, kept:], random[:, -queries:][:, kept:])


@pytest.mark.parametrize(("groups", "queries"), [(3, 8), (2, 5), (5, 3), (1, 7)])
def test_further_groups_of_a_yolos_keep_their_own_queries(
    tmp_path: Path, groups: int, queries: int
) -> None:
    """The tables of the further groups hold two of five tokens each."""
    mid = {"mid_position_size_hw": (64, 64), "depth": 3}
    theirs = build("yolos", OLD, seed=1, groups=3, **mid)
    numbers = resolve(ModelConfig(**{**SMALL["yolos"], "groups": 3, **mid}))
    preprocessing = Preprocessing(SizeRule("square", 64, 64), IMAGENET_MEAN, IMAGENET_STD)
    save_detector(tmp_path / "old", theirs, DetectorSpec(numbers, OLD, preprocessing))
    own = {**mid, "groups": groups, "num_queries": queries}
    fresh, model = (build("yolos", NEW, seed=2, **own) for _ in range(2))
    report = finetuned(model, "yolos", tmp_path, **own)
    extra = [f"extra_{name}" for name in ("det_token", "pos_embed", "mid_pos_embed")]
    if groups == 1:
        assert report.dropped == tuple(sorted(f"backbone.{name}" for name in extra))
        return
    for name in extra:
        ours, random = (
            part.backbone.get_parameter(name).unflatten(-2, (groups - 1, queries))
            for part in (model, fresh)
        )
        given = theirs.backbone.get_parameter(name).unflatten(-2, (2, 5))
        kept = (..., slice(min(groups - 1, 2)), slice(min(queries, 5)), slice(None))
        assert torch.equal(ours[kept], given[kept])
        new = torch.ones_like(ours, dtype=torch.bool)
        new[kept] = False
        assert torch.equal(ours[new], random[new])


@pytest.mark.parametrize("family", ["detr"])
def test_settings_that_change_what_weights_mean_are_warned_of(
    family: str, source: nn.Module, tmp_path: Path
) -> None:
    report = finetuned(build(family, NEW, seed=2, num_heads=2), family, tmp_path, num_heads=2)
    assert report.notes[-1].startswith("warning: num_heads is 2 here and 4 in the checkpoint")


def test_another_family_is_refused(family: str, source: nn.Module, tmp_path: Path) -> None:
    other = {"detr": "yolos", "yolos": "detr"}[family]
    with pytest.raises(
        DetrKitError, match=f"its family is {family}, but the configured model's is {other}"
    ):
        finetuned(build(other, NEW, seed=2), other, tmp_path)
