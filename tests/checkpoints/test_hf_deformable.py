"""Deformable DETR and RT-DETR of transformers: read in every spelling, written, and refused."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)
from transformers.models.rt_detr.modeling_rt_detr_resnet import RTDetrResNetBackbone
from transformers.utils import logging

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints import huggingface
from detr_kit.checkpoints.convert import convert
from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.checkpoints.hf_config import config_from_numbers, numbers_from_config
from detr_kit.checkpoints.processor import read_processor
from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.backbones import Backbone
from detr_kit.models.variants import VARIANTS
from detr_kit.models.zoo import build_model, completed, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.structures import ImageBatch

logging.disable_progress_bar()
logging.set_verbosity_error()  # it tells at every config that timm keeps its own attention

pytestmark = pytest.mark.usefixtures("no_network")
Make = Callable[..., Any]

WEIGHTS = "model.safetensors"
_LABELS = {
    "id2label": {0: "N/A", 1: "cat", 2: "dog", 3: "N/A"},
    "label2id": {"N/A": 0, "cat": 1, "dog": 2},
}
_SMALL: dict[str, Any] = {
    **_LABELS,
    "d_model": 64,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_queries": 4,
}
_TIMM = {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": False}
_RESNET18 = {"depths": [2] * 4, "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}


def _deformable(**changes: Any) -> DeformableDetrConfig:
    return DeformableDetrConfig(
        **{**_SMALL, **_TIMM, "encoder_layers": 1, "two_stage_num_proposals": 4, **changes}
    )


def _rtdetr(kind: Callable[..., Any], **changes: Any) -> Any:
    backbone = RTDetrResNetConfig(layer_type="bottleneck", out_indices=[2, 3, 4])
    given = {
        "backbone_config": backbone,
        "encoder_hidden_dim": 24,
        "decoder_in_channels": [24] * 3,
        "hidden_expansion": 0.5,
    }
    return kind(**{**_SMALL, **given, **changes})


CONFIGS: dict[str, Callable[[], Any]] = {
    "one_stage": _deformable,
    "refined": lambda: _deformable(with_box_refine=True),
    "two_stage": lambda: _deformable(with_box_refine=True, two_stage=True),
    "one_stage_resnet": lambda: _deformable(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(**_RESNET18, out_features=["stage2", "stage3", "stage4"]),
    ),
    "rt_detr": lambda: _rtdetr(RTDetrConfig),
    "rt_detr_v2": lambda: _rtdetr(RTDetrV2Config),
    "rt_detr_v2_basic": lambda: _rtdetr(
        RTDetrV2Config, backbone_config=RTDetrResNetConfig(**_RESNET18, out_indices=[2, 3, 4])
    ),
    "rt_detr_v2_no_denoising": lambda: _rtdetr(
        RTDetrV2Config, num_denoising=0, freeze_backbone_batch_norms=False
    ),
}
_KINDS = {
    "deformable_detr": DeformableDetrForObjectDetection,
    "rt_detr": RTDetrForObjectDetection,
    "rt_detr_v2": RTDetrV2ForObjectDetection,
}


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    """Make a model of transformers with drawn weights once, and the folder that it writes."""
    made: dict[str, tuple[nn.Module, Path]] = {}

    def reference(name: str) -> tuple[nn.Module, Path]:
        if name not in made:
            torch.manual_seed(0)
            config = CONFIGS[name]()
            model = _KINDS[config.model_type](config)
            draw(model)
            folder = tmp_path_factory.mktemp(name)
            model.eval().save_pretrained(folder)
            made[name] = (model, folder)
        return made[name]

    return reference


@torch.no_grad()
def draw(model: nn.Module) -> None:
    for key, tensor in model.state_dict().items():
        is_norm = re.search(r"norm|\.bn\d|downsample\.2", key) and tensor.ndim == 1
        if key.endswith("running_var") or (is_norm and key.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif re.search("quer|level_embed", key):
            tensor.add_(torch.randn_like(tensor))
        elif tensor.is_floating_point() and "n_points_scale" not in key:
            tensor.add_(torch.randn_like(tensor) * 0.1)


def largest_difference(reference: nn.Module, ours: nn.Module, pixels: Tensor) -> float:
    reference = copy.deepcopy(reference).double().eval()
    with torch.no_grad():
        theirs = reference(pixel_values=pixels)
        own = ours.double()(ImageBatch.from_images(list(pixels)))
    assert float(own.logits.std(dim=1).min()) > 1e-4  # queries that differ
    # The sines of Deformable DETR's proposals are in float32 there, whatever the precision.
    return max(
        float((own.logits - theirs.logits).abs().max()),
        float((own.boxes_cxcywh - theirs.pred_boxes).abs().max()),
    )


def bound(name: str) -> float:
    return 1e-5 if name == "two_stage" else 1e-9


@pytest.fixture(scope="session")
def pixels() -> Tensor:
    """(2, 3, 64, 96) float64: two pictures of noise, of sides that RT-DETR takes there."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 64, 96, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_writes_computes_the_same_here(
    name: str, references: Make, pixels: Tensor
) -> None:
    reference, folder = references(name)
    opened = open_checkpoint(folder)
    assert all(key.endswith("n_points_scale") for key in opened.dropped)
    assert opened.spec.categories.used == (False, True, True, False)
    assert largest_difference(reference, opened.build(), pixels) < bound(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_of_the_live_modules_are_known_and_copies_dropped(
    name: str, references: Make, tmp_path: Path, assert_same: Make
) -> None:
    reference, folder = references(name)
    live = {key: tensor.clone() for key, tensor in reference.state_dict().items()}
    shutil.copy(folder / "config.json", tmp_path)
    save_file(live, tmp_path / WEIGHTS)
    opened = open_checkpoint(tmp_path)
    assert_same(opened.tensors, open_checkpoint(folder).tensors)
    # Heads are there under two names, or once a layer; not in the first RT-DETR.
    copies = [key for key in opened.dropped if re.match("(class|bbox)_embed", key)]
    assert bool(copies) == (name != "rt_detr")
    assert opened.key_map is not None
    for key in opened.dropped:
        assert opened.key_map.dropped_because(key)


@pytest.mark.parametrize("name", ["refined", "rt_detr_v2"])
def test_heads_under_the_other_name_alone_are_read(
    name: str, references: Make, monkeypatch: pytest.MonkeyPatch, assert_same: Make
) -> None:
    _, folder = references(name)
    expected = open_checkpoint(folder).tensors
    tensors = huggingface.read_weights(folder)
    renamed = {
        re.sub(r"^model\.decoder\.(class|bbox)_embed", r"\1_embed", key): tensor
        for key, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    monkeypatch.setattr(huggingface, "read_weights", lambda _: renamed)
    assert_same(open_checkpoint(folder).tensors, expected)


@pytest.mark.parametrize("name", ["one_stage", "two_stage", "rt_detr_v2"])
def test_missing_unknown_and_misshapen_keys_are_named(
    name: str, references: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = references(name)
    tensors = huggingface.read_weights(folder)
    changed: dict[str, Tensor] = {}
    monkeypatch.setattr(huggingface, "read_weights", lambda _: changed)

    def told() -> str:
        with torch.device("meta"), pytest.raises(DetrKitError) as caught:
            open_checkpoint(folder).build()
        return str(caught.value)

    needed = [key for key in tensors if not key.endswith("n_points_scale")]
    others = [key for key in needed if "backbone" not in key]
    queries = "model.query_position_embeddings.weight"
    for key in {*needed[:: len(needed) // 5], *others[:: len(others) // 5], queries} & {*needed}:
        changed = {other: tensor for other, tensor in tensors.items() if other != key}
        assert key in told()
        changed = tensors | {key: torch.zeros(2, 3)}
        assert key in told()
    changed = tensors | {"model.extra": torch.zeros(1)}
    assert "unknown: model.extra" in told()


def test_copies_that_differ_are_named(references: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = references("refined")
    tensors = huggingface.read_weights(folder)
    key = "model.decoder.bbox_embed.1.layers.0.bias"
    other = key.removeprefix("model.decoder.")
    monkeypatch.setattr(huggingface, "read_weights", lambda _: tensors | {other: tensors[key] + 1})
    with pytest.raises(DetrKitError, match=f"differing copies: {other}"):
        open_checkpoint(folder)


def test_one_class_head_stands_for_all_layers(references: Make) -> None:
    """Release 5 writes that of a refined model which it has made itself."""
    _, folder = references("refined")
    keys = [key for key in load_file(folder / WEIGHTS) if "class_embed" in key]
    assert sorted(keys) == ["class_embed.0.bias", "class_embed.0.weight"]
    ours = open_checkpoint(folder).tensors
    first, second = (ours[f"heads.{layer}.class_head.layers.0.weight"] for layer in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "name", ["one_stage", "two_stage", "rt_detr_v2", "rt_detr_v2_no_denoising"]
)
def test_a_folder_comes_back_bit_for_bit(
    name: str, references: Make, tmp_path: Path, assert_same: Make, pixels: Tensor
) -> None:
    reference, folder = references(name)
    convert(folder, tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "back", form="huggingface")
    assert_same(load_file(tmp_path / "back" / WEIGHTS), load_file(folder / WEIGHTS))
    again, info = type(reference).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        expected = reference(pixel_values=pixels.float())
        found = again.eval()(pixel_values=pixels.float())
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.pred_boxes, expected.pred_boxes)
    one, other = open_checkpoint(folder).spec, open_checkpoint(tmp_path / "back").spec
    assert one == other


def test_the_first_rtdetr_comes_back_as_the_second(
    references: Make, tmp_path: Path, pixels: Tensor
) -> None:
    reference, folder = references("rt_detr")
    convert(folder, tmp_path / "back", form="huggingface")
    again, info = RTDetrV2ForObjectDetection.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info.values())
    assert largest_difference(again, open_checkpoint(folder).build(), pixels) < 1e-9
    assert largest_difference(reference, open_checkpoint(tmp_path / "back").build(), pixels) < 1e-9


_TINY: dict[str, Any] = {
    "backbone": "resnet18",
    "backbone_weights": "none",
    "decoder_layers": 2,
    "hidden_dim": 64,
    "num_heads": 2,
    "feedforward_dim": 24,
    "num_queries": 4,
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deformable_detr_r50", {"encoder_layers": 1}),
        ("deformable_detr_r50", {"encoder_layers": 1, "levels": 1}),
        ("deformable_detr_r50", {"encoder_layers": 1, "groups": 3}),
        ("deformable_detr_r50_refined", {"encoder_layers": 1, "levels": 5}),
        ("deformable_detr_r50_two_stage", {"encoder_layers": 1, "points": 2}),
        ("rtdetrv2_r50", {"backbone": "timm/resnet50d", "backbone_norm": "frozen"}),
        ("rtdetrv2_r18", {}),
        ("rtdetrv2_r18", {"backbone": "timm/resnet18d", "denoising_queries": 0}),
        ("rtdetrv2_r101", {"encoder_dim": 24, "encoder_feedforward_dim": 40}),
        ("detr_fast", {}),
    ],
)
def test_what_was_trained_here_loads_in_transformers(
    name: str, changes: dict[str, Any], tmp_path: Path, pixels: Tensor
) -> None:
    torch.manual_seed(0)
    numbers = resolve(ModelConfig(**{"name": name, **_TINY, **changes}))
    table = CategoryTable((0, 1, 2), ("cat", "dog", "naïve owl"))
    model = build_model(numbers, len(table))
    draw(model)
    spec = DetectorSpec(
        numbers, table, Preprocessing(SizeRule("square", 64), (0.0,) * 3, (1.0,) * 3)
    )
    save_detector(tmp_path / "own", model, spec)
    convert(tmp_path / "own", tmp_path / "hf", form="huggingface")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    reference, info = _KINDS[config["model_type"]].from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(info.values())
    assert reference.config.id2label == {0: "cat", 1: "dog", 2: "naïve owl"}
    ours = open_checkpoint(tmp_path / "own", {"padding": "official"}).build()
    limit = bound("two_stage" if name.endswith("two_stage") else name)
    assert largest_difference(reference, ours, pixels) < limit
    back = open_checkpoint(tmp_path / "hf").spec
    assert back.preprocessing == spec.preprocessing
    kept = {"backbone_norm", "frozen_stages"}  # transformers' Deformable DETR freezes them
    assert {k: v for k, v in back.architecture.items() if k not in kept} == {
        k: v for k, v in (numbers | {"groups": 1}).items() if k not in kept
    }


PUBLISHED = [
    ({"model_type": "deformable_detr"}, "deformable_detr_r50"),
    ({"model_type": "deformable_detr", "with_box_refine": True}, "deformable_detr_r50_refined"),
    (
        {"model_type": "deformable_detr", "with_box_refine": True, "two_stage": True},
        "deformable_detr_r50_two_stage",
    ),
    ({"model_type": "rt_detr"}, "rtdetrv2_r50"),
    ({"model_type": "rt_detr_v2"}, "rtdetrv2_r50"),
    (
        {
            "model_type": "rt_detr_v2",
            "backbone_config": {
                "model_type": "rt_detr_resnet",
                "depths": [3, 4, 23, 3],
                "out_features": ["stage2", "stage3", "stage4"],
            },
            "encoder_hidden_dim": 384,
            "encoder_ffn_dim": 2048,
            "decoder_in_channels": [384, 384, 384],
            "anchor_image_size": [640, 640],
            "eval_size": [640, 640],
        },
        "rtdetrv2_r101",
    ),
]


@pytest.mark.parametrize(("config", "name"), PUBLISHED)
def test_published_configs_are_the_variants(config: dict[str, Any], name: str) -> None:
    loaded = {"backbone_weights": None, "backbone_norm": "frozen"}
    frozen = 1 if name.startswith("rtdetr") else 2
    assert numbers_from_config(config)[0] == VARIANTS[name] | loaded | {"frozen_stages": frozen}


@pytest.mark.parametrize("kind", [DeformableDetrConfig, RTDetrConfig, RTDetrV2Config])
def test_what_is_left_out_is_the_classs_default(kind: Callable[[], Any]) -> None:
    written = json.loads(kind().to_json_string(use_diff=False))
    short = {"model_type": written["model_type"]}
    assert numbers_from_config(written)[0] == numbers_from_config(short)[0]


REFUSED = [
    ("deformable_detr", {"position_embedding_type": "learned"}, "position_embedding_type"),
    ("deformable_detr", {"num_feature_levels": 2}, "num_feature_levels 2"),
    ("deformable_detr", {"two_stage": True}, "with_box_refine False"),
    ("deformable_detr", {"activation_function": "gelu"}, "activation_function 'gelu'"),
    ("deformable_detr", {"decoder_n_points": 2}, "decoder_n_points 2"),
    ("deformable_detr", {"d_model": 96}, "d_model 96"),
    ("deformable_detr", {"decoder_ffn_dim": 7}, "decoder_ffn_dim 7"),
    ("deformable_detr", {"backbone": "swin_tiny"}, "backbone 'swin_tiny'"),
    (
        "deformable_detr",
        {"backbone_config": {"model_type": "resnet", "out_features": ["stage4"]}},
        "those of the last 3 stages",
    ),
    ("rt_detr_v2", {"decoder_method": "discrete"}, "decoder_method 'discrete'"),
    ("rt_detr_v2", {"decoder_offset_scale": 1.0}, "decoder_offset_scale 1.0"),
    ("rt_detr_v2", {"learn_initial_query": True}, "learn_initial_query True"),
    ("rt_detr_v2", {"normalize_before": True}, "normalize_before True"),
    ("rt_detr_v2", {"encode_proj_layers": [1, 2]}, "encode_proj_layers [1, 2]"),
    ("rt_detr_v2", {"num_feature_levels": 4}, "num_feature_levels 4"),
    ("rt_detr_v2", {"decoder_in_channels": [384] * 3}, "decoder_in_channels [384, 384, 384]"),
    ("rt_detr", {"backbone": "resnet50", "backbone_config": None}, "backbone 'resnet50'"),
    ("rt_detr", {"backbone_config": {"model_type": "hgnet_v2"}}, "hgnet_v2"),
]


@pytest.mark.parametrize(("kind", "changes", "told"), REFUSED)
def test_what_cannot_be_followed_is_named(kind: str, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(DetrKitError, match=re.escape(told)):
        numbers_from_config({"model_type": kind, **changes})


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("dino_r50", {}, "transformers' Deformable DETR has no query_selection mixed"),
        ("deformable_detr_r50", {"levels": 2}, "has no levels 2"),
        ("deformable_detr_r50", {"query_positions": "sine"}, "has no query_positions sine"),
        ("deformable_detr_r50", {"backbone": "plain"}, "has no backbone plain"),
        ("deformable_detr_r50", {"hidden_dim": 96}, "has no hidden_dim 96"),
        ("deformable_detr_r50", {"encoder": "dense"}, "has no encoder dense"),
        ("deformable_detr_r50", {"centered_positions": False}, "has no centered_positions False"),
        ("rtdetrv2_r50", {"backbone": "plain"}, "transformers' RT-DETRv2 has no backbone plain"),
        ("rtdetrv2_r50", {"query_positions": "sine"}, "has no query_positions sine"),
        ("rtdetrv2_r50", {"levels": 4}, "has no levels 4"),
        ("rtdetrv2_r50", {"decoder_norm": True}, "has no decoder_norm True"),
    ],
)
def test_what_transformers_has_not_is_named(name: str, changes: dict[str, Any], told: str) -> None:
    numbers = VARIANTS[name] | {"backbone_norm": "frozen", **changes}
    with pytest.raises(DetrKitError, match=re.escape(told)):
        config_from_numbers(numbers)


def test_older_numbers_without_a_choice_of_positions_are_taken() -> None:
    numbers = VARIANTS["deformable_detr_r50"] | {"backbone_norm": "frozen"}
    older = {key: value for key, value in numbers.items() if key != "centered_positions"}
    assert config_from_numbers(completed(older))[0] == config_from_numbers(numbers)[0]


def test_categories_are_counted_without_no_object(references: Make, tmp_path: Path) -> None:
    _, folder = references("one_stage")
    shutil.copytree(folder, tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path / "bare")
    assert opened.spec.categories.names == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    opened.build()


@pytest.mark.parametrize(
    ("name", "processor", "rule", "std"),
    [
        ("rt_detr", RTDetrImageProcessor, SizeRule("square", 640), (1.0, 1.0, 1.0)),
        (
            "one_stage",
            DeformableDetrImageProcessor,
            SizeRule("huggingface", 800, 1333),
            (0.229, 0.224, 0.225),
        ),
    ],
)
def test_processors_and_what_stands_for_a_missing_one(
    name: str,
    processor: Callable[[], Any],
    rule: SizeRule,
    std: tuple[float, ...],
    references: Make,
    tmp_path: Path,
) -> None:
    _, folder = references(name)
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    bare = open_checkpoint(copied)
    assert "no preprocessor_config.json" in bare.notes[0]
    processor().save_pretrained(copied)
    told = open_checkpoint(copied)
    assert told.notes == ()
    assert bare.spec.preprocessing == told.spec.preprocessing
    assert told.spec.preprocessing.size_rule == rule
    assert told.spec.preprocessing.std == std


def test_a_number_as_size_is_refused_as_rtdetrs_processor_does(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_processor_type": "RTDetrImageProcessor", "size": 640}))
    with pytest.raises(DetrKitError, match="key 'size'"):
        read_processor(path, "rt_detr")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18vd", _RESNET18),
        ("resnet34vd", _RESNET18 | {"depths": [3, 4, 6, 3]}),
        ("resnet50d", {"layer_type": "bottleneck", "depths": [3, 4, 6, 3]}),
        ("resnet101d", {"layer_type": "bottleneck", "depths": [3, 4, 23, 3]}),
    ],
)
def test_timms_variant_d_computes_rtdetrs_backbone(name: str, shape: dict[str, Any]) -> None:
    """To the last bit, in float64, all stages; a file of such a backbone is read as timm's."""
    config = RTDetrResNetConfig(**shape, out_indices=[2, 3, 4])
    torch.manual_seed(0)
    theirs = RTDetrResNetBackbone(config).double().eval()
    draw(theirs)
    numbers, key_map = numbers_from_config(
        {"model_type": "rt_detr_v2", "backbone_config": config.to_dict()}
    )
    assert numbers["backbone"] == f"timm/{name}"
    ours = Backbone(numbers["backbone"], norm="frozen", padding="official", num_levels=3).double()
    prefix = "model.backbone.model."
    tensors, _ = key_map.to_ours({prefix + key: own for key, own in theirs.state_dict().items()})
    ours.load_state_dict(
        {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    )
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(images).feature_maps
        found = ours.eval().levels(ImageBatch.from_images(list(images)))
    for (features, _), reference in zip(found, expected, strict=True):
        assert float((features - reference).abs().max()) < 1e-9 * float(reference.abs().max())
