"""From any picture a user may hand over to the pixels that a detector sees.

Pictures are RGB uint8 (H, W, 3). Sizes are (height, width).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from detr_kit.errors import DetrKitError
from detr_kit.sizes import SizeHW, SizeRule

if TYPE_CHECKING:
    from detr_kit.config import ImageSizeConfig

ImageInput = str | Path | Image.Image | np.ndarray

EXIF_ORIENTATION = 0x0112
# Orientation to what shows the picture upright; 1 is upright, other values mean nothing.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What Pillow raises on files that are damaged or not pictures.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    struct.error,
)


def read_image(source: ImageInput, *, expected_size_hw: SizeHW | None = None) -> np.ndarray:
    """Return the RGB uint8 (H, W, 3) pixels of a file, a PIL image or an array.

    Files are decoded by Pillow, so that a path, the PIL image opened from it and the array made
    of that give the same pixels. What is not 8-bit RGB becomes so:

    - gray (L, 1, I;16) is repeated in the three channels, palettes (P) are looked up, CMYK,
      YCbCr and LAB are converted without colour profiles;
    - alpha (LA, RGBA, PA, a transparent colour) is composited on white, as a viewer shows it;
    - 16 bits are cut to their high byte (65535 becomes 255), the darkest and brightest value of a
      picture are not stretched; floating-point pictures are refused.

    Arrays are (H, W), (H, W, 1), (H, W, 2) gray and alpha, (H, W, 3) RGB or (H, W, 4) RGBA, of
    uint8, uint16 or bool; they carry no EXIF orientation.

    The EXIF orientation of files and PIL images is applied. Where `expected_size_hw` is given (the
    size in an annotation file), it is applied if the picture then has this size, and left out if
    the picture has it without.

    Raises DetrKitError, naming the file, for unreadable or truncated files, pictures of neither
    size, kinds that are not listed here, and sizes that Pillow takes for decompression bombs.
    """
    name = _name_of(source)
    if isinstance(source, np.ndarray):
        picture = _from_array(source)
    elif isinstance(source, Image.Image):
        picture = _decoded(source, name)
    elif isinstance(source, (str, Path)):
        picture = _opened(source)
    else:
        raise DetrKitError(
            f"an image must be a path, a PIL image or a numpy array, not {type(source).__name__}"
        )
    return np.array(_to_rgb(_oriented(picture, expected_size_hw, name), name))


def _name_of(source: ImageInput) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return str(getattr(source, "filename", "") or "image")


def _opened(path: str | Path) -> Image.Image:
    try:
        # Pillow keeps files of several frames open unless told to close them.
        with Image.open(path) as picture:
            return _decoded(picture, str(path))
    except FileNotFoundError as error:
        raise DetrKitError(f"{path}: no such image file") from error
    except _TOO_LARGE as error:
        raise DetrKitError(f"{path}: image too large: {_one_line(error)}") from error
    except _UNREADABLE as error:
        raise DetrKitError(f"{path}: cannot read the image: {_reason(error)}") from error


def _decoded(picture: Image.Image, name: str) -> Image.Image:
    """Read all pixels, so that a damaged file shows itself here."""
    try:
        picture.load()
    except _UNREADABLE as error:
        raise DetrKitError(f"{name}: cannot read the image: {_reason(error)}") from error
    if min(picture.size) < 1:
        raise DetrKitError(f"{name}: the image has no pixels")
    return picture


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture of a known format"
    return (error.strerror if isinstance(error, OSError) else None) or _one_line(error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _from_array(array: np.ndarray) -> Image.Image:
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or 0 in array.shape:
        raise DetrKitError(
            f"an image array must be (H, W) or (H, W, 1 to 4), got shape {array.shape}"
        )
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise DetrKitError(f"an image array must be uint8, uint16 or bool, got {array.dtype}")
    if channels == 1:
        array = array.reshape(array.shape[:2])
    return Image.fromarray(np.ascontiguousarray(array))


def _oriented(picture: Image.Image, expected_size_hw: SizeHW | None, name: str) -> Image.Image:
    """Apply the EXIF orientation, unless only the picture as stored has the expected size."""
    stored_hw = (picture.height, picture.width)
    orientation = _orientation(picture)
    turned_hw = stored_hw[::-1] if orientation in (5, 6, 7, 8) else stored_hw
    if expected_size_hw is None or turned_hw == tuple(expected_size_hw):
        return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture
    if stored_hw == tuple(expected_size_hw):
        return picture
    raise DetrKitError(
        f"{name}: the image is {turned_hw[1]}x{turned_hw[0]} (width x height), the annotation "
        f"file says {expected_size_hw[1]}x{expected_size_hw[0]}"
    )


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(EXIF_ORIENTATION, 1)
    except _UNREADABLE:
        # Damaged metadata say nothing about the pixels.
        return 1


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        return picture
    if mode == "F":
        raise DetrKitError(f"{name}: floating-point pictures are not supported")
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(picture).clip(0, 65535).astype(np.uint16)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    try:
        if "transparency" in picture.info or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            picture = Image.alpha_composite(white, picture)
        return picture.convert("RGB")
    except ValueError as error:
        raise DetrKitError(f"{name}: pictures of mode {mode} are not supported") from error


def resize(image: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """Resize (H, W, 3) uint8 by Pillow's bilinear filter, with antialiasing where a side shrinks.

    The official recipes evaluate with this filter.
    """
    height, width = size_hw
    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


def resize_for_training(image: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """Resize in the same way, several times as fast where no side shrinks.

    Antialiasing is idle there, and OpenCV is at most 1 of 255 levels off, 0 on average: Pillow
    rounds twice. OpenCV's ways of shrinking are tens of levels off at edges.
    """
    height, width = size_hw
    if height < image.shape[0] or width < image.shape[1]:
        return resize(image, size_hw)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)


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
            raise DetrKitError(f"preprocessing: {_one_line(error)}") from error


def _three_floats(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def preprocessing_from(config: ImageSizeConfig) -> Preprocessing:
    """Return the preprocessing of evaluation and prediction that a run's config describes."""
    rule = SizeRule(config.rule, config.short_side, config.long_side)
    return Preprocessing(rule, config.mean, config.std)
