from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints import detector as detector_module
from detr_kit.checkpoints import opened as opened_module
from detr_kit.checkpoints.detector import DetectorSpec, read_spec, save_detector
from detr_kit.checkpoints.sources import load_detector
from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

TABLE = CategoryTable((3, 7, 91), ("naïve", "unused_7", "dog"), (True, False, True))
PREPROCESSING = Preprocessing(SizeRule("yolos_16", 64, None), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
YOLOS = ModelConfig(
    name="yolos_small",
    depth=2,
    hidden_dim=24,
    num_heads=2,
    feedforward_dim=32,
    num_queries=4,
    position_size_hw=(32, 48),
    mid_position_size_hw=(32, 32),
)
DETR = ModelConfig(
    name="detr_small",
    encoder_layers=1,
    decoder_layers=1,
    hidden_dim=16,
    num_heads=2,
    feedforward_dim=16,
    num_queries=4,
)
DEFORMABLE = ModelConfig(
    name="deformable_detr_r50",
    backbone="plain",
    backbone_weights="none",
    encoder_layers=1,
    decoder_layers=2,
    hidden_dim=16,
    num_heads=2,
    feedforward_dim=16,
    num_queries=4,
)


def saved(folder: Path, config: ModelConfig = YOLOS) -> tuple[nn.Module, DetectorSpec]:
    torch.manual_seed(0)
    numbers = resolve(config)
    model = build_model(numbers, num_classes=len(TABLE))
    spec = DetectorSpec(numbers, TABLE, PREPROCESSING)
    save_detector(folder, model, spec)
    return model, spec


@pytest.mark.parametrize("config", [YOLOS, DETR], ids=["yolos", "detr"])
def test_round_trip_without_network(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spec = saved(tmp_path / "run" / "best", config)
    assert sorted(path.name for path in (tmp_path / "run" / "best").iterdir()) == [
        "detector.json",
        "model.safetensors",
    ]

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    state = torch.random.get_rng_state()
    loaded, loaded_spec = load_detector(tmp_path / "run" / "best")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded_spec == spec
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_named_backbone_weights_are_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spec = saved(tmp_path, DETR)
    numbers = {**spec.architecture, "backbone_weights": "/no/such/file"}
    save_detector(tmp_path, model, DetectorSpec(numbers, TABLE, PREPROCESSING))
    monkeypatch.setattr(socket.socket, "connect", None)
    assert load_detector(tmp_path)[1].architecture["backbone_weights"] == "/no/such/file"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)
        self.b = self.a
        self.c = nn.Parameter(torch.arange(6.0).view(2, 3).t())  # not contiguous


def test_tied_and_strided_tensors_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Tied()
    save_detector(tmp_path, model, DetectorSpec({"family": "tied"}, TABLE, PREPROCESSING))
    monkeypatch.setattr(opened_module, "build_model", lambda numbers, num_classes: Tied())
    loaded, _ = load_detector(tmp_path)
    assert torch.equal(loaded.b.weight, model.a.weight)  # type: ignore[union-attr]
    assert torch.equal(loaded.c, model.c)  # type: ignore[arg-type]


def test_a_failed_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spec = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(detector_module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_detector(tmp_path, model, spec)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_keeps_numbers_that_a_config_may_not_give(tmp_path: Path) -> None:
    """Its numbers are complete: those that nothing reads are there too, whatever they are."""
    numbers = resolve(DEFORMABLE)
    unread = {"encoder_expansion": 0.5, "shared_heads": True, "label_noise": 0.3, "box_noise": 0.4}
    for key, value in unread.items():
        with pytest.raises(DetrKitError, match=rf"model\.{key} is for"):
            resolve(DEFORMABLE.model_copy(update={key: value}))
    saved_numbers = {**numbers, **unread}
    model = build_model(saved_numbers, num_classes=len(TABLE))
    save_detector(tmp_path, model, DetectorSpec(saved_numbers, TABLE, PREPROCESSING))
    loaded, spec = load_detector(tmp_path, {"dropout": 0.2})
    assert spec.architecture == {**saved_numbers, "dropout": 0.2}
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def change_spec(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "detector.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format_version=99), "format version 99 is unknown"),
        (lambda v: v.pop("format_version"), "format version None is unknown"),
        (lambda v: v.pop("categories"), "damaged.*categories"),
        (lambda v: v.update(categories=[]), "no category"),
        (lambda v: v.update(architecture=[]), "damaged"),
        (lambda v: v["preprocessing"].pop("mean"), "mean"),
        (lambda v: v["architecture"].update(family="cnn"), "no model has this architecture"),
        (lambda v: v["architecture"].pop("depth"), "no model has this architecture.*depth"),
    ],
)
def test_bad_spec(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    saved(tmp_path)
    change_spec(tmp_path, change)
    with pytest.raises(DetrKitError, match=message) as caught:
        load_detector(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_spec_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "detector.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DetrKitError, match=r"detector\.json"):
        read_spec(tmp_path)


@pytest.mark.parametrize("name", ["detector.json", "model.safetensors"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DetrKitError, match=name) as caught:
        load_detector(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_truncated_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DetrKitError, match=r"model\.safetensors"):
        load_detector(tmp_path)


def test_tensors_that_do_not_fit_are_listed_by_kind(tmp_path: Path) -> None:
    model, _ = saved(tmp_path)
    names = sorted(model.state_dict())
    tensors = load_file(tmp_path / "model.safetensors")
    lost = names[0]
    wide = next(name for name in names[1:] if tensors[name].ndim == 2)
    tensors["stranger"] = tensors.pop(lost)
    tensors[wide] = tensors[wide][:1].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(DetrKitError) as caught:
        load_detector(tmp_path)
    message = str(caught.value)
    assert f"missing: {lost};" in message
    assert "unexpected: stranger;" in message
    assert f"of another shape: {wide} (1, " in message
    assert "\n" not in message


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    saved(tmp_path)
    save_file({"stranger": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DetrKitError, match=r"missing: .* and \d+ more; unexpected: stranger$"):
        load_detector(tmp_path)
