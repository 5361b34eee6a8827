"""From the pixels of a picture to those that a detector sees.

Pictures are RGB uint8 (H, W, 3). Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from detr_kit.errors import DetrKitError
from detr_kit.images import one_line
from detr_kit.sizes import SizeHW, SizeRule

if TYPE_CHECKING:
    from detr_kit.config import ImageSizeConfig


def resize(image: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """Resize (H, W, 3) uint8 by Pillow's bilinear filter, with antialiasing where a side shrinks.

    The official recipes evaluate with this filter.
    """
    height, width = size_hw
    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


def resize_window(
    image: np.ndarray, window_xyxy: tuple[float, float, float, float], size_hw: SizeHW
) -> np.ndarray:
    """Shrink a window, of fractions of pixels too, to `size_hw` by the filter of `resize`."""
    height, width = size_hw
    picture = Image.fromarray(image)
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR, box=window_xyxy))


def resize_for_training(image: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """Resize in the same way, several times as fast where no side shrinks.

    Antialiasing is idle there, and OpenCV is 1 of 255 levels off at most, 2 where it enlarges more
    than 4 times, 0 on average: Pillow rounds twice. OpenCV's ways of shrinking are tens of levels
    off at edges.
    """
    height, width = size_hw
    if height < image.shape[0] or width < image.shape[1]:
        return resize(image, size_hw)
    # OpenCV computes four channels in vectors, but three one by one: the detour saves a third.
    padded = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    resized = cv2.resize(padded, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    return cv2.cvtColor(resized, cv2.COLOR_RGBA2RGB)


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint says about its input: the size rule, mean and standard deviation.

    `mean` and `std` are per channel of RGB in [0, 1]; normalising happens on the device.
    """

    size_rule: SizeRule
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Resize a (H, W, 3) uint8 picture by the size rule."""
        height, width = image.shape[:2]
        return resize(image, self.size_rule.target_hw((height, width)))

    def to_json(self) -> dict[str, Any]:
        rule = self.size_rule
        return {
            "size": {
                "rule": rule.rule,
                "short_side": rule.short_side,
                "long_side": rule.long_side,
            },
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_json` wrote; raises DetrKitError where a key is missing or wrong."""
        try:
            size = values["size"]
            long_side = size["long_side"]
            rule = SizeRule(
                str(size["rule"]),
                int(size["short_side"]),
                None if long_side is None else int(long_side),
            )
            return cls(rule, _three_floats(values["mean"]), _three_floats(values["std"]))
        except KeyError as error:
            raise DetrKitError(f"preprocessing: key {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise DetrKitError(f"preprocessing: {one_line(error)}") from error


def _three_floats(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def preprocessing_from(config: ImageSizeConfig) -> Preprocessing:
    """Return the preprocessing of evaluation and prediction that a run's config describes."""
    rule = SizeRule(config.rule, config.short_side, config.long_side)
    return Preprocessing(rule, config.mean, config.std)
