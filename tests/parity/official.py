"""What the official DETR and YOLOS give for weights, images and targets made by rules.

A case's reference is read in full from ../shared/fixtures/official, whose README.md states the
weight rule, or in part from `official_sample.json` and `.safetensors` beside this file, which
`tools/parity_sample.py` writes.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

CASES = (
    "detr_r18_pre_norm",
    "detr_r34_learned",
    "detr_r50",
    "detr_r50_dc5",
    "detr_r101",
    "yolos_ti",
    "yolos_s",
    "yolos_s_dwr",
    "yolos_b",
)
NUM_CLASSES = 91
IMAGE_SIZES_HW = ((160, 224), (192, 136))
ORIGINAL_SIZES_HW = ((480, 672), (576, 408))
SAMPLE = Path(__file__).with_name("official_sample")

Shape = tuple[int, ...]


def normal(name: str, shape: Shape) -> np.ndarray:
    """Return standard normal float64 numbers that depend on the name alone."""
    state = np.random.RandomState(zlib.crc32(name.encode()))
    return state.standard_normal(math.prod(shape)).reshape(shape)


def weight(key: str, shape: Shape) -> np.ndarray:
    """Return the weight under an official key; the first rule that fits decides."""
    x = normal(key, shape)
    last = key.rsplit(".", 1)[-1]
    if last == "running_var":
        return 0.5 + 0.5 * np.abs(x)
    if last == "running_mean":
        return 0.1 * x
    embeds = "embed" in last or "token" in last or key.startswith("query_embed")
    if embeds or "row_embed" in key or "col_embed" in key:
        return (1.5 if "query" in key or "det_token" in key else 0.5) * x
    if len(shape) == 1:
        return 1 + 0.1 * x if last == "weight" else 0.1 * x
    x /= math.sqrt(math.prod(shape[1:]))
    return x * _gain(key, last, shape)


def _gain(key: str, last: str, shape: Shape) -> float | np.ndarray:
    if last == "in_proj_weight" or key.endswith("qkv.weight"):
        third = shape[0] // 3
        return np.repeat([2.0, 2.0, 0.7], third)[:, None]
    if "input_proj" in key:
        return 0.2
    if len(shape) == 4:
        return 1.0
    return 0.7 if "out_proj" in key or "attn.proj" in key else 1.4


def images() -> list[np.ndarray]:
    """Return the two normalised (3, H, W) float32 images: blocks of 24 x 24 pixels, and noise."""
    made = []
    for index, (height, width) in enumerate(IMAGE_SIZES_HW):
        blocks = 1.2 * normal(f"blocks{index}", (3, -(-height // 24), -(-width // 24)))
        pixels = np.kron(blocks, np.ones((24, 24)))[:, :height, :width]
        pixels += 0.3 * normal(f"image{index}", (3, height, width))
        made.append(pixels.astype(np.float32))
    return made


@dataclass(frozen=True, eq=False)
class Reference:
    """One case: its settings, inputs, and what the official code gave in float64.

    `keys` maps the official state dict's keys to shapes. `queries` are those that `pred_*`,
    `alone0.*` and `post*` of `tensors` hold, in this order; `aux_queries` those of `aux*`.
    `targets` are labels and boxes cxcywh an image, `matches` queries and targets an image.
    `gradients` maps a key to the gradient's norm and to the sum of its products with a probe.
    """

    name: str
    settings: dict[str, Any]
    keys: dict[str, Shape]
    targets: list[tuple[np.ndarray, np.ndarray]]
    queries: list[int]
    aux_queries: list[int]
    tensors: dict[str, np.ndarray]
    losses: dict[str, float]
    matches: list[tuple[list[int], list[int]]]
    gradients: dict[str, np.ndarray]

    @property
    def earlier_layers(self) -> int:
        return sum(re.fullmatch(r"aux\d+\.pred_logits", name) is not None for name in self.tensors)


def weights(reference: Reference) -> dict[str, Tensor]:
    """Return the case's float64 weights under the official keys."""
    return {key: torch.from_numpy(weight(key, shape)) for key, shape in reference.keys.items()}


def full_reference(fixtures: Path, name: str) -> Reference:
    """Read a case with every query from the folder of references, ../shared/fixtures."""
    folder = fixtures / "official"
    settings = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    keys = {key: tuple(shape) for key, shape in settings.pop("keys").items()}
    stored = load_file(folder / f"{name}.safetensors")
    for index, image in enumerate(images()):
        np.testing.assert_array_equal(image, stored[f"image{index}"])
    queries = list(range(stored["pred_logits"].shape[1]))
    outputs = ("pred_", "aux", "alone0.", "post")
    return Reference(
        name,
        settings,
        keys,
        [(stored[f"target{i}.labels"], stored[f"target{i}.boxes"]) for i in (0, 1)],
        queries,
        queries,
        {key: value for key, value in stored.items() if key.startswith(outputs)},
        {key[5:]: float(value.item()) for key, value in stored.items() if key[:5] == "loss."},
        [(stored[f"match{i}.query"].tolist(), stored[f"match{i}.target"].tolist()) for i in (0, 1)],
        {key[5:]: value for key, value in stored.items() if key[:5] == "grad."},
    )


def sample_reference(name: str) -> Reference:
    """Read a case with a few queries from the files beside this module."""
    described, tensors = _sample()
    case = described["cases"][name]
    keys, with_gradient = {}, []
    for kind, patterns in case["keys"].items():
        for pattern, shape in patterns.items():
            for key in expanded(pattern):
                keys[key] = tuple(int(side) for side in shape.split("x"))
                if kind == "with gradient":
                    with_gradient.append(key)
    own = {
        key.removeprefix(f"{name}."): value
        for key, value in tensors.items()
        if key.startswith(f"{name}.")
    }
    gradients = own.pop("gradients")
    return Reference(
        name,
        case["settings"],
        keys,
        [(np.array(one["labels"]), np.array(one["boxes"])) for one in described["targets"]],
        case["queries"],
        case["aux_queries"],
        own,
        case["losses"],
        [(one["query"], one["target"]) for one in case["matches"]],
        dict(zip(sorted(with_gradient), gradients, strict=True)),
    )


@lru_cache(maxsize=1)
def _sample() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    described = json.loads(SAMPLE.with_suffix(".json").read_text(encoding="utf-8"))
    return described, load_file(SAMPLE.with_suffix(".safetensors"))


def expanded(pattern: str) -> list[str]:
    """Return the keys of a pattern in which `{a-b}` stands for every number from a to b."""
    ranged = re.search(r"\{(\d+)-(\d+)\}", pattern)
    if ranged is None:
        return [pattern]
    before, after = pattern[: ranged.start()], pattern[ranged.end() :]
    numbers = range(int(ranged[1]), int(ranged[2]) + 1)
    return [key for number in numbers for key in expanded(f"{before}{number}{after}")]
