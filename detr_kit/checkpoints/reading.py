"""Reading tensors from files without running what is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detr_kit.errors import DetrKitError

# What published checkpoints nest their weights under, in the order they are looked for.
WRAPPERS = ("model", "state_dict")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or torch file by key, on the CPU.

    Weights nested under "model" or "state_dict" are unwrapped. Raises DetrKitError, naming the
    file, where there is none, where it cannot be read safely and where it holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise DetrKitError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise DetrKitError(f"{path}: not a readable safetensors file: {error}") from error
    return _tensors_in(_load_torch_file(path), path)


def _load_torch_file(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DetrKitError(
            f"{path}: holds more than tensors, or is no weights file; it is not loaded, since "
            "unpickling can run code"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise DetrKitError(f"{path}: not a readable weights file") from error


def _tensors_in(loaded: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    tensors = loaded if isinstance(loaded, dict) else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise DetrKitError(f"{path}: expected tensors by name, at the top or under 'model'")
    return dict(tensors)
