"""A detector in a folder: `model.safetensors` and `detector.json`.

`detector.json` holds what the weights cannot say: the architecture's numbers, the categories, the
preprocessing, and the version of this format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write
from detr_kit.preprocess import Preprocessing

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
SPEC_FILE = "detector.json"


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector is, without its weights; `architecture` are the numbers of the zoo.

    `origin` tells a person where the weights came from.
    """

    architecture: dict[str, Any]
    categories: CategoryTable
    preprocessing: Preprocessing
    format_version: int = FORMAT_VERSION
    origin: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": self.format_version,
            "architecture": self.architecture,
            "categories": self.categories.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DetectorSpec:
        return cls(
            {key: _tuples(value) for key, value in values["architecture"].items()},
            CategoryTable.from_json(values["categories"]),
            Preprocessing.from_json(values["preprocessing"]),
            values["format_version"],
            str(values.get("origin", "")),
        )


def save_detector(
    folder: str | Path, model: nn.Module | Mapping[str, Tensor], spec: DetectorSpec
) -> None:
    """Write both files under temporary names, then rename them, `detector.json` last.

    A reader therefore finds no `detector.json` without its weights. `model` may be a state dict.
    """
    folder = Path(folder)
    state = model.state_dict() if isinstance(model, nn.Module) else model
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    with atomic_write(folder / SPEC_FILE) as spec_path:
        spec_path.write_text(json.dumps(spec.to_json(), indent=2) + "\n", encoding="utf-8")
        with atomic_write(folder / MODEL_FILE) as model_path:
            save_file(tensors, model_path, metadata={"format": "pt"})


def read_spec(folder: str | Path) -> DetectorSpec:
    """Read `detector.json` alone; raises DetrKitError where it is missing or not of this format."""
    path = Path(folder) / SPEC_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DetrKitError(f"{folder}: not a detector's folder: {SPEC_FILE} is missing") from error
    except (OSError, ValueError) as error:
        raise DetrKitError(f"{path}: not a readable json file: {error}") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise DetrKitError(
            f"{path}: format version {version!r} is unknown, this release reads {FORMAT_VERSION}"
        )
    try:
        return DetectorSpec.from_json(values)
    except DetrKitError as error:
        raise DetrKitError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DetrKitError(f"{path}: incomplete or damaged: {error!r}") from error


def _tuples(value: Any) -> Any:
    """json knows no tuples: what was one comes back as one."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
