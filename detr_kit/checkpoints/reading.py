"""Reading tensors from files without running what is in them."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detr_kit.errors import DetrKitError

# What published checkpoints nest their weights under, in the order they are looked for.
WRAPPERS = ("model", "state_dict", "model_ema")
PARALLEL = "module."  # what torch's data-parallel wrappers put before every key
# What the training scripts of DETR, YOLOS and DeiT put beside the weights: settings, plain values.
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace]


@dataclass(frozen=True)
class CheckpointContent:
    """Tensors by key, and the settings of the training script where the file holds them."""

    tensors: dict[str, Tensor]
    args: Mapping[str, Any]


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or torch file by key, on the CPU.

    Weights nested under "model", "state_dict" or "model_ema" are unwrapped. Raises DetrKitError,
    naming the file, where there is none, where it cannot be read safely and where it holds no
    tensors.
    """
    return read_checkpoint(path).tensors


def read_checkpoint(path: str | Path) -> CheckpointContent:
    """Return the same tensors together with the training script's `args`.

    Nothing but tensors, plain values and `argparse.Namespace` is unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise DetrKitError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        try:
            return _content_of(load_file(path), path)
        except (SafetensorError, OSError) as error:
            raise DetrKitError(f"{path}: not a readable safetensors file: {error}") from error
    return _content_of(_load_torch_file(path), path)


def _load_torch_file(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of files that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DetrKitError(f"{path}: {_refusal(path)}") from error
    # A damaged file shows itself in many ways, by the kind of file and where the damage is.
    except Exception as error:
        raise DetrKitError(f"{path}: not a readable weights file: damaged or cut off") from error


def _refusal(path: Path) -> str:
    """Say what the file asks to run, where torch can tell."""
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    # torch looks into zip files only; of others nothing more can be said.
    except Exception:
        asked = []
    if asked:
        named = ", ".join(name if name.isprintable() else ascii(name) for name in sorted(asked))
        return f"not loaded: it asks to run code ({named}), which a file of weights never needs"
    return (
        "not loaded: it is no weights file, or holds more than tensors and settings, and "
        "unpickling that can run code"
    )


def _content_of(loaded: Any, path: Path) -> CheckpointContent:
    args = loaded.get("args", {}) if isinstance(loaded, dict) else {}
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    tensors = loaded if isinstance(loaded, dict) else {}
    if not tensors or not all(
        isinstance(key, str) and key.isprintable() and isinstance(value, Tensor)
        for key, value in tensors.items()
    ):
        raise DetrKitError(f"{path}: expected tensors by name, at the top or under 'model'")
    if all(key.startswith(PARALLEL) for key in tensors):
        tensors = {key.removeprefix(PARALLEL): value for key, value in tensors.items()}
    settings = vars(args) if isinstance(args, argparse.Namespace) else args
    return CheckpointContent(dict(tensors), settings if isinstance(settings, dict) else {})
