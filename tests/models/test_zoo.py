from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import VARIANTS, build_model, resolve

# The official code's figures with 91 classes, in thousands (`numel` of every parameter; frozen
# batch norms are buffers, the frozen stem and layer1 count).
OFFICIAL_THOUSANDS = {
    "detr_r50": 41525,
    "detr_r50_dc5": 41525,
    "detr_r101": 60465,
    "detr_r101_dc5": 60465,
    "yolos_ti": 6489,
    "yolos_s": 30685,
    "yolos_s_dwr": 27562,
    "yolos_b": 127798,
}


@pytest.mark.parametrize("name", OFFICIAL_THOUSANDS)
def test_parameter_counts_are_the_official_ones(name: str) -> None:
    with torch.device("meta"):
        model = build_model(resolve(ModelConfig(name=name)), num_classes=91)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1000) == OFFICIAL_THOUSANDS[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_are_plain_data_that_survives_json(name: str) -> None:
    numbers = resolve(ModelConfig(name=name, hidden_dim=24, num_heads=2, num_queries=3))
    read_back = json.loads(json.dumps(numbers))
    with torch.device("meta"):
        first, second = (build_model(given, 2).state_dict() for given in (numbers, read_back))
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}


def test_norms_and_freezing_follow_the_weights() -> None:
    pretrained = resolve(ModelConfig(name="detr_r50"))
    assert (pretrained["backbone_norm"], pretrained["frozen_stages"]) == ("frozen", 2)
    scratch = resolve(ModelConfig(name="detr_r50", backbone_weights="none"))
    assert scratch["backbone_weights"] is None
    assert (scratch["backbone_norm"], scratch["frozen_stages"]) == ("batch", 0)
    chosen = resolve(ModelConfig(name="detr_r50", backbone_norm="group", frozen_stages=0))
    assert (chosen["backbone_norm"], chosen["frozen_stages"]) == ("group", 0)
    assert VARIANTS["detr_r50"]["backbone_norm"] == "auto"
    assert resolve(ModelConfig(name="yolos_s"))["frozen_stages"] == 0
    assert resolve(ModelConfig(name="yolos_s", frozen_stages=3))["frozen_stages"] == 3


def test_numbers_of_older_yolos_checkpoints_still_build() -> None:
    numbers = resolve(ModelConfig(name="yolos_small", depth=1))
    del numbers["frozen_stages"], numbers["norm_eps"]
    with torch.device("meta"):
        assert all(p.requires_grad for p in build_model(numbers, 2).parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="detr_r5"), "did you mean 'detr_r50'"),
        (ModelConfig(name="x"), "model.name 'x' is unknown; there are detr_r50, "),
        (
            ModelConfig(name="detr_r50", depth=3),
            "model.depth: detr_r50 is a DETR and has no such setting; it is for YOLOS$",
        ),
        (
            ModelConfig(name="yolos_ti", pre_norm=True),
            "model.pre_norm: yolos_ti is a YOLOS and has no such setting; it is for DETR$",
        ),
        (
            ModelConfig(name="yolos_ti", levels=2),
            "model.levels: yolos_ti is a YOLOS and has no such setting; it is for Deformable DETR$",
        ),
        (
            ModelConfig(name="detr_r50", groups=2),
            "model.groups: detr_r50 is a DETR .*; it is for YOLOS and Deformable DETR$",
        ),
    ],
)
def test_unknown_names_and_settings(config: ModelConfig, message: str) -> None:
    with pytest.raises(DetrKitError, match=message):
        resolve(config)


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(DetrKitError, match=r"hidden_dim 30 .* num_heads 4"):
        build_model(resolve(ModelConfig(name="detr_small", hidden_dim=30)), 2)
    with pytest.raises(DetrKitError, match="size 8 x 64"):
        build_model(resolve(ModelConfig(name="yolos_small", position_size_hw=(8, 64))), 2)


def test_reading_the_zoo_imports_no_torch() -> None:
    code = "import sys, detr_kit.models.zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
