"""What one picture file is and what is wrong with it, told without decoding where that can be."""

from __future__ import annotations

import errno
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageFile

from detr_kit.data.checks.picture_bytes import FileBytes, read_ends
from detr_kit.errors import DetrKitError
from detr_kit.images import (
    EXIF_ORIENTATION,
    TOO_LARGE,
    UPRIGHT,
    one_line,
    orientation_of,
    reason_of,
    to_rgb,
)
from detr_kit.sizes import SizeHW

# Decoders and metadata hold a file twice at most: larger ones could take more than 1 GiB. As many
# pixels as Pillow allows, in three uncompressed channels of 16 bits, still pass.
MAX_FILE_BYTES = 2**29 + 2**20
# What decoding may take, and what it takes at most, in bytes a pixel: the most were measured.
MAX_DECODING_BYTES = 2**30 - 2**26
_BYTES_A_PIXEL = {"PNG": 8, "GIF": 8, "BMP": 8, "AVIF": 14, "WEBP": 17, "JPEG2000": 20}
_OTHER_BYTES_A_PIXEL = 12  # progressive JPEG in CMYK, TIFF of 16 bits
# What all threads may decode at once; larger pictures wait for each other.
_LARGE_PIXELS = 2**22
# Formats whose end can be told from a few bytes; the few files of others are decoded.
_END_IS_KNOWN = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")


@dataclass(frozen=True)
class PictureFile:
    """What is known about a file: a fault, or size and EXIF orientation.

    `fault` and `remarks` are kinds of findings, each with its reason in words. `size_hw` is that
    of the pixels as decoded; `orientation` is still to be applied to them. `digest` is of all
    bytes of the file.
    """

    fault: tuple[str, str] | None = None
    size_hw: SizeHW = (0, 0)
    orientation: int = 1
    remarks: tuple[tuple[str, str], ...] = ()
    digest: bytes | None = None


@dataclass(frozen=True)
class Inspector:
    """Looks at files, from several threads; decodes all pixels with `decode`.

    Without, files are decoded only where their end seems to be missing, or where metadata stand
    behind the pixels. Pictures that may take 1 GiB to decode (from 84 million pixels of JPEG or
    TIFF, 59 of WebP, 50 of JPEG 2000) never are.
    """

    decode: bool
    # One thread decodes all large pictures: memory that is freed stays with the thread that took
    # it, so that with a lock in its place every thread would end up with a large picture's worth.
    _large: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def __call__(self, path: Path) -> PictureFile:
        """Return what is known about the file; nothing is raised, whatever it is."""
        fault, num_bytes = _fault_of_entry(path)
        if fault is not None:
            return PictureFile(fault)
        try:
            with path.open("rb") as file:
                ends = read_ends(file, num_bytes)
        except OSError as error:
            return PictureFile(("unreadable", f"cannot be read: {reason_of(error)}"))
        if ends.too_large is not None:
            return PictureFile(("huge", ends.too_large), digest=ends.digest)
        try:
            picture = Image.open(path)
            try:
                found = self._found(picture, ends)
            finally:
                # May be closed already, of which some releases of Pillow complain.
                with suppress(ValueError):
                    picture.close()
        except TOO_LARGE as error:
            found = PictureFile(("huge", f"too large: {one_line(error)}"))
        except Exception as error:
            # Decoders of damaged files raise what they like; none of it may end the check.
            found = PictureFile(_damage(error, ends))
        return replace(found, digest=ends.digest)

    def _found(self, picture: Image.Image, ends: FileBytes) -> PictureFile:
        if (fault := _refused(picture)) is not None:
            return PictureFile(fault)
        remarks = _remarks(picture, ends)
        # Pillow turns a TIFF while decoding, other formats it leaves to the caller.
        turns_itself = picture.format == "TIFF" and any(
            kind == "exif_turned" for kind, _ in remarks
        )
        wanted = (
            self.decode
            or turns_itself
            or ends.ends_early
            or ends.png_metadata_after_pixels
            or picture.format not in _END_IS_KNOWN
            or _tiff_strips_end_early(picture, ends.num_bytes)
        )
        num_pixels = picture.width * picture.height
        bytes_a_pixel = _BYTES_A_PIXEL.get(picture.format or "", _OTHER_BYTES_A_PIXEL)
        decoded = wanted and num_pixels * bytes_a_pixel <= MAX_DECODING_BYTES
        if num_pixels > _LARGE_PIXELS:
            size_hw, orientation = self._large.submit(
                _size_and_orientation, picture, decoded
            ).result()
        else:
            size_hw, orientation = _size_and_orientation(picture, decoded)
        return PictureFile(None, size_hw, orientation, remarks)


def _size_and_orientation(picture: Image.Image, decoded: bool) -> tuple[SizeHW, int]:
    """Return them, after decoding the pixels if asked to, and free what that took."""
    if decoded:
        picture.load()
    elif picture.format == "PNG":
        # Without the key, a PNG decodes itself to look for metadata behind the pixels, which the
        # caller has not found.
        picture.info.setdefault("exif", None)
    found = (picture.height, picture.width), orientation_of(picture)
    picture.close()
    return found


def _refused(picture: Image.Image) -> tuple[str, str] | None:
    """Return why a picture is not even decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        size = f"{picture.width}x{picture.height}"
        return "huge", f"too large: {size} are more than {limit} pixels"
    if isinstance(picture, ImageFile.StubImageFile):
        return "unreadable", f"cannot be read: Pillow has no decoder for {picture.format}"
    if min(picture.size) < 1:
        return "unreadable", "cannot be read: it has no pixels"
    if picture.format == "EPS":
        return "unreadable", "cannot be read: EPS is a program that draws"
    unsupported = _unsupported(picture.mode)
    return None if unsupported is None else ("unsupported_mode", unsupported)


def _fault_of_entry(path: Path) -> tuple[tuple[str, str] | None, int]:
    """Return what is wrong with the entry in its folder, and the number of bytes.

    Only regular files are ever opened: opening a pipe waits for someone who writes.
    """
    try:
        status = path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            broken = ": the link leads nowhere" if path.is_symlink() else ""
            return ("file_missing", f"no such file{broken}"), 0
        if error.errno == errno.ENAMETOOLONG:
            return ("file_missing", f"no such file: {reason_of(error)}"), 0
        return ("unreadable", f"cannot be read: {reason_of(error)}"), 0
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        return ("unreadable", f"cannot be read: it is {what}"), 0
    if size == 0:
        return ("zero_bytes", "0 bytes"), 0
    if size > MAX_FILE_BYTES:
        return ("huge", f"too large: the file has {size} bytes"), size
    return None, size


def _tiff_strips_end_early(picture: Image.Image, num_bytes: int) -> bool:
    tags = getattr(picture, "tag_v2", {})
    # Strips or tiles: where each starts, and how many bytes it has.
    for starts, lengths in ((273, 279), (324, 325)):
        pairs = zip(_numbers(tags.get(starts)), _numbers(tags.get(lengths)), strict=False)
        if any(start + length > num_bytes for start, length in pairs):
            return True
    return False


def _numbers(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return value if isinstance(value, tuple) else ()


def _damage(error: Exception, ends: FileBytes) -> tuple[str, str]:
    if ends.ends_early or "truncated" in str(error).lower():
        return "truncated", f"cut off after {ends.num_bytes} bytes: {reason_of(error)}"
    return "unreadable", f"cannot be read: {reason_of(error)}"


def _remarks(picture: Image.Image, ends: FileBytes) -> tuple[tuple[str, str], ...]:
    remarks = []
    # The other pictures of an MPO are made from the first: previews, depth, a stereo partner.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        remarks.append(("animated", "several frames; the first is used"))
    if picture.mode == "I":
        remarks.append(
            ("sixteen_bit", "32 bits a channel; the upper 8 of 16 are used, more is cut to 65535")
        )
    elif picture.mode.startswith("I;16") or ends.png_depth == 16 or _tiff_depth(picture) == 16:
        remarks.append(("sixteen_bit", "16 bits a channel; the upper 8 are used"))
    if picture.mode == "CMYK":
        remarks.append(("cmyk", "CMYK; converted without a colour profile"))
    if picture.format == "TIFF":
        orientation = getattr(picture, "tag_v2", {}).get(EXIF_ORIENTATION)
        if orientation in UPRIGHT:
            text = f"orientation {orientation} is applied while the TIFF is decoded"
            remarks.append(("exif_turned", text))
    return tuple(remarks)


def _tiff_depth(picture: Image.Image) -> int:
    """Return the bits a channel, which Pillow cuts to 8 without a word."""
    return max(_numbers(getattr(picture, "tag_v2", {}).get(258)), default=0)


@lru_cache
def _unsupported(mode: str) -> str | None:
    """Return why pictures of a mode are not read, by reading one pixel of it."""
    try:
        to_rgb(Image.new(mode, (1, 1)), "picture")
    except DetrKitError as error:
        return str(error).removeprefix("picture: ")
    return None
