"""Folders of Hugging Face transformers with a detector of a kind that is ours, read and written.

Source: the files that `save_pretrained` writes and that the hub holds, and the config classes of
transformers, which itself is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec
from detr_kit.checkpoints.hf_config import Numbers, config_from_numbers, numbers_from_config
from detr_kit.checkpoints.hf_keys_rtdetr import constant_tensors
from detr_kit.checkpoints.keymap import KeyMap
from detr_kit.checkpoints.opened import (
    OpenedCheckpoint,
    changed_architecture,
    class_tables,
    without_groups,
)
from detr_kit.checkpoints.processor import (
    default_preprocessing,
    kind_of,
    processor_json,
    processor_notes,
    read_processor,
)
from detr_kit.checkpoints.reading import read_tensors
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import completed

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
# In the order they are looked for; an index names the files that the weights are spread over.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
UNUSED_LABEL = "N/A"  # what the hub's files call the columns that no COCO category uses


def open_huggingface(
    folder: Path, *, source: str, architecture: Mapping[str, Any] | None = None
) -> OpenedCheckpoint:
    """Read a folder with config.json, weights and, if there is one, preprocessor_config.json.

    Raises DetrKitError, naming the file and key, for another model type, for settings that
    detr_kit's models do not have, and for keys that are unknown or missing.
    """
    path = folder / CONFIG_FILE
    config = _read_json(path)
    try:
        numbers, key_map = numbers_from_config(config)
    except DetrKitError as error:
        raise DetrKitError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DetrKitError(f"{path}: incomplete or damaged: {error!r}") from error
    try:
        ours, dropped = key_map.to_ours(read_weights(folder))
    except DetrKitError as error:
        raise DetrKitError(f"{source}: {error}") from error
    kind = kind_of(numbers)
    numbers = changed_architecture(numbers, architecture, source)
    notes: tuple[str, ...]
    if (folder / PROCESSOR_FILE).is_file():
        preprocessing, notes = read_processor(folder / PROCESSOR_FILE, kind)
    else:
        preprocessing = default_preprocessing(kind)
        notes = (f"no {PROCESSOR_FILE}: the {kind} processor's defaults are used",)
    # A softmax has a column for `no object` too.
    extra = 1 if numbers.get("scoring", "softmax") == "softmax" else 0
    categories = _categories(config, ours, key_map, path, extra)
    spec = DetectorSpec(numbers, categories, preprocessing, origin=source)
    return OpenedCheckpoint(source, key_map.name, spec, ours, dropped, notes, key_map=key_map)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the folder, from one file or from several that an index lists.

    Raises DetrKitError where there are none, or where a file of the index is missing.
    """
    for name in WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            tensors: dict[str, Tensor] = {}
            for file in shards_of(path) or [name]:
                tensors.update(read_tensors(folder / file))
            return tensors
    raise DetrKitError(f"it holds none of {', '.join(WEIGHT_FILES)}")


def shards_of(path: Path) -> list[str]:
    """Return the files that an index file lists, all beside it; none for a file of weights."""
    if path.suffix != ".json":
        return []
    try:
        names = sorted({str(name) for name in _read_json(path)["weight_map"].values()})
    except (KeyError, AttributeError) as error:
        raise DetrKitError(f"{path}: not an index of weights: {error!r}") from error
    if any(Path(name).name != name for name in names):
        raise DetrKitError(f"{path}: it lists files outside its folder")
    return names


def huggingface_files(
    tensors: Mapping[str, Tensor], spec: DetectorSpec
) -> tuple[Numbers, Numbers, dict[str, Tensor], tuple[str, ...]]:
    """Return config.json, preprocessor_config.json and the tensors of the same detector.

    The last are notes on what transformers does not do exactly alike.

    Raises DetrKitError where transformers has no such model.
    """
    config, key_map = config_from_numbers(completed(spec.architecture))
    labels = {
        str(column): name if used else UNUSED_LABEL
        for column, (name, used) in enumerate(
            zip(spec.categories.names, spec.categories.used, strict=True)
        )
    }
    config["id2label"] = labels
    config["label2id"] = {name: int(column) for column, name in labels.items()}
    processor = processor_json(spec.preprocessing, kind_of(spec.architecture))
    notes = processor_notes(spec.preprocessing)
    if spec.categories.ids != tuple(range(len(spec.categories))):
        notes += ("category ids become the numbers of their columns, from 0; names are kept",)
    weights = key_map.to_theirs(without_groups(tensors, spec.architecture))
    if config["model_type"] == "rt_detr_v2":
        weights |= constant_tensors(config)
    return config, processor, weights, notes


def _categories(
    config: Numbers, ours: Mapping[str, Tensor], key_map: KeyMap, path: Path, extra: int
) -> CategoryTable:
    """Return the table of `id2label`; columns are the ids, as transformers reports them.

    The class head has `extra` columns that are no category.
    """
    labels = config.get("id2label")
    if labels is None:
        table = next(iter(class_tables(ours)), "")
        columns = len(ours[table]) - extra if table in ours and ours[table].ndim else 0
        if columns < 1:
            key = ", ".join(key_map.to_theirs_keys(table)) or "the class head"
            raise DetrKitError(f"{path}: no id2label, and {key} does not count the categories")
        labels = {str(column): f"LABEL_{column}" for column in range(columns)}
    try:
        named = {int(column): str(name) for column, name in labels.items()}
        names = _distinct([named[column] for column in range(len(named))])
    except (KeyError, ValueError, AttributeError) as error:
        raise DetrKitError(f"{path}: id2label does not number its labels from 0") from error
    try:
        return CategoryTable.from_columns(names, unused=UNUSED_LABEL)
    except DetrKitError as error:
        raise DetrKitError(f"{path}: id2label: {error}") from error


def _distinct(names: list[str]) -> list[str]:
    """Number names that several columns have; transformers allows them, evaluation cannot."""
    twice = {name for name in names if names.count(name) > 1} - {UNUSED_LABEL}
    return [f"{name} ({column})" if name in twice else name for column, name in enumerate(names)]


def _read_json(path: Path) -> Numbers:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DetrKitError(f"{path}: not a readable json file: {error}") from error
    if not isinstance(values, dict):
        raise DetrKitError(f"{path}: expected a json object")
    return values
