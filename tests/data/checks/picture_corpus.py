"""Small picture files, each with one thing wrong with it, and what a check says to it."""

from __future__ import annotations

import os
import struct
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, features

from detr_kit.images import EXIF_ORIENTATION

WIDTH, HEIGHT = 40, 30
Build = Callable[[Path], object]


def noise(seed: int = 0, channels: int = 3) -> np.ndarray:
    shape = (HEIGHT, WIDTH, channels) if channels > 1 else (HEIGHT, WIDTH)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def content(suffix: str, **options: object) -> bytes:
    file = BytesIO()
    Image.fromarray(noise()).save(file, Image.registered_extensions()[f".{suffix}"], **options)
    return file.getvalue()


def saved(mode: str = "RGB", **options: object) -> Build:
    return lambda path: Image.fromarray(noise()).convert(mode).save(path, **options)


def written(data: bytes) -> Build:
    return lambda path: path.write_bytes(data)


def cut(suffix: str, keep: int, **options: object) -> Build:
    return lambda path: path.write_bytes(content(suffix, **options)[:keep])


def turned(orientation: int) -> Build:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return saved(exif=exif)


def frames(count: int = 3) -> Build:
    pictures = [Image.fromarray(noise(seed)) for seed in range(count)]
    return lambda path: pictures[0].save(path, save_all=True, append_images=pictures[1:])


def deep(channels: int) -> Build:
    values = noise(channels=channels).astype(np.uint16) * 256 + 9
    return lambda path: cv2.imwrite(str(path), values)


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(
    *, before: bytes = b"", after: bytes = b"", size: tuple[int, int] = (WIDTH, HEIGHT),
    depth: int = 8, colour: int = 2, pixels: bytes | None = None,
) -> bytes:  # fmt: skip
    """A PNG by hand, with chunks that Pillow does not write."""
    bytes_a_pixel = {0: 1, 2: 3, 4: 2, 6: 4}[colour] * depth // 8
    if pixels is None:
        pixels = zlib.compress(bytes(size[1] * (1 + size[0] * bytes_a_pixel)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + after + end


def zeros_deflated(count: int) -> bytes:
    """`count` zero bytes in zlib's format, without compressing them all."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, zlib.DEFLATED, -15)
    end = rest.compress(bytes(count % 2**20)) + rest.flush()
    checksum = (count % 65521) << 16 | 1
    return b"\x78\xda" + block * (count // 2**20) + end + struct.pack(">I", checksum)


def bomb() -> bytes:
    return png(size=(60000, 60000), colour=0, pixels=zeros_deflated(60000 * 60001))


def sparse(head: bytes, num_bytes: int) -> Build:
    def build(path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, num_bytes)

    return build


def at(other: str, build: Build) -> Build:
    """Put the file elsewhere, where the json does not say it is."""

    def build_other(path: Path) -> None:
        there = Path(os.path.normpath(path.parent / other))
        there.parent.mkdir(exist_ok=True)
        build(there)

    return build_other


def link_to(target: str) -> Build:
    return lambda path: path.symlink_to(target)


JPEG_EXIF_6 = Image.Exif()
JPEG_EXIF_6[EXIF_ORIENTATION] = 6
EXIF_6 = chunk(b"eXIf", JPEG_EXIF_6.tobytes().removeprefix(b"Exif\0\0"))
TEXT_BOMB = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**22)))
COMPOSED = unicodedata.normalize("NFC", "cafe\u0301.png")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@dataclass(frozen=True)
class Entry:
    """A file, the size that the json says, and what the check says after the name."""

    build: Build
    kinds: dict[str, str] = field(default_factory=dict)
    said: tuple[int, int] = (WIDTH, HEIGHT)
    only_decoded: bool = False


CORPUS: dict[str, Entry] = {
    "nowhere.jpg": Entry(lambda path: None, {"file_missing": "no such file"}),
    "sub/nowhere.jpg": Entry(lambda path: None, {"file_missing": "no such file"}),
    "plain.png/inside.png": Entry(lambda path: None, {"file_missing": "no such file"}),
    "sub\\windows.jpg": Entry(
        at("sub/windows.jpg", saved(quality=70)),
        {"file_missing": "no such file; there is one with / in the place of \\"},
    ),
    "dangling.jpg": Entry(
        link_to("gone.jpg"), {"file_missing": "no such file: the link leads nowhere"}
    ),
    "n" * 300 + ".jpg": Entry(
        lambda path: None, {"file_missing": "no such file: File name too long"}
    ),
    "photo.jpg": Entry(
        at("PHOTO.JPG", saved(quality=71)), {"case_differs": "the file is called PHOTO.JPG"}
    ),
    "folder/a.png": Entry(
        at("../Folder/A.png", saved("L")), {"case_differs": "the file is called Folder/A.png"}
    ),
    COMPOSED: Entry(
        at(DECOMPOSED, saved("LA")),
        {"case_differs": "the file's name has the same letters in other Unicode: 'cafe\\u0301."},
    ),
    "empty.jpg": Entry(written(b""), {"zero_bytes": "0 bytes"}),
    "empty.tiff": Entry(written(b""), {"zero_bytes": "0 bytes"}),
    "text.jpg": Entry(
        written(b"not a picture"),
        {"unreadable": "cannot be read: not a picture of a known format"},
    ),
    "in_a_folder.png": Entry(
        lambda path: path.mkdir(), {"unreadable": "cannot be read: it is a folder"}
    ),
    "loop.png": Entry(link_to("loop.png"), {"unreadable": "cannot be read: Too many levels of"}),
    "text_bomb.png": Entry(
        written(png(before=TEXT_BOMB)), {"unreadable": "cannot be read: Decompressed data too"}
    ),
    "profile_bomb.png": Entry(
        written(png(before=chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**22))))),
        {"unreadable": "cannot be read: Decompressed data too"},
    ),
    "late_text_bomb.png": Entry(
        written(png(after=TEXT_BOMB)), {"unreadable": "cannot be read: Decompressed data too"}
    ),
    "damaged.png": Entry(
        written(png(pixels=b"\x78\x9c" + b"garbage" * 9)),
        {"unreadable": "cannot be read: broken data stream"},
        only_decoded=True,
    ),
    "stub.h5": Entry(
        written(b"\x89HDF\r\n\x1a\n" + bytes(99)),
        {"unreadable": "cannot be read: Pillow has no decoder for HDF5"},
    ),
    "program.eps": Entry(
        saved(), {"unreadable": "cannot be read: EPS is a program that draws"}
    ),
    **{
        f"cut_{name}.{suffix}": Entry(cut(suffix, keep, **options), {"truncated": "cut off after "})
        for name, suffix, keep, options in (
            ("end_marker", "jpg", -2, {}),
            ("half", "jpg", 900, {}),
            ("head", "jpg", 200, {}),
            ("progressive", "jpg", -300, {"progressive": True}),
            ("pixels", "png", 2000, {}),
            ("pixels", "gif", 900, {}),
            ("pixels", "webp", -100, {}),
            ("pixels", "bmp", -1, {}),
            ("strips", "tiff", -1, {}),
            ("directory", "tif", -1, {"compression": "tiff_lzw"}),
            ("stream", "jp2", 2000, {}),
        )
    },
    "zeros_at_the_end.jpg": Entry(
        written(content("jpg", progressive=True)[:-200] + bytes(5000)),
        {"truncated": "cut off after "},
    ),
    "other_way.jpg": Entry(
        saved(),
        {"size_differs": "the picture is 40x30, the json says 30x40"},
        said=(HEIGHT, WIDTH),
    ),
    "neither.jpg": Entry(
        turned(6), {"size_differs": "the picture is 30x40, the json says 40x31"}, said=(40, 31)
    ),
    "said_stored.tiff": Entry(
        turned(6),
        {
            "size_differs": "the picture is 30x40, the json says 40x30",
            "exif_turned": "orientation 6 is applied while the TIFF is decoded",
        },
    ),
    "applied.jpg": Entry(
        turned(6),
        {"exif_turned": "orientation 6 is applied: 30x40 upright, 40x30 stored"},
        said=(HEIGHT, WIDTH),
    ),
    "ignored.jpg": Entry(
        turned(8), {"exif_turned": "orientation 8 is ignored: the json has the stored size 40x30"}
    ),
    "upside_down.png": Entry(
        turned(3), {"exif_turned": "orientation 3 is applied; the size 40x30 fits either way"}
    ),
    "applied.tiff": Entry(
        turned(5),
        {"exif_turned": "orientation 5 is applied while the TIFF is decoded"},
        said=(HEIGHT, WIDTH),
    ),
    "behind_pixels.png": Entry(
        written(png(after=EXIF_6)),
        {"exif_turned": "orientation 6 is applied: 30x40 upright, 40x30 stored"},
        said=(HEIGHT, WIDTH),
    ),
    "no_size.webp": Entry(
        turned(6),
        {"exif_turned": "orientation 6 is applied: 30x40 upright, 40x30 stored"},
        said=(0, 0),
    ),
    **{
        f"frames.{suffix}": Entry(frames(), {"animated": "several frames; the first is used"})
        for suffix in ("gif", "webp", "png", "tiff")
    },
    **{
        f"deep_{channels}.{suffix}": Entry(
            deep(channels), {"sixteen_bit": "16 bits a channel; the upper 8 are used"}
        )
        for channels in (1, 3)
        for suffix in ("png", "tiff")
    },
    "deep_alpha.png": Entry(
        written(png(depth=16, colour=4)), {"sixteen_bit": "16 bits a channel; the upper 8 are used"}
    ),
    "deeper.tiff": Entry(saved("I"), {"sixteen_bit": "32 bits a channel; the upper 8 of 16"}),
    "ink.tiff": Entry(saved("CMYK"), {"cmyk": "CMYK; converted without a colour profile"}),
    "ink.jpg": Entry(saved("CMYK"), {"cmyk": "CMYK; converted without a colour profile"}),
    "bomb.png": Entry(
        written(bomb()), {"huge": "too large: Image size (3600000000 pixels) exceeds limit"}
    ),
    "over_the_limit.png": Entry(
        written(png(size=(10000, 10000), pixels=b"")),
        {"huge": "too large: 10000x10000 are more than 89478485 pixels"},
    ),
    "heavy.jpg": Entry(
        sparse(content("jpg"), 2**31), {"huge": "too large: the file has 2147483648 bytes"}
    ),
    "heavy_chunk.png": Entry(
        sparse(png()[:33] + struct.pack(">I", 2**27) + b"prIv", 2**27 + 99),
        {"huge": "too large: a chunk 'prIv' of 134217728 bytes"},
    ),
    "float.tiff": Entry(
        saved("F"), {"unsupported_mode": "floating-point pictures are not supported"}
    ),
    "float.pfm": Entry(
        saved("F"), {"unsupported_mode": "floating-point pictures are not supported"}
    ),
    "damaged_length.png": Entry(
        written(png(after=struct.pack(">I", 2**30) + b"prIv")),
        {"truncated": "cut off after "},
        only_decoded=True,
    ),
    # No fault: each of these decodes as it should.
    "plain.png": Entry(saved(compress_level=1)),
    "behind_end.jpg": Entry(written(content("jpg") + b"\x07" * 100_000)),
    "padded.jpg": Entry(written(content("jpg", quality=80) + bytes(100_000))),
    "behind_end.png": Entry(written(content("png") + b"\x07" * 100_000)),
    "no_end_chunk.png": Entry(written(content("png")[:-12])),
    "no_trailer.gif": Entry(written(content("gif")[:-1])),
    "two.mpo": Entry(frames(2)),
    "marker_in_comment.jpg": Entry(saved(comment=b"\xff\xd9", quality=81)),
    "damaged_exif.jpg": Entry(saved(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09", quality=82)),
    "palette.png": Entry(saved("P")),
    "transparent.png": Entry(lambda path: Image.fromarray(noise()).quantize(8).save(
        path, transparency=bytes(range(8)))),
    "black_white.png": Entry(saved("1")),
    "alpha.png": Entry(saved("RGBA")),
    "comment.png": Entry(written(png(before=chunk(b"tEXt", b"Title\0ok")))),
    "late_comment.png": Entry(written(png(after=chunk(b"tEXt", b"Title\0ok")))),
    "gray.jpg": Entry(saved("L")),
    "progressive.jpg": Entry(saved(progressive=True)),
    "two\nlines.jpg": Entry(saved(quality=83)),
}  # fmt: skip
if "avif" in features.modules and features.check("avif"):
    CORPUS["plain.avif"] = Entry(saved())
    CORPUS["cut.avif"] = Entry(cut("avif", -1), {"truncated": "cut off after "})
if hasattr(os, "mkfifo"):
    CORPUS["pipe.jpg"] = Entry(
        lambda path: os.mkfifo(path), {"unreadable": "cannot be read: it is no regular file"}
    )
