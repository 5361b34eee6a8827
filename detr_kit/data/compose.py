"""Pipelines of albumentations: any that a user brings, with boxes and labels kept together.

Importing this module imports albumentations, which takes seconds: import it where it is used.
"""

from __future__ import annotations

import os
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
from detr_kit.preprocess import resize_for_training
from detr_kit.sizes import SizeRule

# Said of pipelines that change colours alone, which is nothing to warn of.
_NO_GEOMETRY = "Got processor for bboxes, but no transform to process it"


class AlbumentationsPipeline:
    """Run an `albumentations.Compose` on the whole picture, then resize by one of `rules`.

    Boxes reach the transforms as (n, 5) arrays: normalised corners and the row of the box, by
    which labels follow; label fields of albumentations pass through a float encoding. Of the
    pipeline's own `bbox_params`, `min_area` and `min_visibility` hold; the others are set here.
    """

    def __init__(self, compose: A.Compose, rules: tuple[SizeRule, ...]) -> None:
        self.compose = _with_boxes(compose)
        self.rules = rules

    def __call__(self, pictures: Pictures, index: int, *, seed: int) -> Augmented:
        rng = np.random.default_rng(seed)
        picture = pictures[index]
        height, width = picture.size_hw
        boxes = picture.boxes_xyxy.astype(np.float64) / (width, height, width, height)
        boxes, rows = visible_boxes(boxes, picture.size_hw)
        seed_compose(self.compose, rng)
        result = self.compose(
            image=picture.read_for_training(1.0),
            bboxes=np.column_stack([boxes, rows.astype(np.float32)]),
        )
        image = _checked(result["image"])
        # Where no box is left, albumentations returns other shapes than (0, 5).
        left = np.asarray(result["bboxes"], dtype=np.float32)
        left = left if left.size else left.reshape(0, 5)
        boxes, kept = visible_boxes(left[:, :4].astype(np.float64), image.shape[:2])
        rule = self.rules[int(rng.integers(len(self.rules)))]
        resized = resize_for_training(image, rule.target_hw(image.shape[:2]))
        labels = picture.labels[left[kept, 4].astype(np.int64)]
        return Augmented(np.ascontiguousarray(resized), boxes, labels)


def _with_boxes(compose: A.Compose) -> A.Compose:
    theirs = compose.processors.get("bboxes")
    params = A.BboxParams(
        format="albumentations",
        min_width=MIN_VISIBLE_PIXELS,
        min_height=MIN_VISIBLE_PIXELS,
        min_area=theirs.params.min_area if theirs else 0.0,
        min_visibility=theirs.params.min_visibility if theirs else 0.0,
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

    Raises DetrKitError, naming `source`, for transforms that are unknown or cannot be built.
    """
    described = values.get("transform", values)
    try:
        with warnings.catch_warnings():
            # Arguments that a transform does not know would be dropped with a warning.
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", _NO_GEOMETRY)
            compose = A.from_dict({"transform": _without_boxes(described)})
    except KeyError as error:
        known = error.args[0] if error.args else error
        raise DetrKitError(f"{source}: no albumentations transform or key {known}") from error
    except Exception as error:  # each transform has its own ways of refusing its arguments
        reason = " ".join(str(error).split())
        raise DetrKitError(f"{source}: {reason or type(error).__name__}") from error
    return compose if isinstance(compose, A.Compose) else A.Compose([compose])


def _without_boxes(described: Any) -> Any:
    """Keep of the bbox_params only what is used: labels are not passed as fields."""
    if not isinstance(described, Mapping):
        raise DetrKitError(f"expected a mapping of transforms, got {described!r}")
    params = described.get("bbox_params")
    if not params:
        return dict(described)
    kept = {key: params[key] for key in ("min_area", "min_visibility") if key in params}
    return {**described, "bbox_params": {"format": "albumentations", **kept}}
