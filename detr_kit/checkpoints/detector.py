"""A detector in a folder: `model.safetensors` and `detector.json`.

`detector.json` holds what the weights cannot say: the architecture's numbers, the categories, the
preprocessing, and the version of this format.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.reading import read_tensors
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write
from detr_kit.models.zoo import build_model
from detr_kit.preprocess import Preprocessing

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
SPEC_FILE = "detector.json"
LISTED = 10  # names of tensors in one error


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector is, without its weights; `architecture` are the numbers of the zoo."""

    architecture: dict[str, Any]
    categories: CategoryTable
    preprocessing: Preprocessing
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": self.format_version,
            "architecture": self.architecture,
            "categories": self.categories.to_json(),
            "preprocessing": self.preprocessing.to_json(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DetectorSpec:
        return cls(
            {key: _tuples(value) for key, value in values["architecture"].items()},
            CategoryTable.from_json(values["categories"]),
            Preprocessing.from_json(values["preprocessing"]),
            values["format_version"],
        )


def save_detector(folder: str | Path, model: nn.Module, spec: DetectorSpec) -> None:
    """Write both files under temporary names, then rename them, `detector.json` last.

    A reader therefore finds no `detector.json` without its weights.
    """
    folder = Path(folder)
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    with atomic_write(folder / SPEC_FILE) as spec_path:
        spec_path.write_text(json.dumps(spec.to_json(), indent=2) + "\n", encoding="utf-8")
        with atomic_write(folder / MODEL_FILE) as model_path:
            save_file(tensors, model_path, metadata={"format": "pt"})


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint's folder that `path` means: itself, or its `best/`.

    Raises DetrKitError, saying what is accepted.
    """
    folder = Path(path)
    for candidate in (folder, folder / "best"):
        if (candidate / SPEC_FILE).is_file():
            return candidate
    found = "is not one" if folder.exists() else "does not exist"
    raise DetrKitError(
        f"{path}: expected a folder with {SPEC_FILE} and model.safetensors, or a run's folder "
        f"with such a best/ in it; this {found}"
    )


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


def load_detector(folder: str | Path) -> tuple[nn.Module, DetectorSpec]:
    """Return the model, on the CPU and in evaluation mode, and its spec.

    Reads nothing but the two files and leaves the random state as it was. Raises DetrKitError
    where a file is missing or damaged, or where tensors are missing, unexpected or of another
    shape, listing them.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    if not (folder / MODEL_FILE).is_file():
        raise DetrKitError(f"{folder}: not a whole detector's folder: {MODEL_FILE} is missing")
    tensors = read_tensors(folder / MODEL_FILE)
    try:
        with torch.random.fork_rng(devices=[]):
            model = build_model(spec.architecture, num_classes=len(spec.categories))
    except DetrKitError as error:
        raise DetrKitError(f"{folder / SPEC_FILE}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DetrKitError(
            f"{folder / SPEC_FILE}: no model has this architecture: {error!r}"
        ) from error
    _require_fit(folder / MODEL_FILE, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return model.eval(), spec


def _require_fit(path: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(expected.keys() & found.keys())
            if found[name].shape != expected[name].shape
        ],
    }
    told = [f"{kind}: {_first(names)}" for kind, names in faults.items() if names]
    if told:
        raise DetrKitError(f"{path}: its tensors do not fit {SPEC_FILE}; " + "; ".join(told))


def _first(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _tuples(value: Any) -> Any:
    """json knows no tuples: what was one comes back as one."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
