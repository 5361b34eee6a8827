"""A Hugging Face folder's preprocessor_config.json: how its pictures are resized and normalised.

What a key means and which value stands for a missing one is taken from the classes
DetrImageProcessor, YolosImageProcessor, DeformableDetrImageProcessor and RTDetrImageProcessor of
transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

BILINEAR = 2  # PIL.Image.Resampling.BILINEAR, as processors store it
RESCALE_FACTOR = 1 / 255

Side = Annotated[int, Field(gt=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Three = Field(min_length=3, max_length=3)

# By kind of detector: the processor, the rule by which it resizes to shortest_edge and
# longest_edge, and the official repository's rule, which is written as that one.
_TYPES = {
    "detr": "DetrImageProcessor",
    "yolos": "YolosImageProcessor",
    "deformable_detr": "DeformableDetrImageProcessor",
    "rt_detr": "RTDetrImageProcessor",
}
_RULES = {
    "detr": "huggingface",
    "yolos": "huggingface_16",
    "deformable_detr": "huggingface",
    "rt_detr": "huggingface",
}
_OFFICIAL = {"detr": "detr", "yolos": "yolos_16", "deformable_detr": "detr", "rt_detr": "detr"}
# By official rule, what the difference is.
_NEARLY = {
    "detr": "the long side of pictures that meet the cap may differ by a pixel, of narrow ones by "
    "half their aspect ratio",
    "yolos_16": "the long side of pictures that meet the cap may differ by a multiple of 16 pixels",
}
_FOLLOWED = re.compile(
    r"(Detr|Yolos|DeformableDetr|RTDetr)(FeatureExtractor|ImageProcessor(Fast|Pil)?)"
)
# What a missing key stands for where it is not what DETR's processor does.
_RT_DETR_DEFAULTS: dict[str, Any] = {"size": {"height": 640, "width": 640}, "do_normalize": False}


_UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def kind_of(numbers: Mapping[str, Any]) -> str:
    """Return the kind of detector, by which transformers names its processors."""
    if numbers["family"] != "deformable":
        return str(numbers["family"])
    return "rt_detr" if numbers["encoder"] == "hybrid" else "deformable_detr"


class _Processor(BaseModel):
    """The keys that say something about pixels, with the defaults of the processor classes."""

    model_config = ConfigDict(extra="ignore", strict=True)

    image_processor_type: str = ""
    feature_extractor_type: str = ""  # its name in old files
    do_resize: bool = True
    size: Side | dict[str, Side | None] = {"shortest_edge": 800, "longest_edge": 1333}
    max_size: Side | None = 1333  # beside a `size` that is a number
    resample: int = BILINEAR
    do_center_crop: bool = False
    do_rescale: bool = True
    rescale_factor: Positive = RESCALE_FACTOR
    do_normalize: bool = True
    image_mean: Number | Annotated[list[Number], Three] = list(IMAGENET_MEAN)
    image_std: Positive | Annotated[list[Positive], Three] = list(IMAGENET_STD)
    pad_size: Any = None


def read_processor(path: Path, kind: str) -> tuple[Preprocessing, tuple[str, ...]]:
    """Return the preprocessing that a preprocessor_config.json describes, and notes.

    What a missing key stands for, and whether sizes are floored to multiples of 16, follows from
    the processor that the file names, or where it names none from `kind`, see `kind_of`. A rescale
    factor other than 1/255 becomes part of mean and deviation. The notes, one line each, say what
    is not followed exactly.

    Raises DetrKitError, naming the file and the key, where the file is no json object, where a
    value is of a wrong type or out of range, and where it asks for what detr_kit does not do:
    other filters than bilinear, cropping, no resizing, or a size that is not one of
    shortest_edge and longest_edge, height = width, max_height = max_width.
    """
    processor, kind = _parse(path, kind)
    for key, supported in (("do_resize", True), ("do_center_crop", False), ("resample", BILINEAR)):
        value = getattr(processor, key)
        if value != supported:
            raise DetrKitError(f"{path}: key {key!r}: {value} is not supported, only {supported}")
    name = processor.image_processor_type or processor.feature_extractor_type
    mean, std = _mean_and_std(processor)
    notes = _notes(processor, name, kind)
    return Preprocessing(_size_rule(path, processor, kind), mean, std), notes


def _parse(path: Path, kind: str) -> tuple[_Processor, str]:
    """Return what the file says, and the kind of detector that its processor is for."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DetrKitError(f"{path}: not a readable json file") from error
    if not isinstance(values, dict):
        raise DetrKitError(f"{path}: expected a json object at the top")
    # null stands for a missing key; beside a number as `size` it once meant that there is no cap.
    given = {k: v for k, v in values.items() if v is not None or k == "max_size"}
    name = given.get("image_processor_type") or given.get("feature_extractor_type")
    if name:
        kind = _kind_named(str(name))
    defaults = _RT_DETR_DEFAULTS if kind == "rt_detr" else {}
    try:
        return _Processor.model_validate({**defaults, **given}), kind
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise DetrKitError(f"{path}: key {key!r}: cannot use the value {given[key]!r}") from error


def _kind_named(name: str) -> str:
    """Return the kind that a processor is for; those that are not known are read as DETR's."""
    for kind, processor in _TYPES.items():
        if name.startswith(processor.removesuffix("ImageProcessor")):
            return kind
    return "detr"


def _size_rule(path: Path, processor: _Processor, kind: str) -> SizeRule:
    size = processor.size
    if isinstance(size, int):
        # RT-DETR's makes no pair of a number, and fails.
        size = {"shortest_edge": size, "longest_edge": processor.max_size}
        if kind == "rt_detr":
            del size["longest_edge"]
    sides = {key: side for key, side in size.items() if side is not None}
    try:
        if sides.keys() == {"shortest_edge", "longest_edge"}:
            return SizeRule(_RULES[kind], sides["shortest_edge"], sides["longest_edge"])
        for rule, keys in (("square", {"height", "width"}), ("fit", {"max_height", "max_width"})):
            if sides.keys() == keys and len(set(sides.values())) == 1:
                return SizeRule(rule, next(iter(sides.values())))
    except DetrKitError as error:
        raise DetrKitError(f"{path}: key 'size': {error}") from error
    raise DetrKitError(
        f"{path}: key 'size': {size} is not supported; it must have shortest_edge and "
        "longest_edge, equal height and width, or equal max_height and max_width"
    )


def _mean_and_std(
    processor: _Processor,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return both for pixels in [0, 1], whatever the file rescales pixels to."""
    highest = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    if not processor.do_normalize:
        return (0.0, 0.0, 0.0), (1 / highest,) * 3
    return _each(processor.image_mean, highest), _each(processor.image_std, highest)


def _each(values: float | list[float], highest: float) -> tuple[float, float, float]:
    red, green, blue = values if isinstance(values, list) else [values] * 3
    return red / highest, green / highest, blue / highest


def _notes(processor: _Processor, name: str, kind: str) -> tuple[str, ...]:
    notes = []
    if name and not _FOLLOWED.fullmatch(name):
        notes.append(f"{name} is not known; its keys are read as a {_TYPES[kind]}'s")
    if processor.pad_size is not None:
        notes.append("pad_size is not followed: pictures are padded to the largest of their batch")
    return tuple(notes)


def default_preprocessing(kind: str) -> Preprocessing:
    """Return what transformers does with pictures where a folder says nothing, see `kind_of`."""
    if kind == "rt_detr":
        return Preprocessing(SizeRule("square", 640), *_UNCHANGED)
    return Preprocessing(SizeRule(_RULES[kind], 800, 1333), IMAGENET_MEAN, IMAGENET_STD)


def processor_json(preprocessing: Preprocessing, kind: str) -> dict[str, Any]:
    """Return a preprocessor_config.json that transformers 4 and 5 follow.

    `read_processor` reads it back as the same, but that the size rules `detr` and `yolos_16` become
    the processor's own, see `processor_notes`. Raises DetrKitError where the processor of `kind`
    has no such rule, or no cap is set.
    """
    return {
        "image_processor_type": _TYPES[kind],
        "format": "coco_detection",
        "do_resize": True,
        "size": _size_json(preprocessing.size_rule, kind),
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": RESCALE_FACTOR,
        "do_normalize": (preprocessing.mean, preprocessing.std) != _UNCHANGED,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_pad": True,
    }


def _size_json(size_rule: SizeRule, kind: str) -> dict[str, int]:
    rule, short_side, long_side = size_rule.rule, size_rule.short_side, size_rule.long_side
    if rule == "square":
        return {"height": short_side, "width": short_side}
    if rule == "fit":
        return {"max_height": short_side, "max_width": short_side}
    if rule not in (_RULES[kind], _OFFICIAL[kind]):
        raise DetrKitError(f"{_TYPES[kind]} of transformers has no size rule like {rule}")
    if long_side is None:
        raise DetrKitError(f"{_TYPES[kind]} of transformers needs a cap of the long side")
    return {"shortest_edge": short_side, "longest_edge": long_side}


def processor_notes(preprocessing: Preprocessing) -> tuple[str, ...]:
    """Say, one line each, where `processor_json` does not give exactly the same pictures."""
    rule = preprocessing.size_rule.rule
    return (f"size rule {rule}: in transformers, {_NEARLY[rule]}",) if rule in _NEARLY else ()
