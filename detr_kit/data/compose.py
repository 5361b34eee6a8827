"""Pipelines of albumentations: any that a user brings, with boxes and labels kept together.

Importing this module imports albumentations, which takes seconds: import it where it is used.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

# Without it, the import of albumentations asks a package registry for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import numpy as np

from detr_kit.data.pictures import Pictures
from detr_kit.data.pipelines import Augmented, seed_compose
from detr_kit.data.views import MIN_VISIBLE_PIXELS, visible_boxes
from detr_kit.errors import DetrKitError
from detr_kit.images import one_line
from detr_kit.preprocess import resize_for_training
from detr_kit.sizes import SizeRule

# Said of pipelines that change colours alone, which is nothing to warn of.
_NO_GEOMETRY = "Got processor for bboxes, but no transform to process it"


class AlbumentationsPipeline:
    """Run an `albumentations.Compose` on the whole picture, then resize by one of `rules`.

    Boxes reach the transforms as (n, 5) arrays: normalised corners and the row of the box, by
    which labels follow; label fields of albumentations pass through a float encoding. Of the
    pipeline's own `bbox_params`, what drops boxes holds: `min_area`, `min_visibility`, `min_width`,
    `min_height` and `max_accept_ratio`; the others are set here.

    Raises DetrKitError for a `ReplayCompose`, and, on use, where a transform fails.
    """

    def __init__(self, compose: A.Compose, rules: tuple[SizeRule, ...]) -> None:
        if isinstance(compose, A.ReplayCompose):
            raise DetrKitError("a ReplayCompose cannot train: give a Compose of its transforms")
        self.compose = _with_boxes(compose)
        self.rules = rules

    def __call__(self, pictures: Pictures, index: int, *, seed: int) -> Augmented:
        rng = np.random.default_rng(seed)
        picture = pictures[index]
        height, width = picture.size_hw
        boxes = picture.boxes_xyxy.astype(np.float64) / (width, height, width, height)
        boxes, rows = visible_boxes(boxes, picture.size_hw)
        seed_compose(self.compose, rng)
        pixels = picture.read_for_training(1.0)
        try:
            image, left = self._applied(pixels, np.column_stack([boxes, rows.astype(np.float32)]))
        except Exception as error:  # whatever a transform makes of this picture
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise DetrKitError(f"{picture.source}: the augmentation failed: {reason}") from error
        boxes, kept = visible_boxes(left[:, :4].astype(np.float64), image.shape[:2])
        rule = self.rules[int(rng.integers(len(self.rules)))]
        resized = resize_for_training(image, rule.target_hw(image.shape[:2]))
        rows = left[kept, 4].astype(np.int64)
        return Augmented(
            np.ascontiguousarray(resized), boxes, picture.labels[rows], picture.rows[rows]
        )

    def _applied(self, image: np.ndarray, bboxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the picture, and corners and row (m, 5) float32 of what is left of the boxes."""
        result = self.compose(image=image, bboxes=bboxes)
        # Where no box is left, albumentations returns other shapes than (0, 5).
        left = np.asarray(result["bboxes"], dtype=np.float32)
        return _checked(result["image"]), left if left.size else left.reshape(0, 5)


def _with_boxes(compose: A.Compose) -> A.Compose:
    processor = compose.processors.get("bboxes")
    theirs = processor.params if processor else A.BboxParams(format="albumentations")
    params = A.BboxParams(
        format="albumentations",
        min_width=max(theirs.min_width, MIN_VISIBLE_PIXELS),
        min_height=max(theirs.min_height, MIN_VISIBLE_PIXELS),
        min_area=theirs.min_area,
        min_visibility=theirs.min_visibility,
        max_accept_ratio=theirs.max_accept_ratio,
        clip=True,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NO_GEOMETRY)
        return A.Compose(compose.transforms, bbox_params=params, p=compose.p)


def _checked(image: Any) -> np.ndarray:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        return image
    kind = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
    raise DetrKitError(
        f"the augmentation returned {kind}: it must leave pictures (H, W, 3) uint8; normalising "
        "and turning into tensors come later by themselves"
    )


def compose_from_dict(values: Mapping[str, Any], source: str) -> A.Compose:
    """Build what `albumentations.to_dict` describes; the outer key `transform` may be left out.

    Raises DetrKitError, naming `source`, for transforms that are unknown or cannot be built, and
    for arguments that they do not have.
    """
    described = values.get("transform", values)
    if not isinstance(described, Mapping):
        raise DetrKitError(f"{source}: expected a mapping of transforms, got {described!r}")
    described = {**described}
    if described.get("bbox_params"):
        # Labels are not passed as fields.
        described["bbox_params"] = {
            **described["bbox_params"],
            "format": "albumentations",
            "label_fields": None,
        }
    try:
        with warnings.catch_warnings():
            # Advice about other transforms; unknown arguments, which are only warned of, come next.
            warnings.simplefilter("ignore")
            built = A.from_dict({"transform": described})
    except KeyError as error:
        known = error.args[0] if error.args else error
        raise DetrKitError(f"{source}: no albumentations transform or key {known!r}") from error
    except Exception as error:  # each transform has its own ways of refusing its arguments
        name = _refused(described)
        raise DetrKitError(f"{source}: {name}: {_without_advertisement(error)}") from error
    _require_known_arguments(described, built, source)
    return built if isinstance(built, A.Compose) else A.Compose([built])


def _refused(described: Mapping[str, Any]) -> str:
    """Return the name of the innermost transform that cannot be built."""
    inner = next((inner for inner in described.get("transforms", ()) if not _builds(inner)), None)
    return str(described.get("__class_fullname__", "Compose")) if inner is None else _refused(inner)


def _builds(described: Mapping[str, Any]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            A.from_dict({"transform": described})
    # Whatever it raises, the whole pipeline has raised before, and that is told.
    except Exception:
        return False
    return True


def _without_advertisement(error: Exception) -> str:
    """Return what pydantic says without its model's name and its link."""
    text = re.sub(r"^\d+ validation errors? for \w+ ", "", one_line(error))
    return re.sub(r" \[type=.*?\]( For further information visit \S+)?", "", text)


def _require_known_arguments(described: Mapping[str, Any], built: Any, source: str) -> None:
    """Raise for an argument that a transform neither takes nor writes of itself."""
    known = {
        "__class_fullname__",
        *inspect.signature(type(built).__init__).parameters,
        *A.to_dict(built)["transform"],
    }
    unknown = [key for key in described if key not in known]
    if unknown:
        name = type(built).__name__
        raise DetrKitError(f"{source}: {name} has no argument {unknown[0]!r}")
    inner = zip(described.get("transforms", ()), getattr(built, "transforms", ()), strict=False)
    for inner_described, inner_built in inner:
        _require_known_arguments(inner_described, inner_built, source)
