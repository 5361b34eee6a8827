"""Folders of transformers: read in every spelling, written so that transformers reads them."""

from __future__ import annotations

import itertools
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
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.utils import logging

from detr_kit.checkpoints import huggingface
from detr_kit.checkpoints.convert import convert
from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.errors import DetrKitError
from detr_kit.structures import ImageBatch

logging.disable_progress_bar()
logging.set_verbosity_error()  # it tells at every config that timm keeps its own attention

pytestmark = pytest.mark.usefixtures("no_network")
Make = Callable[..., Any]

_COMMON: dict[str, Any] = {
    "id2label": {0: "N/A", 1: "cat", 2: "dog", 3: "N/A"},
    "label2id": {"N/A": 0, "cat": 1, "dog": 2},
    "attn_implementation": "eager",
}
_DETR: dict[str, Any] = {
    **_COMMON,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_queries": 4,
}
_TIMM = {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": False}
_RESNET18 = {"depths": [2] * 4, "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
_YOLOS: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_detection_tokens": 4,
    "image_size": [32, 48],
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "timm": lambda: DetrConfig(**_DETR, **_TIMM),
    "learned": lambda: DetrConfig(**_DETR, **_TIMM, position_embedding_type="learned"),
    "resnet": lambda: DetrConfig(
        **_DETR,
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=ResNetConfig(**_RESNET18, out_features=["stage4"]),
    ),
    "yolos": lambda: YolosConfig(**_YOLOS),
    "yolos_no_mid": lambda: YolosConfig(**_YOLOS, use_mid_position_embeddings=False),
}
DETRS = ("timm", "learned", "resnet")


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    """Make a model of transformers with drawn weights once, and the folder that it writes."""
    made: dict[str, tuple[nn.Module, Path]] = {}

    def reference(name: str) -> tuple[nn.Module, Path]:
        if name not in made:
            torch.manual_seed(0)
            config = CONFIGS[name]()
            model = (DetrForObjectDetection if name in DETRS else YolosForObjectDetection)(config)
            with torch.no_grad():
                for key, tensor in model.state_dict().items():
                    if key.endswith("running_var"):
                        tensor.uniform_(0.5, 1.5)
                    elif re.search("token|position|quer", key):
                        tensor.normal_()
                    elif tensor.is_floating_point():
                        tensor.add_(torch.randn_like(tensor) * 0.2)
            folder = tmp_path_factory.mktemp(name)
            model.eval().save_pretrained(folder)
            made[name] = (model, folder)
        return made[name]

    return reference


def largest_difference(reference: nn.Module, ours: nn.Module, pixels: Tensor) -> float:
    with torch.no_grad():
        theirs = reference.double()(pixel_values=pixels)
        own = ours.double()(ImageBatch.from_images(list(pixels)))
    reference.float()
    assert float(own.logits.std(dim=1).min()) > 1e-3  # queries that differ
    return max(
        float((own.logits - theirs.logits).abs().max()),
        float((own.boxes_cxcywh - theirs.pred_boxes).abs().max()),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_writes_computes_the_same_here(
    name: str, references: Make, pixels: Tensor
) -> None:
    reference, folder = references(name)
    opened = open_checkpoint(folder)
    assert opened.dropped == ()
    assert len(opened.spec.categories) == 4
    assert opened.spec.categories.used == (False, True, True, False)
    assert largest_difference(reference, opened.build(), pixels) < 1e-9


@pytest.mark.parametrize("name", [*DETRS, "yolos"])
def test_names_of_the_live_modules_are_known_too(
    name: str, references: Make, tmp_path: Path, assert_same: Make
) -> None:
    reference, folder = references(name)
    live = {key: tensor.clone() for key, tensor in reference.state_dict().items()}
    if live.keys() == load_file(folder / "model.safetensors").keys():
        pytest.skip("this release of transformers gives its modules the names of the files")
    shutil.copy(folder / "config.json", tmp_path)
    save_file(live, tmp_path / "model.safetensors")
    assert_same(open_checkpoint(tmp_path).tensors, open_checkpoint(folder).tensors)


RENAMED = {
    # As releases before 5 kept learned positions, and as 5 names what it has in memory.
    "learned": (
        (r"model\.position_embedding", "model.backbone.position_embedding"),
        (r"conv_encoder\.model\.", "model."),
        (r"out_proj", "o_proj"),
        (r"(layers\.\d+)\.(fc\d)", r"\1.mlp.\2"),
    ),
    "resnet": ((r"conv_encoder\.model\.", "model."),),
    "yolos": ((r"encoder\.mid", "encoder.interpolation.mid"),),
}


@pytest.mark.parametrize("name", RENAMED)
def test_every_spelling_is_known(
    name: str, references: Make, monkeypatch: pytest.MonkeyPatch, assert_same: Make
) -> None:
    _, folder = references(name)
    expected = open_checkpoint(folder).tensors
    tensors = huggingface.read_weights(folder)
    for pattern, replacement in RENAMED[name]:
        renamed = {re.sub(pattern, replacement, key): tensor for key, tensor in tensors.items()}
        assert renamed.keys() != tensors.keys()
        monkeypatch.setattr(huggingface, "read_weights", lambda _, renamed=renamed: renamed)
        assert_same(open_checkpoint(folder).tensors, expected)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("timm", "model.backbone.conv_encoder.model.bn1.num_batches_tracked"),
        ("resnet", "model.backbone.model.embedder.embedder.normalization.num_batches_tracked"),
        ("yolos", "vit.pooler.dense.weight"),
        ("yolos", "vit.pooler.dense.bias"),
    ],
)
def test_what_a_detector_does_not_need_is_dropped_by_name(
    name: str, key: str, references: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = references(name)
    tensors = huggingface.read_weights(folder) | {key: torch.zeros(2)}
    monkeypatch.setattr(huggingface, "read_weights", lambda _: tensors)
    opened = open_checkpoint(folder)
    assert opened.dropped == (key,)
    opened.build()


@pytest.mark.parametrize("name", ["timm", "learned", "yolos", "yolos_no_mid"])
def test_a_folder_comes_back_bit_for_bit(
    name: str, references: Make, tmp_path: Path, assert_same: Make, pixels: Tensor
) -> None:
    reference, folder = references(name)
    convert(folder, tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "back", form="huggingface")
    weights = "model.safetensors"
    assert_same(load_file(tmp_path / "back" / weights), load_file(folder / weights))
    again, info = type(reference).from_pretrained(
        tmp_path / "back", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values())
    with torch.no_grad():
        expected = reference.double()(pixel_values=pixels)
        found = again.double().eval()(pixel_values=pixels)
    reference.float()
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.pred_boxes, expected.pred_boxes)
    assert again.config.id2label == reference.config.id2label
    one, other = open_checkpoint(folder).spec, open_checkpoint(tmp_path / "back").spec
    assert one == other


def test_a_resnet_of_transformers_comes_back_as_timms(
    references: Make, tmp_path: Path, assert_same: Make, pixels: Tensor
) -> None:
    _, folder = references("resnet")
    convert(folder, tmp_path / "back", form="huggingface")
    assert_same(open_checkpoint(tmp_path / "back").tensors, open_checkpoint(folder).tensors)
    again, info = DetrForObjectDetection.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info.values())
    assert largest_difference(again.eval(), open_checkpoint(folder).build(), pixels) < 1e-9


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("detr", {"pre_norm": False}),  # its batch norms count batches
        ("detr", {"pre_norm": False, "backbone": "resnet50", "dilation": True}),
        ("yolos", {}),
        # sides that are no multiples of a patch; None keeps the variant's, which has no mid ones
        ("yolos", {"mid_position_size_hw": None, "position_size_hw": (40, 72)}),
    ],
)
def test_what_was_trained_here_loads_in_transformers(
    family: str, changes: dict[str, Any], tmp_path: Path, save_own: Make, pixels: Tensor
) -> None:
    own = save_own(family, **changes)
    convert(own, tmp_path / "hf", form="huggingface")
    kind = DetrForObjectDetection if family == "detr" else YolosForObjectDetection
    reference, info = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    assert reference.config.id2label == {0: "cat", 1: "dog", 2: "naïve owl"}
    ours = open_checkpoint(own, {"padding": "official"}).build()
    assert largest_difference(reference.eval(), ours, pixels) < 1e-9


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def sharded(folder: Path, suffix: str) -> None:
    """Spread the weights over two files, as large models are written."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, keys in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        name = f"{stem}-0000{number}-of-00002.{suffix}"
        part = {key: tensors[key] for key in keys}
        (save_file if suffix == "safetensors" else torch.save)(part, folder / name)
        weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


@pytest.fixture
def folder(references: Make, tmp_path: Path) -> Path:
    """A small YOLOS's folder that a test may change."""
    return Path(shutil.copytree(references("yolos")[1], tmp_path / "folder"))


@pytest.mark.parametrize(
    "change",
    [as_bin, lambda f: sharded(f, "safetensors"), lambda f: sharded(f, "bin")],
    ids=["bin", "shards", "shards of bin"],
)
def test_weights_in_other_files(
    change: Callable[[Path], None], folder: Path, assert_same: Make
) -> None:
    expected = open_checkpoint(folder).tensors
    change(folder)
    assert_same(open_checkpoint(folder).tensors, expected)


def fault(source: Path, **known: Any) -> str:
    with torch.device("meta"), pytest.raises(DetrKitError) as caught:
        open_checkpoint(source, **known).build()
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"weight_map": {"a": "../model.safetensors"}}', "lists files outside its folder"),
        ('{"weight_map": {"a": "/tmp/model.safetensors"}}', "lists files outside its folder"),
        ('{"weight_map": {"a": "sub/model.safetensors"}}', "lists files outside its folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: no such weights file"),
        ('{"weight_map": {"a": ".."}}', "no such weights file"),
        ('{"weight_map": ["a"]}', "not an index of weights"),
        ('{"weight_map": {}}', "model.safetensors.index.json"),
        ("{}", "not an index of weights"),
        ("[", "not a readable json file"),
    ],
)
def test_an_index_that_cannot_be_followed(folder: Path, content: str, told: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    assert told in fault(folder)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "it holds none of model.safetensors, " in fault(folder)


def test_truncated_weights_are_named(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for length in (0, 100, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        assert "model.safetensors: not a readable safetensors file" in fault(folder)


@pytest.mark.parametrize("name", ["timm", "yolos"])
def test_each_missing_unknown_or_misshapen_key_is_named(
    name: str, references: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = references(name)
    tensors = huggingface.read_weights(folder)
    changed: dict[str, Tensor] = {}
    monkeypatch.setattr(huggingface, "read_weights", lambda _: changed)
    later = r"layer[234]|layer1\.1|layers\.1"
    shapes: Any = itertools.cycle([(), (7,), (2, 3, 1)])
    for key in (key for key in tensors if not re.search(later, key)):
        changed = {name: tensor for name, tensor in tensors.items() if name != key}
        if "mid_position" not in key:
            assert key in fault(folder)
        changed = tensors | {key: torch.zeros(next(shapes))}
        assert key in fault(folder)
    changed = tensors | {"model.extra": torch.zeros(1)}
    assert "unknown: model.extra" in fault(folder)


def test_a_part_of_a_stack_is_named(references: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = references("yolos")
    tensors = huggingface.read_weights(folder)
    lost = "vit.encoder.layer.1.attention.attention.key.bias"
    del tensors[lost]
    monkeypatch.setattr(huggingface, "read_weights", lambda _: tensors)
    assert f"not a Hugging Face YOLOS checkpoint; missing: {lost}" in fault(folder)
