"""Where the pictures, labels and class names of a YOLO data set are.

Layouts: `images/` and a parallel `labels/`, text files beside the pictures (darknet), splits as
sub-folders of either kind, and the data.yaml of Ultralytics
(https://docs.ultralytics.com/datasets/detect).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_kit.data.conversions.class_names import (
    NAME_FILES,
    YAML_SUFFIXES,
    Names,
    names_by_index,
    names_of_yaml,
    read_lines,
    read_yaml,
)
from detr_kit.data.conversions.picture_files import IMAGE_SUFFIXES, files_below
from detr_kit.errors import DetrKitError

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class YoloLayout:
    """Pairs of pictures and label files, None for pictures without one, in a fixed order.

    File names start from `images`; class index to name is `names`. `num_unmatched` label files
    belong to no picture.
    """

    images: Path
    pairs: tuple[tuple[Path, Path | None], ...]
    names: dict[int, str]
    num_unmatched: int = 0


def find_layout(
    source: Path, images: Path | None, names: Names | None, split: str | None
) -> YoloLayout:
    """Return where everything is; raises DetrKitError for what is missing or can mean two things.

    `source` is a data.yaml, a folder that holds one, or a folder of labels; `images` is then the
    folder of the pictures that they belong to.
    """
    if source.is_dir():
        found = [source / name for name in YAML_NAMES if (source / name).is_file()]
        if images is not None or not found:
            return _of_folder(source, images, names, split)
        source = found[0]
    if not source.is_file():
        raise DetrKitError(f"{source}: no such file or folder")
    if source.suffix.lower() not in YAML_SUFFIXES:
        raise DetrKitError(f"{source}: expected a folder of labels or a data.yaml")
    return _of_yaml(source, images, names, split)


def label_path(picture: Path) -> Path:
    """Return where Ultralytics looks: the last folder called `images` becomes `labels`."""
    parts = list(picture.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _label_of(picture: Path) -> Path | None:
    picture = picture.absolute()
    for path in (label_path(picture), picture.with_suffix(".txt")):
        if path.is_file():
            return path
    return None


def _of_folder(
    source: Path, images: Path | None, names: Names | None, split: str | None
) -> YoloLayout:
    if images is not None:
        if split is not None:
            raise DetrKitError(
                f"split {split!r}: name the split's own folders of labels and pictures (--images), "
                "not the split (--split)"
            )
        root = source / "labels" if (source / "labels").is_dir() else source
        pictures = _pictures_in(images)
        labels = {path: root / path.relative_to(images).with_suffix(".txt") for path in pictures}
        pairs = [(path, label if label.is_file() else None) for path, label in labels.items()]
        label_folders = {root}
    else:
        images = _picture_folder(source, split)
        pairs = [(path, _label_of(path)) for path in _pictures_in(images)]
        label_folders = {label_path(images.absolute() / "any.jpg").parent, images.absolute()}
    _require_labels(source, pairs)
    used = {label for _, label in pairs}
    below = {
        folder / name for folder in label_folders for name in files_below(folder, _TEXT_SUFFIXES)
    }
    unmatched = [path for path in below - used if path.name not in NAME_FILES]
    return YoloLayout(images, tuple(pairs), _class_names(names, source, images), len(unmatched))


_TEXT_SUFFIXES = frozenset({".txt"})


def _picture_folder(source: Path, split: str | None) -> Path:
    """Return the first of the usual places that holds pictures."""
    if split is None:
        places = [source / "images", _parallel_images(source), source]
    else:
        places = [source / "images" / split, source / split / "images", source / split]
    for place in places:
        if place.is_dir() and files_below(place, IMAGE_SUFFIXES):
            return place
    tried = ", ".join(str(place) for place in dict.fromkeys(places))
    raise DetrKitError(
        f"{source}: no pictures in {tried}; name their folder with images (--images)"
    )


def _parallel_images(labels: Path) -> Path:
    parts = list(labels.absolute().parts)
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] == "labels":
            parts[place] = "images"
            break
    return Path(*parts)


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DetrKitError(f"{folder}: no such folder")
    return [folder / name for name in files_below(folder, IMAGE_SUFFIXES)]


def _require_labels(source: Path, pairs: Sequence[tuple[Path, Path | None]]) -> None:
    if not pairs:
        raise DetrKitError(f"{source}: no pictures found")
    if all(label is None for _, label in pairs):
        places = ", ".join(
            str(path.parent) for path in dict.fromkeys((label_path(pairs[0][0]), pairs[0][0]))
        )
        raise DetrKitError(
            f"{source}: none of the {len(pairs)} pictures has a file of labels; for "
            f"{pairs[0][0].name} there is none in {places}"
        )


def _of_yaml(path: Path, images: Path | None, names: Names | None, split: str | None) -> YoloLayout:
    values = read_yaml(path)
    if "kpt_shape" in values:
        raise DetrKitError(f"{path}: labels of key points (kpt_shape) are not boxes")
    listed = [key for key in SPLITS if values.get(key)]
    # Splits that are all the same pictures leave no choice.
    if split is None and len({str(values[key]) for key in listed}) != 1:
        choice = f"the splits {', '.join(listed)}" if listed else "no train, val or test"
        raise DetrKitError(f"{path}: it has {choice}; choose one as the split (--split)")
    chosen = listed[0] if split is None else split
    if not values.get(chosen):
        raise DetrKitError(f"{path}: no split {chosen!r}; it has {', '.join(listed) or 'none'}")
    entry = values[chosen]
    places = [
        _existing(path, values, str(one)) for one in (entry if isinstance(entry, list) else [entry])
    ]
    pictures = list(dict.fromkeys(picture for place in places for picture in _pictures_at(place)))
    pairs = tuple((picture, _label_of(picture)) for picture in pictures)
    _require_labels(path, pairs)
    if images is None:
        images = places[0] if len(places) == 1 and places[0].is_dir() else _common_folder(pictures)
    table = names_of_yaml(path, values) if names is None else _class_names(names, path, images)
    return YoloLayout(images, pairs, table)


def _existing(path: Path, values: Mapping[str, Any], entry: str) -> Path:
    """Return the folder or list that an entry means.

    It starts from `path`, where that exists, or from the yaml's folder: files are often moved
    after they were written. Roboflow writes "../train/images" for a folder beside the yaml.
    """
    folder, root = path.parent, str(values.get("path") or ".")
    places = [base / entry for base in (folder / root, Path(root), folder)]
    if entry.startswith("../"):
        places.append(folder / entry.removeprefix("../"))
    for place in places:
        if place.exists():
            return Path(os.path.normpath(place))
    tried = ", ".join(dict.fromkeys(os.path.normpath(place) for place in places))
    raise DetrKitError(
        f"{path}: {entry!r} is not there; looked for {tried}; where the pictures are elsewhere, "
        f"import the folder {folder} and name theirs with images (--images)"
    )


def _pictures_at(place: Path) -> list[Path]:
    """Return the pictures in a folder or on a list, one path a line."""
    if place.is_dir():
        return _pictures_in(place)
    if place.suffix.lower() != ".txt":
        return [place]
    pictures = []
    for number, line in enumerate(read_lines(place), 1):
        if not line.strip():
            continue
        bases = (place.parent, Path())
        found = [base / line.strip() for base in bases if (base / line.strip()).is_file()]
        if not found:
            raise DetrKitError(f"{place}, line {number}: no such image file: {line.strip()}")
        pictures.append(Path(os.path.normpath(found[0])))
    return pictures


def _common_folder(pictures: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([picture.absolute().parent for picture in pictures]))


def _class_names(names: Names | None, source: Path, images: Path) -> dict[int, str]:
    """Return the names that were given, or those of a file near the labels."""
    if names is None:
        folders = dict.fromkeys((source, source.parent, images, images.parent))
        found = [folder / name for folder in folders for name in NAME_FILES + YAML_NAMES]
        names = next((path for path in found if path.is_file()), None)
        if names is None:
            raise DetrKitError(
                f"{source}: the names of the classes are missing: give names (--names), or put a "
                "classes.txt there, one name a line"
            )
    return names_by_index(names, source)
