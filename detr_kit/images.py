"""Any picture a user may hand over as RGB pixels (H, W, 3) uint8; sizes are (height, width)."""

from __future__ import annotations

import io
import re
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, Union

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from detr_kit.errors import DetrKitError
from detr_kit.sizes import SizeHW

if TYPE_CHECKING:
    from torch import Tensor


class ImageError(DetrKitError):
    """A picture is missing, damaged, of a kind that is not read, or of another size than said.

    `name` is the picture's: the path as it was given, or what else a message calls it.
    """

    def __init__(self, name: str | Path, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = str(name)
        self.args = (self.name, reason)  # from which a copy is made in another process

    def __str__(self) -> str:
        return f"{self.name}: {self.args[1]}"


ImageInput = Union[str, Path, Image.Image, np.ndarray, "Tensor"]

EXIF_ORIENTATION = 0x0112
# Orientation to what shows the picture upright; 1 is upright, other values mean nothing.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# OpenCV's ways to decode a JPEG at one part in 8, 4 or 2 of its sides.
_REDUCED = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")  # a Path has one slash where a URL has two
URL_REFUSED = "URLs are not fetched; save what it names to a file first"
# What a JPEG ends with; cameras write more behind it.
_JPEG_END, _JPEG_TAIL = b"\xff\xd9", 4096
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What Pillow raises on files that are damaged or not pictures.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    struct.error,
)


def read_image(source: ImageInput, *, expected_size_hw: SizeHW | None = None) -> np.ndarray:
    """Return the RGB uint8 (H, W, 3) pixels of a file, a PIL image, an array or a tensor.

    Files are decoded by Pillow, so that a path, the PIL image opened from it and the array made
    of that give the same pixels. What is not 8-bit RGB becomes so:

    - gray (L, 1, I;16) is repeated in the three channels, palettes (P) are looked up, CMYK,
      YCbCr and LAB are converted without colour profiles;
    - alpha (LA, RGBA, PA, a transparent colour) is composited on white, as a viewer shows it;
    - 16 bits are cut to their high byte (65535 becomes 255), the darkest and brightest value of a
      picture are not stretched, a transparent colour of theirs is ignored; floating-point pictures
      are refused.

    Arrays are (H, W), (H, W, 1), (H, W, 2) gray and alpha, (H, W, 3) RGB or (H, W, 4) RGBA, of
    uint8, uint16 or bool; they carry no EXIF orientation. Torch's tensors are (1, H, W) gray or
    (3, H, W) RGB on any device, of uint8 or of floats in [0, 1], as torchvision makes them.

    The EXIF orientation of files and PIL images is applied. Where `expected_size_hw` is given (the
    size in an annotation file), it is applied if the picture then has this size, and left out if
    the picture has it without.

    Raises ImageError, naming the file, for unreadable or truncated files, URLs, pictures of neither
    size, kinds that are not listed here, and more pixels than Pillow's limit for decompression
    bombs (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    name = _name_of(source)
    if isinstance(source, np.ndarray):
        picture = _from_array(source)
    elif is_tensor(source):
        picture = _from_array(_array_of(source))
    elif isinstance(source, Image.Image):
        picture = _decoded(source, name)
    elif isinstance(source, (str, Path)):
        picture = _opened(source)
    else:
        raise DetrKitError(
            "an image must be a path, a PIL image, a numpy array or a tensor, not "
            f"{type(source).__name__}"
        )
    transpose = _upright(picture, expected_size_hw, name)
    upright = picture if transpose is None else picture.transpose(transpose)
    return np.array(to_rgb(upright, name))


def read_for_training(
    path: str | Path, *, expected_size_hw: SizeHW | None = None, scale: float = 1.0
) -> np.ndarray:
    """Return the pixels of a file as `read_image` does, but faster where it is a JPEG in colour.

    OpenCV decodes it, to the same pixels, in half of the memory. With a `scale` of 1/2, 1/4, 1/8
    or less, it is decoded at 1/2, 1/4 or 1/8 of its size, rounded up: several times as fast, but
    not the same pixels as resizing.
    """
    with _reading(path) as content, Image.open(io.BytesIO(content)) as header:
        _require_harmless(header, path)
        plain = header.format == "JPEG" and header.mode == "RGB"
        transpose = _upright(header, expected_size_hw, str(path)) if plain else None
        flags = _opencv_flags(header, scale, turned=transpose is not None)
        pixels = _decoded_by_opencv(content, flags) if plain else None
    if pixels is None:
        return read_image(path, expected_size_hw=expected_size_hw)
    if transpose is None:
        return pixels
    return np.array(Image.fromarray(pixels).transpose(transpose))


def _opencv_flags(header: Image.Image, scale: float, *, turned: bool) -> int:
    """Return how OpenCV shall decode a JPEG: in full, or at the smallest part that suffices.

    A reduced size is rounded up, and what sticks out is at the right and at the bottom. A picture
    that will be turned must have nothing that sticks out: it would come before the picture.
    """
    for part, flags in _REDUCED:
        if scale <= 1 / part and not (turned and (header.width % part or header.height % part)):
            return flags
    return cv2.IMREAD_COLOR


def _decoded_by_opencv(content: bytes, flags: int) -> np.ndarray | None:
    """Return the pixels of a JPEG in colour, None where Pillow shall read the file."""
    if _JPEG_END not in content[-_JPEG_TAIL:]:
        return None  # OpenCV would fill up what is missing without a word
    encoded = np.frombuffer(content, dtype=np.uint8)
    try:
        pixels = cv2.imdecode(encoded, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # its own limits
        return None
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _name_of(source: ImageInput) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return str(getattr(source, "filename", "") or "image")


def _opened(path: str | Path) -> Image.Image:
    # Pillow keeps files of several frames open unless told to close them.
    with _reading(path) as content, Image.open(io.BytesIO(content)) as picture:
        _require_harmless(picture, path)
        return _decoded(picture, str(path))


@contextmanager
def _reading(path: str | Path) -> Iterator[bytes]:
    """Yield the content of a file; name it in whatever goes wrong with it and in the block.

    It is read at once: Pillow would come back to the file for every piece.
    """
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            # Opening a pipe would wait for someone who writes.
            raise ImageError(path, "cannot read the image: not a regular file")
        yield Path(path).read_bytes()
    except FileNotFoundError as error:
        if is_url(path):
            raise ImageError(path, URL_REFUSED) from error
        raise ImageError(path, "no such image file") from error
    except TOO_LARGE as error:
        raise ImageError(path, f"image too large: {one_line(error)}") from error
    except UNREADABLE as error:
        raise ImageError(path, f"cannot read the image: {reason_of(error)}") from error


def _require_harmless(picture: Image.Image, path: str | Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise ImageError(
            path,
            f"image too large: {picture.width}x{picture.height} are more than {limit} "
            "pixels, which could be a decompression bomb",
        )
    if picture.format == "EPS":
        raise ImageError(path, "cannot read the image: EPS is a program that draws")


def _decoded(picture: Image.Image, name: str) -> Image.Image:
    """Read all pixels, so that a damaged file shows itself here."""
    try:
        picture.load()
    except TOO_LARGE as error:
        raise ImageError(name, f"image too large: {one_line(error)}") from error
    except UNREADABLE as error:
        raise ImageError(name, f"cannot read the image: {reason_of(error)}") from error
    if min(picture.size) < 1:
        raise ImageError(name, "the image has no pixels")
    return picture


def reason_of(error: Exception) -> str:
    """Say why a picture could not be read."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture of a known format"
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def is_url(name: str | Path) -> bool:
    """Whether a name that is no file's looks like a URL."""
    return _URL.match(str(name)) is not None


def is_tensor(source: object) -> TypeGuard[Tensor]:
    """Whether something is a tensor of torch, which this does not import."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _array_of(tensor: Tensor) -> np.ndarray:
    """Return the (H, W, 1 or 3) uint8 pixels of a (1 or 3, H, W) tensor."""
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise DetrKitError(
            f"an image tensor must be (1, H, W) or (3, H, W), got shape {tuple(tensor.shape)}"
        )
    pixels = tensor.detach().cpu().movedim(0, 2)
    if pixels.is_floating_point():
        # NaN fails the comparison too.
        if pixels.numel() and not (pixels.min() >= 0 and pixels.max() <= 1):
            raise DetrKitError(
                "an image tensor of floats must be in [0, 1]; normalising is the detector's"
            )
        return np.asarray((pixels.double() * 255).round().byte())
    return pixels.numpy()


def _from_array(array: np.ndarray) -> Image.Image:
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or 0 in array.shape:
        raise DetrKitError(
            f"an image array must be (H, W) or (H, W, 1 to 4), got shape {array.shape}"
        )
    if array.dtype.newbyteorder("=") == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise DetrKitError(f"an image array must be uint8, uint16 or bool, got {array.dtype}")
    if channels == 1:
        array = array.reshape(array.shape[:2])
    return Image.fromarray(np.ascontiguousarray(array))


def _upright(
    picture: Image.Image, expected_size_hw: SizeHW | None, name: str
) -> Image.Transpose | None:
    """Return what applies the EXIF orientation; None too where the size as stored is expected."""
    stored_hw = (picture.height, picture.width)
    orientation = orientation_of(picture)
    turned_hw = stored_hw[::-1] if orientation in (5, 6, 7, 8) else stored_hw
    if expected_size_hw is None or turned_hw == tuple(expected_size_hw):
        return UPRIGHT.get(orientation)
    if stored_hw == tuple(expected_size_hw):
        return None
    raise ImageError(
        name,
        f"the image is {turned_hw[1]}x{turned_hw[0]} (width x height), the annotation file says "
        f"{expected_size_hw[1]}x{expected_size_hw[0]}",
    )


def orientation_of(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or it cannot be read."""
    try:
        return picture.getexif().get(EXIF_ORIENTATION, 1)
    except UNREADABLE:
        # Damaged metadata say nothing about the pixels.
        return 1


def to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """Convert a picture to mode RGB; see `read_image`. Raises ImageError naming it."""
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        return picture
    if mode == "F":
        raise ImageError(name, "floating-point pictures are not supported")
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
        raise ImageError(name, f"pictures of mode {mode} are not supported") from error
