"""What a page takes from those who use it, and how their pictures are read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detr_kit.errors import DetrKitError
from detr_kit.images import TOO_LARGE, UNREADABLE, ImageError, read_image, reason_of


@dataclass(frozen=True)
class Limits:
    """The most that is taken: bytes of a file, pixels of a picture, pictures that may wait.

    Raises DetrKitError for a limit below 1, and for more pixels than Pillow's own limit
    (`PIL.Image.MAX_IMAGE_PIXELS`), above which nothing is read.
    """

    file_bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    waiting: int = 16

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise DetrKitError(f"limits of the page: {name} must be at least 1, got {value}")
        most = Image.MAX_IMAGE_PIXELS
        if most is not None and self.pixels > most:
            raise DetrKitError(
                f"limits of the page: pixels must be at most {most:,}, above which Pillow takes "
                f"a picture for a decompression bomb, got {self.pixels:,}"
            )


def read_limited(path: Path, limits: Limits) -> np.ndarray:
    """Return the RGB uint8 (H, W, 3) pixels of a file that anyone may have sent.

    The number of pixels is taken from the file's head, before any of them is decoded. Raises
    ImageError for too many, and for what `read_image` refuses; it is named without its folder,
    which is of no concern to those who see the message.
    """
    if not path.is_file():  # opening a pipe would wait for someone who writes
        raise ImageError(path.name, "no such image file")
    at_most = f"at most {limits.pixels / 1e6:g} million are taken"
    try:
        width, height = _size_wh_in_head(path)
    except TOO_LARGE as error:
        raise ImageError(path.name, f"image too large: far too many pixels; {at_most}") from error
    except UNREADABLE as error:
        raise ImageError(path.name, f"cannot read the image: {reason_of(error)}") from error
    if width * height > limits.pixels:
        raise ImageError(path.name, f"image too large: {width} x {height} pixels; {at_most}")
    try:
        return read_image(path)
    except ImageError as error:
        raise ImageError(path.name, str(error.args[1])) from error


def _size_wh_in_head(path: Path) -> tuple[int, int]:
    with warnings.catch_warnings():
        # The user is told on the page; the terminal has no use for it.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as head:
            return head.size
