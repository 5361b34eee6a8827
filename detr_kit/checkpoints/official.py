"""Checkpoints of the official DETR and YOLOS repositories, read and written.

Sources: the `state_dict` keys of facebookresearch/detr and hustvl/YOLOS. Their heads have a column
for each COCO category id up to 90.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detr_kit.categories import CategoryTable, coco_table
from detr_kit.checkpoints.detector import DetectorSpec
from detr_kit.checkpoints.official_keys import FAMILY_KEYS, KEY_MAPS, what_else
from detr_kit.checkpoints.official_numbers import Numbers, args_from_numbers, numbers_from_weights
from detr_kit.checkpoints.opened import (
    OpenedCheckpoint,
    class_layer,
    require_supported,
    shape_of,
    without_groups,
)
from detr_kit.checkpoints.resnets import RESNETS
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import NORM_EPS, completed
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

UNUSED = "-"  # no category can be called so by mistake


def open_official(
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    args: Mapping[str, Any] | None = None,
    architecture: Mapping[str, Any] | None = None,
    categories: Mapping[int, str] | None = None,
) -> OpenedCheckpoint:
    """Translate tensors under official keys; `source` names them, a file's name for example.

    The columns of the class head are category ids; `categories` gives ids and names, without it
    91 columns are COCO's.

    What weights do not tell (attention heads, DC5, the size that positions were made for) is
    taken from `architecture`, else from `args`, the training script's settings that training
    checkpoints hold, else from the published models' numbers, and said in the notes.

    Raises DetrKitError where the keys are of neither family, are unknown or incomplete.
    """
    family = next((family for key, family in FAMILY_KEYS.items() if key in tensors), None)
    if family is None:
        raise DetrKitError(f"{source}: {what_else(tensors)}")
    key_map = KEY_MAPS[family]
    args = dict(args or {})
    try:
        ours, dropped = key_map.to_ours(tensors)
        numbers, notes = numbers_from_weights(family, ours, args, architecture or {}, source)
        (rows,) = shape_of(ours, f"{class_layer(ours)}.bias", 1, key_map)
        table, made_up = _table(rows - 1, categories)
        preprocessing = _preprocessing(family, numbers, args)
    except DetrKitError as error:
        raise DetrKitError(f"{source}: {error}") from error
    spec = DetectorSpec(numbers, table, preprocessing, origin=source)
    told = (*notes, *made_up)
    return OpenedCheckpoint(source, key_map.name, spec, ours, dropped, told, key_map=key_map)


def official_content(
    tensors: Mapping[str, Tensor], spec: DetectorSpec
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what a training checkpoint of the official code holds, and what it leaves unsaid.

    That is the tensors under "model", and the settings that describe the model, an
    `argparse.Namespace`, under "args". Raises DetrKitError where the official code has no such
    model.
    """
    numbers = completed(spec.architecture)
    if numbers["family"] not in KEY_MAPS:
        raise DetrKitError("the official code of DETR and YOLOS has no Deformable DETR")
    require_supported(numbers, {"scoring": ("softmax",)}, "the official code")
    if numbers["family"] == "detr":
        require_supported(
            numbers,
            {
                "backbone": RESNETS.values(),
                "backbone_stages": (None, 4),
                "backbone_norm": ("frozen", "batch"),
                "positions_at_input": (False,),
            },
            "the official DETR",
        )
    settings = args_from_numbers(numbers, spec.preprocessing.size_rule)
    notes = ["category names and ids are not in such a file: its columns are numbered from 0"]
    if _preprocessing(numbers["family"], numbers, settings) != spec.preprocessing:
        notes.append("the official code resizes and normalises pictures otherwise")
    if numbers.get("norm_eps", NORM_EPS) != NORM_EPS:
        notes.append(f"norm_eps {numbers['norm_eps']} becomes {NORM_EPS} in the official code")
    content = {
        "model": KEY_MAPS[numbers["family"]].to_theirs(without_groups(tensors, numbers)),
        "args": argparse.Namespace(**settings),
    }
    return content, tuple(notes)


def _table(columns: int, categories: Mapping[int, str] | None) -> tuple[CategoryTable, list[str]]:
    """Return the table of a head with so many columns, and a note where names are made up."""
    if columns < 1:
        raise DetrKitError("its class head has a column for no object alone")
    if categories is not None:
        outside = sorted(id_ for id_ in categories if not 0 <= id_ < columns)
        if outside:
            raise DetrKitError(
                f"category id {outside[0]} is none of the class head's {columns} "
                "columns, which are category ids in the official code"
            )
        names = [categories.get(column, UNUSED) for column in range(columns)]
        return CategoryTable.from_columns(names, unused=UNUSED), []
    if columns == len(coco_table()):
        return coco_table(), [f"categories of COCO, as the head has {columns} columns"]
    made_up = [f"class_{column}" for column in range(columns)]
    note = (
        f"categories {made_up[0]} to {made_up[-1]}: the file does not name them; `detr-kit convert "
        "FILE OUT --annotations JSON` does"
    )
    return CategoryTable.from_columns(made_up, unused=UNUSED), [note]


def _preprocessing(family: str, numbers: Numbers, args: Mapping[str, Any]) -> Preprocessing:
    if family == "detr":
        rule = SizeRule("detr", 800, 1333)
    else:
        short_side = args.get("eval_size")
        if short_side is None:
            short_side = 512 if numbers["hidden_dim"] == 192 else 800
        if not isinstance(short_side, int):
            raise DetrKitError(f"eval_size {short_side!r} of its args is no number of pixels")
        rule = SizeRule("yolos_16", short_side, short_side * 1333 // 800)
    return Preprocessing(rule, IMAGENET_MEAN, IMAGENET_STD)
