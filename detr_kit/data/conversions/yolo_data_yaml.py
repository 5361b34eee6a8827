"""The data.yaml of an export, to which further splits may be added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from detr_kit.data.conversions.class_names import names_of_yaml, read_yaml
from detr_kit.data.conversions.exporting import require_same_names
from detr_kit.data.conversions.yolo_layout import SPLITS
from detr_kit.errors import DetrKitError

DATA_YAML = "data.yaml"
_ONE_FOLDER = "# train and val are the same pictures; an export with --split keeps them apart.\n"


def split_entries(out: Path, split: str | None, names: Sequence[str]) -> dict[str, str]:
    """Return the splits of the export that stands in the folder `out`, none where it is no export.

    Raises DetrKitError where `split` cannot be added to them.
    """
    if split is None:
        return {}
    if split not in SPLITS:
        raise DetrKitError(f"split {split!r} (--split): the splits of YOLO are {', '.join(SPLITS)}")
    path = out / DATA_YAML
    if not path.is_file():
        return {}
    values = read_yaml(path)
    entries = {key: value for key, value in values.items() if key != "names"}
    if not entries or entries != {key: f"images/{key}" for key in SPLITS if key in entries}:
        raise DetrKitError(
            f"{path}: not of an export with --split; name a folder that is new or empty"
        )
    require_same_names(path, list(names_of_yaml(path, values).values()), names)
    if split in entries:
        raise DetrKitError(f"{path}: it has the split {split} already")
    for folder in (out / "images" / split, out / "labels" / split):
        if folder.exists():
            raise DetrKitError(f"{folder}: it is there, but {DATA_YAML} does not name it")
    return entries


def data_yaml(entries: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the text; without entries both train and val are the folder `images`."""
    values = {key: entries[key] for key in SPLITS if key in entries}
    text = yaml.safe_dump(
        {**(values or {"train": "images", "val": "images"}), "names": dict(enumerate(names))},
        sort_keys=False,
        allow_unicode=True,
    )
    return text if values else _ONE_FOLDER + text
