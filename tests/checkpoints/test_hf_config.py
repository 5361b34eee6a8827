"""What a config.json of transformers says, what it leaves out, and what cannot be followed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DetrConfig, DetrModel, ResNetConfig, YolosConfig

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.convert import convert
from detr_kit.checkpoints.hf_config import config_from_numbers, numbers_from_config
from detr_kit.checkpoints.hf_keys import DETR_RESNET_KEYS, DETR_TIMM_KEYS, YOLOS_KEYS
from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import VARIANTS

LOADED = {"backbone_norm": "frozen", "backbone_weights": None, "frozen_stages": 2}
TIMM = {
    "model_type": "timm_backbone",
    "backbone": "resnet50",
    "features_only": True,
    "out_indices": [1, 2, 3, 4],
    "use_pretrained_backbone": False,
}
# Older releases take a backbone_config only beside these.
NO_NAME = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}


def numbers(**config: Any) -> dict[str, Any]:
    return numbers_from_config({"model_type": "detr", **config})[0]


def as_written(config: Any, *, everything: bool) -> dict[str, Any]:
    """Return the config.json of transformers, without the class's defaults or with them."""
    return dict(json.loads(config.to_json_string(use_diff=not everything)))


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(
    ("config", "written"),
    [
        (lambda: DetrConfig(), {"model_type": "detr"}),
        (lambda: YolosConfig(), {"model_type": "yolos"}),
        (
            lambda: DetrConfig(**NO_NAME, backbone_config=ResNetConfig(out_features=["stage4"])),
            {"model_type": "detr", "backbone_config": {"model_type": "resnet"}},
        ),
    ],
)
def test_what_is_left_out_is_the_classs_default(
    config: Callable[[], Any], written: dict[str, Any], everything: bool
) -> None:
    full = as_written(config(), everything=everything)
    assert numbers_from_config(full) == numbers_from_config(written)


def test_defaults_are_the_published_models() -> None:
    assert numbers() == VARIANTS["detr_r50"] | LOADED
    small, key_map = numbers_from_config({"model_type": "yolos"})
    base = VARIANTS["yolos_b"] | {"backbone_weights": None, "norm_eps": 1e-12}
    sizes = dict.fromkeys(("position_size_hw", "mid_position_size_hw"), (512, 864))
    assert small == base | sizes
    assert key_map is YOLOS_KEYS


# As the hub's files for releases before 5 name the backbone.
def test_backbones_by_name() -> None:
    old = {"use_timm_backbone": True, "backbone_config": None, "dilation": False}
    assert numbers(backbone="resnet101", **old) == VARIANTS["detr_r101"] | LOADED
    assert numbers(**old | {"dilation": True}) == VARIANTS["detr_r50_dc5"] | LOADED
    given = {**old, "backbone_kwargs": {"out_indices": [1, 2, 3, 4], "output_stride": 16}}
    assert numbers(**given)["dilation"] is True


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_backbones_of_timm(name: str) -> None:
    for spelled in (name, f"{name}.a1_in1k"):
        found, key_map = numbers_from_config(
            {"model_type": "detr", "backbone_config": {**TIMM, "backbone": spelled}}
        )
        assert found == VARIANTS["detr_r50"] | LOADED | {"backbone": name}
        assert key_map is DETR_TIMM_KEYS


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("resnet18", {"depths": [2] * 4, "layer_type": "basic"}),
        ("resnet34", {"depths": [3, 4, 6, 3], "layer_type": "basic"}),
        ("resnet50", {}),
        ("resnet101", {"depths": [3, 4, 23, 3]}),
    ],
)
def test_backbones_of_transformers(name: str, config: dict[str, Any]) -> None:
    if config.get("layer_type") == "basic":
        config["hidden_sizes"] = [64, 128, 256, 512]
    for last in ({"out_features": ["stage4"]}, {"out_indices": [4]}, {}):
        inner = {"model_type": "resnet", **config, **last}
        found, key_map = numbers_from_config({"model_type": "detr", "backbone_config": inner})
        assert found["backbone"] == name
        assert key_map is DETR_RESNET_KEYS


@pytest.mark.parametrize(("stride", "dilated"), [(None, False), (32, False), (16, True)])
@pytest.mark.parametrize("dilation", [False, True])
def test_beside_a_backbone_config_dilation_means_nothing(
    stride: int | None, dilated: bool, dilation: bool
) -> None:
    inner = {**TIMM, "output_stride": stride}
    assert numbers(backbone_config=inner, dilation=dilation)["dilation"] is dilated
    if stride is None and dilation:  # so it is in transformers
        small = {"encoder_layers": 0, "decoder_layers": 1, "d_model": 8, "num_queries": 1}
        config = DetrConfig(**NO_NAME, backbone_config=inner, dilation=True, **small)
        model = DetrModel(config).eval()
        picture = torch.zeros(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.long)
        assert model.backbone(*picture)[-1][0].shape[2:] == (2, 2)


def test_settings_reach_the_numbers() -> None:
    found = numbers(
        d_model=64, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, num_queries=11,
        dropout=0.2, position_embedding_type="learned",
    )  # fmt: skip
    assert found == VARIANTS["detr_r50"] | LOADED | {
        "hidden_dim": 64, "encoder_layers": 1, "decoder_layers": 2, "num_heads": 4,
        "feedforward_dim": 96, "num_queries": 11, "dropout": 0.2, "position_encoding": "learned",
    }  # fmt: skip
    found, _ = numbers_from_config(
        {
            "model_type": "yolos", "hidden_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "intermediate_size": 64, "image_size": 224,
            "num_detection_tokens": 9, "layer_norm_eps": 1e-5, "patch_size": [8, 8],
            "hidden_dropout_prob": 0.1, "use_mid_position_embeddings": False,
        }
    )  # fmt: skip
    assert found == VARIANTS["yolos_s"] | {
        "backbone_weights": None, "hidden_dim": 48, "depth": 3, "num_heads": 4,
        "feedforward_dim": 64, "position_size_hw": (224, 224), "mid_position_size_hw": None,
        "num_queries": 9, "norm_eps": 1e-5, "patch_size": 8, "dropout": 0.1,
    }  # fmt: skip


RESNET = {"model_type": "resnet"}
# What is written in a config.json and the key that the error names.
UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "conditional_detr"}, "model_type is 'conditional_detr'"),
    ({"model_type": None}, "model_type is None"),
    ({"model_type": ["detr"]}, "model_type is"),
    ({"activation_function": "gelu"}, "activation_function 'gelu'"),
    ({"num_channels": 1}, "num_channels 1"),
    ({"decoder_attention_heads": 4}, "decoder_attention_heads 4"),
    ({"decoder_ffn_dim": 4}, "decoder_ffn_dim 4"),
    ({"position_embedding_type": "rotary"}, "position_embedding_type 'rotary'"),
    ({"backbone": "resnet50d"}, "backbone 'resnet50d'"),
    ({"backbone": None}, "backbone None"),
    ({"backbone_kwargs": {"output_stride": 8}}, "output_stride 8"),
    ({"backbone_kwargs": {"out_indices": [1, 2]}}, "features of [1, 2]"),
    ({"backbone_config": {**TIMM, "backbone": "swin"}}, "backbone 'swin'"),
    ({"backbone_config": {**TIMM, "output_stride": 8}}, "backbone_config.output_stride 8"),
    ({"backbone_config": {**TIMM, "out_indices": [1, 2, 3]}}, "features of [1, 2, 3]"),
    ({"backbone_config": {"model_type": "swin"}}, "backbone_config of type 'swin'"),
    ({"backbone_config": {}}, "backbone_config of type None"),
    ({"backbone_config": {**RESNET, "depths": [1, 1, 1, 1]}}, "ResNet of (1, 1, 1, 1)"),
    ({"backbone_config": {**RESNET, "hidden_sizes": [8] * 4}}, "ResNet of (3, 4, 6, 3)"),
    ({"backbone_config": {**RESNET, "layer_type": "basic"}}, "ResNet of (3, 4, 6, 3) basic"),
    ({"backbone_config": {**RESNET, "embedding_size": 32}}, "backbone_config.embedding_size 32"),
    ({"backbone_config": {**RESNET, "hidden_act": "silu"}}, "backbone_config.hidden_act 'silu'"),
    (
        {"backbone_config": {**RESNET, "downsample_in_bottleneck": True}},
        "backbone_config.downsample_in_bottleneck True",
    ),
    ({"backbone_config": {**RESNET, "out_features": ["stage3"]}}, "features of ['stage3']"),
    ({"backbone_config": "resnet50"}, "damaged"),
    ({"model_type": "yolos", "hidden_act": "relu"}, "hidden_act 'relu'"),
    ({"model_type": "yolos", "qkv_bias": False}, "qkv_bias False"),
    ({"model_type": "yolos", "num_channels": 4}, "num_channels 4"),
    ({"model_type": "yolos", "patch_size": [16, 8]}, "patch_size 8"),
    ({"model_type": "yolos", "image_size": [512]}, "damaged"),
    ({"model_type": "yolos", "image_size": None}, "damaged"),
    ({"model_type": "yolos", "layer_norm_eps": "small"}, "damaged"),
]


@pytest.mark.parametrize(("config", "told"), UNSUPPORTED)
def test_each_unsupported_setting_is_named(
    tmp_path: Path, config: dict[str, Any], told: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr", **config}))
    assert told in fault(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '"detr"', "\xff"])
def test_a_config_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    assert "json" in fault(tmp_path)


def fault(folder: Path) -> str:
    with pytest.raises(DetrKitError) as caught:
        open_checkpoint(folder).build()
    message = str(caught.value)
    assert message.startswith(f"{folder / 'config.json'}: ")
    assert "\n" not in message
    return message


OWN = ("detr_small", "dino_r50")  # transformers has no such models


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in OWN])
def test_numbers_come_back_from_the_config_that_is_written(name: str) -> None:
    given = VARIANTS[name] | {"padding": "independent"}
    given |= {"backbone_weights": None} if given["family"] == "yolos" else LOADED
    if given["family"] == "deformable" and given["encoder"] == "hybrid":
        given |= {"frozen_stages": 1}
    config, key_map = config_from_numbers(given)
    found, own_map = numbers_from_config(json.loads(json.dumps(config)))
    assert found == given
    assert own_map == key_map


@pytest.fixture
def labelled(tmp_path: Path, save_own: Callable[..., Path]) -> Callable[..., Path]:
    """A YOLOS's folder with three class columns, and an `id2label` of the test's choice."""
    folder = tmp_path / "hf"
    convert(save_own("yolos"), folder, form="huggingface")
    config = json.loads((folder / "config.json").read_text())

    def label(labels: Any) -> Path:
        changed = {**config, "id2label": labels}
        if labels is None:
            del changed["id2label"]
        (folder / "config.json").write_text(json.dumps(changed))
        return folder

    return label


def test_columns_are_named_by_id2label(labelled: Callable[..., Path]) -> None:
    table = open_checkpoint(labelled({"2": "dog", "0": "N/A", "1": "naïve owl"})).spec.categories
    assert table == CategoryTable((0, 1, 2), ("unused_0", "naïve owl", "dog"), (False, True, True))
    table = open_checkpoint(labelled(None)).spec.categories
    assert table.names == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"1": "a", "2": "b", "3": "c"}, "id2label does not number its labels from 0"),
        ({"0": "a", "2": "c"}, "id2label does not number its labels from 0"),
        ({"zero": "a"}, "id2label does not number its labels from 0"),
        (["a", "b", "c"], "id2label does not number its labels from 0"),
        ({"0": "N/A", "1": "N/A", "2": "N/A"}, "id2label: category table: it holds no category"),
        ({}, "id2label: category table: it holds no category"),
    ],
)
def test_labels_that_cannot_be(labelled: Callable[..., Path], labels: Any, told: str) -> None:
    assert told in fault(labelled(labels))


@pytest.mark.parametrize("columns", [2, 4])
def test_another_number_of_labels_than_columns(labelled: Callable[..., Path], columns: int) -> None:
    folder = labelled({str(column): f"kind {column}" for column in range(columns)})
    with pytest.raises(DetrKitError) as caught:
        open_checkpoint(folder).build()
    told = f"class_labels_classifier.layers.2.bias (4,) instead of ({columns + 1},)"
    assert told in str(caught.value)


def test_labels_of_the_same_name_are_told_apart(labelled: Callable[..., Path]) -> None:
    table = open_checkpoint(labelled({"0": "a", "1": "N/A", "2": "a"})).spec.categories
    assert table.names == ("a (0)", "unused_1", "a (2)")
