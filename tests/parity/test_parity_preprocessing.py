"""Pictures reach the model as in the official pipelines and as in transformers.

Differences are in grey levels, of which a channel has 256.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_kit.checkpoints.processor import (
    default_preprocessing,
    processor_json,
    read_processor,
)
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD
from detr_kit.images import read_image
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.structures import CollatedImages

# By kind of detector, how transformers begins the names of its classes.
NAMES = {
    "detr": "Detr",
    "yolos": "Yolos",
    "deformable_detr": "DeformableDetr",
    "rt_detr": "RTDetr",
}
FAMILIES = tuple(NAMES)
BACKENDS = ("torchvision", "pil")

Record = Callable[[str, object], None]


@pytest.fixture(scope="session")
def ten_pictures(shared_data: Path) -> list[Path]:
    paths = sorted((shared_data / "coco_mini" / "val2017").glob("*.jpg"))[:10]
    assert len(paths) == 10
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(values))
    return path


def processor_class(family: str, backend: str) -> Any:
    """The class of transformers; which backend has the plain name changed with version 5."""
    transformers = pytest.importorskip("transformers")
    name = f"{NAMES[family]}ImageProcessor"
    plain_is_torchvision = hasattr(transformers, f"{name}Pil")
    if backend == "pil":
        return getattr(transformers, f"{name}Pil" if plain_is_torchvision else name)
    return getattr(transformers, name if plain_is_torchvision else f"{name}Fast")


def official_hw(
    size_hw: tuple[int, int], short_side: int, long_side: int, multiple: int
) -> tuple[int, int]:
    """The size rule of the official `datasets/transforms.py`; YOLOS floors to multiples of 16."""
    low, high = sorted(size_hw)
    short = min(short_side, round(long_side * low / high))
    pair = (short, int(short * high / low))
    height, width = pair if size_hw[0] == low else pair[::-1]
    return height // multiple * multiple, width // multiple * multiple


def report(record_property: Record, comparison: str, difference: float) -> None:
    record_property("comparison", comparison)
    record_property("difference", float(difference))
    record_property("unit", "grey levels")


@pytest.mark.parametrize(
    ("rule", "multiple", "short_side", "long_side"),
    [
        ("detr", 1, 800, 1333),
        ("detr", 1, 240, 400),
        ("yolos_16", 16, 800, 1333),
        ("yolos_16", 16, 512, 853),
        ("yolos_16", 16, 240, 400),
    ],
)
def test_evaluation_equals_the_official_pipelines(
    ten_pictures: list[Path],
    record_property: Record,
    rule: str,
    multiple: int,
    short_side: int,
    long_side: int,
) -> None:
    ours = Preprocessing(SizeRule(rule, short_side, long_side), IMAGENET_MEAN, IMAGENET_STD)
    largest = 0
    for path in ten_pictures:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        height, width = official_hw(
            (picture.height, picture.width), short_side, long_side, multiple
        )
        official = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        pixels = ours.apply(read_image(path))
        assert pixels.shape == official.shape
        largest = max(largest, int(np.abs(pixels.astype(int) - official).max()))
    report(record_property, f"resize {rule} {short_side}/{long_side}: PIL", largest)
    assert largest == 0


def levels_apart(ours: Preprocessing, theirs: Any, paths: list[Path]) -> float:
    """Largest difference of what the models get, in grey levels; the sizes must be equal."""
    # A grey level of what the model gets.
    level = torch.tensor(ours.std).view(3, 1, 1) * 255
    largest = 0.0
    for path in paths:
        image = read_image(path)
        expected = theirs(images=image, return_tensors="pt")["pixel_values"][0]
        pixels = torch.from_numpy(ours.apply(image))
        batch = CollatedImages.from_images([pixels], [image.shape[:2]], [0])
        got = batch.normalized(ours.mean, ours.std).pixels[0]
        assert got.shape == expected.shape
        largest = max(largest, float(((got - expected) * level).abs().max()))
    return largest


def assert_at_most_one_level(difference: float) -> None:
    """Pixels are whole levels apart; the rest is the rounding of normalised float32 values."""
    assert abs(difference - round(difference)) < 1e-3
    assert round(difference) <= 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", ["own 800/1333", "own 240/400", "fit 300", "square 320"])
def test_transformers_gives_the_same_by_the_file_that_is_written(
    ten_pictures: list[Path],
    folder: Path,
    record_property: Record,
    family: str,
    backend: str,
    rule: str,
) -> None:
    kind, _, sides = rule.partition(" ")
    name = {"own": "huggingface_16" if family == "yolos" else "huggingface"}.get(kind, kind)
    ours = Preprocessing(
        SizeRule(name, *(int(side) for side in sides.split("/"))), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    )
    path = write(folder, processor_json(ours, family))
    theirs = processor_class(family, backend).from_pretrained(folder)
    difference = levels_apart(ours, theirs, ten_pictures)
    report(record_property, f"{name} {sides}: {family}'s processor ({backend})", difference)
    assert_at_most_one_level(difference)
    assert read_processor(path, family) == (ours, ())


FORMS = {
    "a number and its cap": {"size": 240, "max_size": 300},
    "a number alone": {"size": 240},
    "sides with names": {"size": {"shortest_edge": 240, "longest_edge": 300}},
    "equal sides": {"size": {"height": 256, "width": 256}},
    "largest sides": {"size": {"max_height": 300, "max_width": 300}},
    "other mean": {"size": 240, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]},
    "not normalised": {"size": 240, "do_normalize": False},
    "not rescaled": {"size": 240, "do_rescale": False},
    "rescaled to 2": {"size": 240, "rescale_factor": 2 / 255},
    "rescaled to 2 alone": {"size": 240, "do_normalize": False, "rescale_factor": 2 / 255},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_file_means_what_transformers_does(
    ten_pictures: list[Path],
    folder: Path,
    record_property: Record,
    family: str,
    backend: str,
    form: str,
) -> None:
    values = {"feature_extractor_type": f"{NAMES[family]}FeatureExtractor", **FORMS[form]}
    if family == "rt_detr" and isinstance(values["size"], int):  # which it does not take
        values["size"] = {"shortest_edge": 240, "longest_edge": values.pop("max_size", 1333)}
    path = write(folder, values)
    theirs = processor_class(family, backend).from_pretrained(folder)
    ours, notes = read_processor(path, family)
    assert notes == ()
    difference = levels_apart(ours, theirs, ten_pictures)
    report(record_property, f"{form}: {family}'s processor ({backend})", difference)
    assert_at_most_one_level(difference)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_round_trips(folder: Path, family: str, backend: str) -> None:
    theirs = processor_class(family, backend)
    saved = folder / "preprocessor_config.json"
    theirs().save_pretrained(folder)
    assert read_processor(saved, family) == (default_preprocessing(family), ())
    sizes = {"shortest_edge": 480, "longest_edge": 640}
    changes = {"do_normalize": True, "do_pad": True}  # RT-DETR's does neither by default
    theirs(size=sizes, image_mean=[0.1, 0.2, 0.3], **changes).save_pretrained(folder)
    ours, notes = read_processor(saved, family)
    assert notes == ()
    before = json.loads(saved.read_text())
    write(folder, processor_json(ours, family))
    theirs.from_pretrained(folder).save_pretrained(folder)
    assert json.loads(saved.read_text()) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_picks_the_class_by_the_file(folder: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    write(folder, processor_json(default_preprocessing(family), family))
    found = transformers.AutoImageProcessor.from_pretrained(folder)
    assert type(found).__name__.startswith(f"{NAMES[family]}ImageProcessor")
