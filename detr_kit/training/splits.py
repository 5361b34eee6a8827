"""The splits of a run: named by its config, loaded, and checked before anything is written."""

from __future__ import annotations

import zlib

import numpy as np

from detr_kit.config import RunConfig, SplitConfig
from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.data.pictures import PictureFolder
from detr_kit.errors import DetrKitError

# Beside the run: columns of annotation files, for the workers and for the next run.
INDEX_FOLDER = ".annotation_index"


def required_splits(config: RunConfig) -> tuple[SplitConfig, SplitConfig]:
    for name, split in (("train", config.data.train), ("val", config.data.val)):
        if split is None:
            raise DetrKitError(
                f"key 'data.{name}' is missing: give data.{name}.annotations=FILE.json and "
                f"data.{name}.images=FOLDER"
            )
        if not split.images.is_dir():
            raise DetrKitError(f"{split.images}: no such image folder (data.{name}.images)")
    assert config.data.train is not None
    assert config.data.val is not None
    return config.data.train, config.data.val


def load_split(config: RunConfig, split: SplitConfig) -> CocoAnnotations:
    loaded = load_annotations(
        split.annotations,
        on_bad_box=config.data.on_bad_box,
        cache_dir=config.output.parent / INDEX_FOLDER,
    )
    if config.data.on_bad_image == "raise":
        _require_files(loaded, split)
    return loaded


def digest_of(annotations: CocoAnnotations) -> int:
    """Return a number that changes with the pictures and objects of a split, but not its paths."""
    digest = 0
    for part in ("image_ids", "sizes_hw", "offsets", "boxes_xyxy", "labels"):
        digest = zlib.crc32(np.ascontiguousarray(getattr(annotations, part)).data, digest)
    return digest


def check_data(
    train_set: CocoAnnotations,
    val_set: CocoAnnotations,
    train_split: SplitConfig,
    val_split: SplitConfig,
) -> None:
    for loaded, split in ((train_set, train_split), (val_set, val_split)):
        if len(loaded) == 0:
            raise DetrKitError(f"{split.annotations}: holds no images")
    if train_set.num_objects == 0:
        raise DetrKitError(f"{train_split.annotations}: holds no objects to learn from")
    train_set.categories.require_same(
        val_set.categories, str(train_split.annotations), str(val_split.annotations)
    )


def _require_files(annotations: CocoAnnotations, split: SplitConfig) -> None:
    """Name a picture that does not exist now, not when its turn comes."""
    missing = PictureFolder(annotations, split.images).missing_files()
    if missing:
        raise DetrKitError(
            f"{split.images / missing[0]}: no such image file ({len(missing)} of the "
            f"{len(annotations)} images of {split.annotations} are missing; `detr-kit check` lists "
            "them, data.on_bad_image=skip does without)"
        )
