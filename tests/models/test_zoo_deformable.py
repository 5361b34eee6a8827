from __future__ import annotations

from typing import Any

import pytest
import torch

from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.deformable_detr import DeformableDETR
from detr_kit.models.deformable_encoder import DeformableEncoder
from detr_kit.models.zoo import VARIANTS, build_model, resolve

DEFORMABLE = [name for name, numbers in VARIANTS.items() if numbers["family"] == "deformable"]


def on_meta(name: str, num_classes: int, **changes: Any) -> torch.nn.Module:
    if str(resolve(ModelConfig(name=name, **changes))["backbone"]).startswith("timm/"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        return build_model(resolve(ModelConfig(name=name, **changes)), num_classes)


@pytest.mark.parametrize("name", DEFORMABLE)
def test_models_of_the_family_say_how_they_score(name: str) -> None:
    model = on_meta(name, 7)
    assert (model.scoring, model.num_columns) == ("sigmoid", 7)
    assert model.wants_targets == (VARIANTS[name]["denoising_queries"] > 0)


def test_dino_has_one_pair_of_heads_and_its_own_positions() -> None:
    model = on_meta("dino_r50", 5)
    assert isinstance(model, DeformableDETR)
    assert isinstance(model.encoder, DeformableEncoder)
    assert len(model.heads) == 1
    assert model.encoder.positions.temperature == 20
    assert not model.encoder.positions.centered


@pytest.mark.parametrize("name", ["deformable_detr_r50", "dino_r50"])
def test_positions_of_older_checkpoints_are_centered(name: str) -> None:
    numbers = resolve(ModelConfig(name=name))
    assert numbers.pop("centered_positions") == (name == "deformable_detr_r50")
    with torch.device("meta"):
        model = build_model(numbers, 5)
    assert isinstance(model, DeformableDETR)
    assert isinstance(model.encoder, DeformableEncoder)
    assert model.encoder.positions.centered


def test_state_dicts_have_the_names_that_conversions_rely_on() -> None:
    keys = set(on_meta("dino_r50", 5, shared_heads=False).state_dict())
    assert {
        "input_proj.3.0.weight",
        "input_proj.0.1.weight",
        "encoder.level_embed",
        "encoder.layers.5.attn.offsets.weight",
        "decoder.layers.5.self_attn.qkv.weight",
        "decoder.layers.0.cross_attn.value.bias",
        "decoder.layers.0.mlp.fc1.weight",
        "decoder.layers.0.norm3.bias",
        "decoder.norm.weight",
        "decoder.positions.layers.1.weight",
        "heads.5.class_head.layers.0.weight",
        "heads.5.box_head.layers.2.bias",
        "queries.transform.weight",
        "queries.norm.weight",
        "queries.content.weight",
        "queries.heads.class_head.layers.0.weight",
        "denoising.labels.weight",
    } <= keys
    keys = set(on_meta("deformable_detr_r50", 5).state_dict())
    assert {"queries.content.weight", "queries.positions.weight", "queries.points.bias"} <= keys
    assert "heads.1.class_head.layers.0.weight" not in keys
    keys = set(on_meta("deformable_detr_r50_two_stage", 5).state_dict())
    assert {"queries.positions.weight", "queries.positions_norm.weight"} <= keys
    anchored = on_meta("deformable_detr_r50", 5, query_positions="sine", cross_attention="dense")
    keys = set(anchored.state_dict())
    assert {"queries.anchors.weight", "decoder.layers.0.cross_attn.qkv.weight"} <= keys
    assert "memory_positions.level_embed" in keys


def test_norms_and_freezing_follow_the_weights() -> None:
    def settled(name: str, **changes: Any) -> tuple[str, int]:
        numbers = resolve(ModelConfig(name=name, **changes))
        return numbers["backbone_norm"], numbers["frozen_stages"]

    assert settled("dino_r50") == ("frozen", 2)
    assert settled("dino_r50", backbone_weights="none") == ("batch", 0)
    assert settled("rtdetrv2_r50") == ("frozen", 1)
    assert settled("rtdetrv2_r50", backbone_weights="none") == ("batch", 0)
    assert settled("rtdetrv2_r50", backbone_weights="none", frozen_stages=1) == ("batch", 1)
    assert settled("rtdetrv2_r18") == ("batch", 0)
    assert settled("detr_fast") == ("frozen", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_selection": "full"}, "query_positions learned: selected queries"),
        ({"query_positions": "proposal"}, "proposal needs query_selection full"),
        (
            {"query_selection": "mixed", "query_positions": "proposal"},
            "proposal needs query_selection full",
        ),
        (
            {"query_selection": "full", "query_positions": "mlp", "groups": 2},
            "groups: query_selection full has one group .* set model.query_selection mixed",
        ),
        (
            {"query_positions": "mlp", "denoising_queries": 10, "scoring": "softmax"},
            "denoising_queries need scoring sigmoid; with softmax, set model.denoising_queries 0 "
            "and loss.classification auto",
        ),
        ({"denoising_queries": 10}, "denoising_queries need query_positions sine or mlp"),
        ({"look_forward_twice": True}, "look_forward_twice needs refinement"),
        ({"encoder_layers": 0}, "encoder_layers 0: encoder deformable and dense need one"),
        ({"encoder_dim": 128}, "encoder_dim is for encoder hybrid, .* leave it out, or give null"),
        ({"encoder_feedforward_dim": 128}, "encoder_feedforward_dim is for encoder hybrid"),
        ({"encoder_expansion": 2.0}, "encoder_expansion is for encoder hybrid"),
        ({"encoder": "dense", "temperature": 20}, "temperature is for encoder deformable"),
        (
            {"encoder": "dense", "centered_positions": True},
            "centered_positions is for encoder deformable",
        ),
        ({"shared_heads": True}, "shared_heads is for refinement"),
        ({"label_noise": 0.3}, "label_noise is for denoising_queries"),
        ({"box_noise": 0.3}, "box_noise is for denoising_queries"),
        (
            {"encoder": "dense", "cross_attention": "dense", "points": 2},
            "points is for deformable attention",
        ),
        ({"pre_norm": True}, "deformable_detr_r50 is a Deformable DETR and has no such setting"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(changes: dict, message: str) -> None:
    with pytest.raises(DetrKitError, match=message) as refused:
        resolve(ModelConfig(name="deformable_detr_r50", **changes))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("model.")


@pytest.mark.parametrize(
    ("name", "changes", "left"),
    [
        (
            "rtdetrv2_r101",
            {"encoder": "deformable"},
            {"encoder_dim": None, "encoder_feedforward_dim": None, "encoder_expansion": 1.0},
        ),
        ("detr_fast", {"encoder": "dense", "encoder_dim": None}, {"encoder_expansion": 1.0}),
        ("dino_r50", {"encoder": "hybrid"}, {"temperature": 10000.0}),
        (
            "dino_r50",
            {"refinement": False, "look_forward_twice": False, "shared_heads": False},
            {"shared_heads": False},
        ),
        ("dino_r50", {"denoising_queries": 0}, {"label_noise": 0.5, "box_noise": 1.0}),
    ],
)
def test_what_a_variant_brings_along_and_nothing_reads_is_left_out(
    name: str, changes: dict[str, Any], left: dict[str, Any]
) -> None:
    numbers = resolve(ModelConfig(name=name, **changes))
    assert {key: numbers[key] for key in left} == left
    assert numbers.keys() == VARIANTS[name].keys()
    on_meta(name, 2, **changes)


def test_other_families_have_no_such_settings() -> None:
    with pytest.raises(DetrKitError, match=r"model\.groups: detr_r50 is a DETR and has no such"):
        resolve(ModelConfig(name="detr_r50", groups=2))
    with pytest.raises(DetrKitError, match=r"model\.levels: yolos_s is a YOLOS and has no such"):
        resolve(ModelConfig(name="yolos_s", levels=2))


def test_widths_that_do_not_fit() -> None:
    with pytest.raises(DetrKitError, match=r"hidden_dim 36 .* num_heads 8"):
        on_meta("deformable_detr_r50", 2, hidden_dim=36, num_heads=8)
    with pytest.raises(DetrKitError, match="multiple of 4"):
        on_meta("dino_r50", 2, hidden_dim=42, num_heads=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 126}, r"^hidden_dim 126: encoder hybrid needs a multiple of 4 and of"),
        ({"hidden_dim": 124}, r"^hidden_dim 124: .* num_heads 8$"),
        ({"encoder_dim": 126, "num_heads": 2}, r"^encoder_dim 126: .* num_heads 2$"),
        ({"encoder_dim": 124}, r"^encoder_dim 124: .* num_heads 8$"),
        ({"encoder_expansion": 0.001}, r"^encoder_expansion 0\.001: it leaves no channel of"),
    ],
)
def test_widths_of_the_hybrid_encoder_are_named_as_they_are_set(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DetrKitError, match=message):
        on_meta("detr_fast", 2, **changes)
    # Without layers of attention, no head shares the width.
    on_meta("detr_fast", 2, encoder_dim=124, encoder_layers=0)
