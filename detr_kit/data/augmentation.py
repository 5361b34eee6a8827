"""Which pipeline a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from detr_kit.data.pipelines import Pipeline, ResizePipeline, ViewPipeline
from detr_kit.data.views import official_view, relative_view
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import Preprocessing, preprocessing_from
from detr_kit.sizes import SizeRule

if TYPE_CHECKING:
    import albumentations

    from detr_kit.config import ImageSizeConfig


def eval_pipeline(preprocessing: Preprocessing) -> ResizePipeline:
    """Return the pipeline of evaluation and prediction."""
    return ResizePipeline(preprocessing)


def train_pipeline(augmentation: str | Mapping[str, Any], image_size: ImageSizeConfig) -> Pipeline:
    """Return the training pipeline of a name, or of what `albumentations.to_dict` describes.

    - `detr`, `yolos`: flip; then with equal chance resize to one of the training sizes, or resize
      the short side to 400, 500 or 600 without a cap, crop with sides of 384 to 600 pixels, and
      resize to one of the training sizes. Boxes are cut to the crop, and stay where any part of
      them does. In `yolos`, sizes are floored to multiples of 16. Sources: DETR paper, appendix
      A.4; the official repositories' `datasets/coco.py`. The numbers of pixels are the official
      ones at any training size: for sizes far from 480-800 use `small_data`.
    - `small_data`: flip; a crop of 0.6 to 1 of the picture, stretched by up to 1.2, for half the
      pictures; brightness, contrast and colour. All of it is relative to the picture. Boxes of
      which less than a tenth is visible are dropped.
    - `strong`: see `detr_kit.data.strong`.
    - `none`: resized as in evaluation.
    - a mapping: the transforms of albumentations, then resized to one of the training sizes.

    Raises DetrKitError for an unknown name and for transforms that cannot be built.
    """
    if isinstance(augmentation, Mapping):
        from detr_kit.data.compose import AlbumentationsPipeline, compose_from_dict

        compose = compose_from_dict(augmentation, "data.augmentation")
        return AlbumentationsPipeline(compose, train_rules(image_size))
    name = augmentation
    rules = train_rules(image_size, name)
    if name == "none":
        return ResizePipeline(preprocessing_from(image_size))
    if name in ("detr", "yolos"):
        return ViewPipeline(partial(official_view, rules=rules))
    if name == "small_data":
        draw = partial(relative_view, rules=rules, min_scale=0.6, max_stretch=1.2)
        return ViewPipeline(draw, min_visibility=0.1, recolour=_slight_colours())
    if name == "strong":
        from detr_kit.data.strong import strong_pipeline

        return strong_pipeline(rules)
    raise DetrKitError(
        f"unknown augmentation {name!r}; one of 'detr', 'yolos', 'small_data', 'strong', 'none'"
    )


def train_rules(image_size: ImageSizeConfig, name: str = "") -> tuple[SizeRule, ...]:
    """Return the rules of which training picks one for each picture."""
    rule = "yolos_16" if name == "yolos" else image_size.rule
    sides = image_size.train_short_sides or (image_size.short_side,)
    cap = image_size.train_long_side or image_size.long_side
    return tuple(SizeRule(rule, side, cap) for side in sides)


def _slight_colours() -> albumentations.Compose:
    from detr_kit.data.compose import A

    return A.Compose(
        [
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            A.HueSaturationValue(hue_shift_limit=8, sat_shift_limit=25, val_shift_limit=15, p=0.3),
        ]
    )
