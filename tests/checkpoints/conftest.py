"""Small checkpoints in the forms that others publish, and a network that answers nobody."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.structures import ImageBatch
from tests.parity.official import sample_reference, weight

# An official case by family, the number of its layers that are kept, and what its sizes become.
_CASES: dict[str, tuple[str, int, dict[int, int]]] = {
    "detr": ("detr_r18_pre_norm", 1, {256: 16, 768: 48, 2048: 24, 30: 4}),
    # 1829 positions: a class token, 32 x 54 patches, 100 queries
    "yolos": ("yolos_s", 2, {384: 24, 1152: 72, 1536: 32, 11: 1, 1829: 1 + 2 * 3 + 4, 100: 4}),
}
_LAYER = re.compile(r"(?:transformer\.\w+\.layers|backbone\.blocks)\.(\d+)\.")

_TINY: dict[str, dict[str, Any]] = {
    "detr": {
        "name": "detr_small",
        "encoder_layers": 1,
        "decoder_layers": 2,
        "hidden_dim": 16,
        "num_heads": 2,
        "feedforward_dim": 24,
        "num_queries": 4,
    },
    "yolos": {
        "name": "yolos_small",
        "depth": 2,
        "hidden_dim": 24,
        "num_heads": 2,
        "feedforward_dim": 32,
        "num_queries": 4,
        "position_size_hw": (32, 48),
        "mid_position_size_hw": (32, 48),
    },
}
_RULES = {"detr": "huggingface", "yolos": "huggingface_16"}  # transformers has them too

OfficialTensors = Callable[..., dict[str, Tensor]]
SaveOwn = Callable[..., Path]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the network was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture(scope="session")
def official_tensors() -> OfficialTensors:
    """Make a small model's weights under the keys that the official code gave a large one."""

    def make(family: str, *, columns: int = 91, pre_norm: bool = True) -> dict[str, Tensor]:
        case, layers, sizes = _CASES[family]
        tensors = {}
        for key, shape in sample_reference(case).keys.items():
            layer = _LAYER.match(key)
            if (layer and int(layer[1]) >= layers) or (
                not pre_norm and key.startswith("transformer.encoder.norm.")
            ):
                continue
            if not key.startswith("backbone.0."):  # the ResNet stays as it is
                sizes_of_key = sizes | ({92: columns + 1} if key.startswith("class_embed") else {})
                shape = tuple(sizes_of_key.get(size, size) for size in shape)
            tensors[key] = torch.from_numpy(weight(key, shape)).float()
        return tensors

    return make


@pytest.fixture(scope="session")
def untold() -> dict[str, dict[str, Any]]:
    """What those weights do not tell, by family."""
    return {"detr": {"num_heads": 2}, "yolos": {"num_heads": 2, "position_size_hw": (32, 48)}}


@pytest.fixture
def save_own(tmp_path: Path) -> SaveOwn:
    """Write a folder of detr_kit with drawn weights; keywords change the tiny model's config."""

    def save(
        family: str, name: str = "own", table: CategoryTable | None = None, **changes: Any
    ) -> Path:
        torch.manual_seed(0)
        numbers = resolve(ModelConfig(**{**_TINY[family], **changes}))
        table = table or CategoryTable((0, 1, 2), ("cat", "dog", "naïve owl"))
        model = build_model(numbers, len(table))
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                if key.endswith("running_var"):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor) * 0.2)
        rule = SizeRule(_RULES[family], 64, 96)
        spec = DetectorSpec(numbers, table, Preprocessing(rule, IMAGENET_MEAN, IMAGENET_STD))
        save_detector(tmp_path / name, model, spec)
        return tmp_path / name

    return save


@pytest.fixture(scope="session")
def pixels() -> Tensor:
    """(2, 3, 64, 80) float64: two pictures of noise."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 64, 80, generator=generator, dtype=torch.float64)


@pytest.fixture
def difference(pixels: Tensor) -> Callable[[nn.Module, nn.Module], float]:
    """The largest difference of logits and boxes of two of our models, in float64."""

    def largest(one: nn.Module, other: nn.Module) -> float:
        batch = ImageBatch.from_images(list(pixels))
        with torch.no_grad():
            first, second = one.double().eval()(batch), other.double().eval()(batch)
        assert float(first.logits.std(dim=1).min()) > 1e-3  # queries that differ
        return max(
            float((first.logits - second.logits).abs().max()),
            float((first.boxes_cxcywh - second.boxes_cxcywh).abs().max()),
        )

    return largest


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None]:
    """Require two sets of tensors to have the same keys, types and bits."""

    def check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert found[key].dtype == tensor.dtype, key
            assert torch.equal(found[key], tensor), key

    return check
