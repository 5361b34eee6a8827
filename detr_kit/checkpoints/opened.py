"""A detector as a file or folder holds it: its weights under our names, and what it is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from detr_kit.checkpoints.detector import DetectorSpec
from detr_kit.checkpoints.keymap import KeyMap, require_fit
from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import FAMILIES, build_model, completed, meant_instead

# What the names of a class head's layers begin with; a model may have one for each decoder layer.
_CLASS_HEAD = re.compile(r"(?:.*\.)?class_head\.layers\.")
_PARTS = ("weight", "bias")
_CLASSES_TO_DENOISE = "denoising.labels.weight"


@dataclass(frozen=True)
class OpenedCheckpoint:
    """What was read from `source`, a checkpoint of the given kind.

    `tensors` are under detr_kit's names. `dropped` names what the source holds besides, `notes`
    say in a line each what its files left open and how that was decided. `key_map` is where the
    names were translated.
    """

    source: str
    kind: str
    spec: DetectorSpec
    tensors: dict[str, Tensor]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    key_map: KeyMap | None = None

    def check(self) -> None:
        """Raise DetrKitError where `build` would."""
        with torch.device("meta"):
            self._fitting_model()

    def build(self) -> nn.Module:
        """Return the model, on the CPU and in evaluation mode; the random state stays as it was.

        Raises DetrKitError where no model has the architecture, or where tensors are missing,
        unexpected or of another shape, listing them.
        """
        model = self._fitting_model()
        model.load_state_dict(self.tensors)
        return model.eval()

    def _fitting_model(self) -> nn.Module:
        try:
            with torch.random.fork_rng(devices=[]):
                model = build_model(self.spec.architecture, num_classes=len(self.spec.categories))
        except DetrKitError as error:
            raise DetrKitError(f"{self.source}: {error}") from error
        except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise DetrKitError(
                f"{self.source}: no model has this architecture: {error!r}"
            ) from error
        require_fit(self.source, model.state_dict(), self.tensors, self.key_map)
        return model


def count_layers(keys: Iterable[str], prefix: str) -> int:
    """Return how many numbered modules have names that start so: the highest number and one."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    numbers = [int(match[1]) for key in keys if (match := pattern.match(key))]
    return max(numbers, default=-1) + 1


def class_layer(keys: Iterable[str]) -> str:
    """Return the name of the output layer of the class head that DETR and YOLOS have."""
    prefix = "heads.class_head.layers."
    return f"{prefix}{count_layers(keys, prefix) - 1}"


def class_tables(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the tensors whose rows are class columns, wherever a model has heads.

    Those of output layers of class heads, and of a table of classes for denoising.
    """
    names = [match[0] for key in keys if (match := _CLASS_HEAD.match(key))]
    layers = {name: count_layers(keys, name) - 1 for name in dict.fromkeys(names)}
    heads = [f"{name}{last}.{part}" for name, last in layers.items() for part in _PARTS]
    return (*heads, *(key for key in keys if key == _CLASSES_TO_DENOISE))


def shape_of(
    ours: Mapping[str, Tensor], key: str, dimensions: int, key_map: KeyMap
) -> tuple[int, ...]:
    """Return a tensor's shape; raises where it is missing, empty or of other dimensions."""
    named = ", ".join(key_map.to_theirs_keys(key)) or key
    if key not in ours:
        raise DetrKitError(f"not a whole {key_map.name} checkpoint: {named} is missing")
    shape = tuple(ours[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise DetrKitError(f"{named} has the shape {shape}, expected {dimensions} dimensions")
    return shape


# Tables (..., (G - 1) * Q, D) of a YOLOS's groups beside the one that predicts.
FURTHER_GROUPS = (
    "backbone.extra_det_token",
    "backbone.extra_pos_embed",
    "backbone.extra_mid_pos_embed",
)
# Tables (G * Q, D) of the deformable family, the group that predicts first.
ALL_GROUPS = ("queries.content.weight", "queries.positions.weight", "queries.anchors.weight")


def without_groups(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Leave out the groups that training alone reads; other libraries have no place for them."""
    kept = {name: tensor for name, tensor in tensors.items() if name not in FURTHER_GROUPS}
    if numbers.get("groups", 1) > 1:
        kept |= {name: kept[name][: numbers["num_queries"]] for name in ALL_GROUPS if name in kept}
    return kept


def require_supported(
    numbers: Mapping[str, Any], supported: Mapping[str, Collection[Any]], side: str
) -> None:
    """Raise DetrKitError that lists the settings which `side` does not have."""
    unfit = [f"{key} {numbers[key]}" for key, fits in supported.items() if numbers[key] not in fits]
    if unfit:
        raise DetrKitError(f"{side} has no {', '.join(unfit)}")


def changed_architecture(
    numbers: Mapping[str, Any], changes: Mapping[str, Any] | None, source: str
) -> dict[str, Any]:
    """Return the numbers with a user's `changes`, which are settings of a config's `model`.

    As there, None and "auto" change nothing.

    Raises DetrKitError for a setting that the family does not have and for a value out of range.
    """
    if not changes:
        return dict(numbers)
    strange = sorted(set(changes) - set(completed(numbers)))
    if strange:
        raise DetrKitError(
            f"{source}: a {FAMILIES[numbers['family']]} has no setting {strange[0]!r}"
            f"{meant_instead(strange[0], numbers)}"
        )
    try:
        checked = ModelConfig.model_validate({"name": str(numbers["family"]), **changes})
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise DetrKitError(f"{source}: {key}: {fault['msg']}, got {fault['input']!r}") from error
    given = {key: getattr(checked, key) for key in changes}
    kept = {key: value for key, value in given.items() if value not in (None, "auto")}
    return {**numbers, **kept}
