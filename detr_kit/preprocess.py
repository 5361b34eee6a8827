"""From any picture a user may hand over to the pixels that a detector sees.

Pictures are RGB uint8 (H, W, 3). Sizes are (height, width).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from detr_kit.errors import DetrKitError

if TYPE_CHECKING:
    from detr_kit.config import ImageSizeConfig

ImageInput = str | Path | Image.Image | np.ndarray
SizeHW = tuple[int, int]

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
    """Resize (H, W, 3) uint8 bilinearly, with antialiasing where a side shrinks.

    This is Pillow's bilinear filter, the one the official recipes train and evaluate with. Where
    no side shrinks, antialiasing is idle, and OpenCV computes the same at a tenth of the time, at
    most 1 of 255 levels off. OpenCV's own ways of shrinking are tens of levels off at edges.
    """
    height, width = size_hw
    if image.shape[:2] == (height, width):
        return image
    if height >= image.shape[0] and width >= image.shape[1]:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class SizeRule:
    """Which size a picture is resized to.

    - `detr`: the short side becomes `short_side`; where the long side would pass `long_side`, the
      short side is round(long_side * short / long) first; the other side is int(side * ratio).
    - `yolos_16`: the same, then both sides are floored to multiples of 16.
    - `huggingface`: as DETR's image processor in transformers: the other side is computed from
      the capped short side before its rounding, so that the long side meets the cap.
    - `huggingface_16`: as YOLOS's image processor there: the same, floored to multiples of 16.
    - `fit`: scaled, up too, until a side meets `short_side` and the other is at most that.
    - `square`: both sides become `short_side`; the aspect ratio is not kept.

    `long_side` None is no cap; `fit` and `square` do not use it.
    """

    rule: str
    short_side: int
    long_side: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in _SIZE_RULES:
            raise DetrKitError(f"unknown size rule {self.rule!r}; one of {', '.join(_SIZE_RULES)}")
        if self.short_side < 1 or (self.long_side is not None and self.long_side < 1):
            raise DetrKitError("the sides of a size rule must be at least 1")
        if self.rule.endswith("_16") and min(self.short_side, self.long_side or 16) < 16:
            raise DetrKitError(f"the sides of the size rule {self.rule} must be at least 16")

    def target_hw(self, size_hw: SizeHW) -> SizeHW:
        """Return the (height, width) that a picture of `size_hw` is resized to."""
        return _SIZE_RULES[self.rule](size_hw, self.short_side, self.long_side)


def _detr_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    exact = _capped_side(size_hw, short_side, long_side)
    # A stripe whose short side rounds to 0 keeps the cap on its long side.
    return _around(size_hw, round(exact), round(exact) or exact)


def _huggingface_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    exact = _capped_side(size_hw, short_side, long_side)
    return _around(size_hw, round(exact), exact)


def _capped_side(size_hw: SizeHW, short_side: int, long_side: int | None) -> float:
    """Return the short side at which the long side keeps the cap, at most `short_side`."""
    low, high = min(size_hw), max(size_hw)
    if long_side is not None and high / low * short_side > long_side:
        return long_side * low / high
    return short_side


def _around(size_hw: SizeHW, short_side: int, factor: float) -> SizeHW:
    """Give the short side `short_side` and the other int(factor * ratio), each at least 1."""
    height, width = size_hw
    if min(size_hw) == short_side:
        return size_hw
    if width < height:
        return max(int(factor * height / width), 1), max(short_side, 1)
    return max(short_side, 1), max(int(factor * width / height), 1)


def _yolos_16_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    return _floored_16(*_detr_hw(size_hw, short_side, long_side))


def _huggingface_16_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    height, width = size_hw
    if width >= height:
        return _floored_16(*_huggingface_hw(size_hw, short_side, long_side))
    # Unlike DETR's, YOLOS's processor has no exception for upright pictures of the right width.
    exact = _capped_side(size_hw, short_side, long_side)
    return _floored_16(int(exact * height / width), round(exact))


def _floored_16(height: int, width: int) -> SizeHW:
    return max(height // 16 * 16, 16), max(width // 16 * 16, 16)


def _fit_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    height, width = size_hw
    scale = min(short_side / height, short_side / width)
    return max(int(height * scale), 1), max(int(width * scale), 1)


def _square_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    return short_side, short_side


_SIZE_RULES: dict[str, Callable[[SizeHW, int, int | None], SizeHW]] = {
    "detr": _detr_hw,
    "yolos_16": _yolos_16_hw,
    "huggingface": _huggingface_hw,
    "huggingface_16": _huggingface_16_hw,
    "fit": _fit_hw,
    "square": _square_hw,
}


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
