"""Pictures of every kind give the pixels that they show, whichever way they are handed over."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features

from detr_kit.errors import DetrKitError
from detr_kit.images import EXIF_ORIENTATION, read_image
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

HEIGHT, WIDTH = 24, 36
PREPROCESSING = Preprocessing(SizeRule("detr", 40, 50), (0.5,) * 3, (0.5,) * 3)


def noise(channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (HEIGHT, WIDTH, channels) if channels > 1 else (HEIGHT, WIDTH)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(channels: int = 3) -> np.ndarray:
    """A picture without fine detail, which JPEG keeps nearly."""
    return cv2.resize(noise(channels)[:3, :4], (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)


def of_mode(mode: str, array: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, (array.shape[1], array.shape[0]), array.tobytes())


GRAY, RGB, RGBA = noise(1), noise(3), noise(4)
DEEP_GRAY = GRAY.astype(np.uint16) * 256 + noise(1, seed=1)
DEEP_RGB = RGB.astype(np.uint16) * 256 + noise(3, seed=1)
SMOOTH, SMOOTH_INK = smooth(), smooth(4)
PALETTED = Image.fromarray(RGB).quantize(8)
PALETTE = np.array(PALETTED.getpalette()).reshape(-1, 3)[np.asarray(PALETTED)]
KEY = tuple(int(value) for value in RGB[2, 3])


def in_three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None].astype(float) / 255
    return np.round(pixels * share + 255 * (1 - share))


def of_ink(cmyk: np.ndarray) -> np.ndarray:
    light = 255 - cmyk.astype(float)
    return np.round(light[..., :3] * light[..., 3:] / 255)


def save(picture: Image.Image, **options: object) -> Callable[[Path], object]:
    return lambda path: picture.save(path, **options)


def save_deep(values: np.ndarray) -> Callable[[Path], object]:
    return lambda path: cv2.imwrite(str(path), values if values.ndim == 2 else values[..., ::-1])


def save_deep_alpha(path: Path) -> None:
    """Write 16-bit gray with 16-bit alpha as a PNG, which neither Pillow nor OpenCV does."""
    values = np.stack([DEEP_GRAY, RGBA[..., 3].astype(np.uint16) * 257], axis=-1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 4, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        checksum = zlib.crc32(kind + data)
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    path.write_bytes(content)


def frames(pixels: np.ndarray) -> Callable[[Path], object]:
    """Save a picture that is followed by its negative."""
    first, second = (Image.fromarray(frame) for frame in (pixels, 255 - pixels))
    return lambda path: first.save(path, save_all=True, append_images=[second], quality=95)


def frames_of_gray(path: Path) -> None:
    first, second = (Image.fromarray(frame) for frame in (GRAY, 255 - GRAY))
    first.save(path, save_all=True, append_images=[second])


def big_endian() -> Image.Image:
    return Image.frombytes("I;16B", (WIDTH, HEIGHT), DEEP_GRAY.astype(">u2").tobytes())


# Kind: suffix, how the file is written, the pixels to expect, by how much a pixel may be off, and
# by how much on average where the format loses something.
EXACT, ROUNDED = (0, 0.0), (1, 1.0)
LOSSY = (60, 4.0)
Kind = tuple[str, Callable[[Path], object], np.ndarray, tuple[int, float]]
PIXELS_255 = in_three(np.where(GRAY > 127, 255, 0))
CASES: dict[str, Kind] = {
    "L": ("png", save(Image.fromarray(GRAY)), in_three(GRAY), EXACT),
    "1": ("png", save(Image.fromarray(GRAY > 127)), PIXELS_255, EXACT),
    "1 of a fax": (
        "tiff", save(Image.fromarray(GRAY > 127), compression="group4"), PIXELS_255, EXACT,
    ),
    "LA": (
        "png", save(Image.fromarray(RGBA[..., [0, 3]])),
        on_white(in_three(RGBA[..., 0]), RGBA[..., 3]), ROUNDED,
    ),
    "P": ("png", save(PALETTED), PALETTE, EXACT),
    "P, one colour transparent": (
        "png", save(PALETTED, transparency=3),
        np.where(np.asarray(PALETTED)[..., None] == 3, 255, PALETTE), EXACT,
    ),
    "P, alpha of each colour": (
        "png", save(PALETTED, transparency=bytes(range(0, 256, 32))),
        on_white(PALETTE, np.asarray(PALETTED) * 32), ROUNDED,
    ),
    "P of a GIF": ("gif", save(PALETTED), PALETTE, EXACT),
    "P of a transparent GIF": (
        "gif", save(PALETTED, transparency=3),
        np.where(np.asarray(PALETTED)[..., None] == 3, 255, PALETTE), EXACT,
    ),
    "RGB": ("png", save(Image.fromarray(RGB)), RGB, EXACT),
    "RGB, one colour transparent": (
        "png", save(Image.fromarray(RGB), transparency=KEY),
        np.where((RGB == KEY).all(-1, keepdims=True), 255, RGB), EXACT,
    ),
    "L, one gray transparent": (
        "png", save(Image.fromarray(GRAY), transparency=int(GRAY[0, 0])),
        in_three(np.where(GRAY[0, 0] == GRAY, 255, GRAY)), EXACT,
    ),
    "RGBA": ("png", save(Image.fromarray(RGBA)), on_white(RGBA[..., :3], RGBA[..., 3]), ROUNDED),
    "RGBA of a WebP": (
        "webp", save(Image.fromarray(RGBA), lossless=True, exact=True),
        on_white(RGBA[..., :3], RGBA[..., 3]), ROUNDED,
    ),
    "RGBA of a TIFF": (
        "tiff", save(Image.fromarray(RGBA)), on_white(RGBA[..., :3], RGBA[..., 3]), ROUNDED,
    ),
    "CMYK": ("tiff", save(of_mode("CMYK", RGBA)), of_ink(RGBA), ROUNDED),
    "CMYK, inverted as Adobe does": (
        "jpg", save(of_mode("CMYK", SMOOTH_INK), quality=98), of_ink(SMOOTH_INK), LOSSY,
    ),
    "YCbCr": ("jpg", save(Image.fromarray(SMOOTH), quality=95), SMOOTH, LOSSY),
    "YCbCr of a TIFF": ("tiff", save(Image.fromarray(RGB).convert("YCbCr")), RGB, (3, 1.5)),
    "progressive": ("jpg", save(Image.fromarray(SMOOTH), progressive=True, quality=95), SMOOTH,
                    LOSSY),
    "RGB of a JPEG": ("jpg", save(Image.fromarray(SMOOTH), keep_rgb=True, quality=98), SMOOTH,
                      LOSSY),
    "gray of a JPEG": (
        "jpg", save(Image.fromarray(SMOOTH[..., 0]), quality=95), in_three(SMOOTH[..., 0]), LOSSY,
    ),
    "LAB of gray": (
        "tiff", save(of_mode("LAB", np.dstack([GRAY, np.zeros((HEIGHT, WIDTH, 2), np.uint8)]))),
        in_three(GRAY), (12, 8.0),
    ),
    "I;16": ("png", save_deep(DEEP_GRAY), in_three(GRAY), EXACT),
    "I;16 of a TIFF": ("tiff", save_deep(DEEP_GRAY), in_three(GRAY), EXACT),
    "I;16B": ("tiff", lambda path: big_endian().save(path), in_three(GRAY), EXACT),
    "I": ("tiff", save(Image.fromarray(DEEP_GRAY.astype(np.int32))), in_three(GRAY), EXACT),
    "I of a PGM": ("pgm", save(Image.fromarray(DEEP_GRAY.astype(np.int32))), in_three(GRAY), EXACT),
    "RGB of 16 bits": ("png", save_deep(DEEP_RGB), RGB, EXACT),
    "RGB of 16 bits in a TIFF": ("tiff", save_deep(DEEP_RGB), RGB, EXACT),
    "LA of 16 bits": ("png", save_deep_alpha, on_white(in_three(GRAY), RGBA[..., 3]), ROUNDED),
    "first frame of a GIF": ("gif", frames_of_gray, in_three(GRAY), EXACT),
    "first frame of a PNG": ("png", frames(RGB), RGB, EXACT),
    "first frame of a TIFF": ("tiff", frames(RGB), RGB, EXACT),
    "first frame of an MPO": ("mpo", frames(SMOOTH), SMOOTH, LOSSY),
    "WebP": ("webp", save(Image.fromarray(RGB), lossless=True), RGB, EXACT),
    "WebP with loss": ("webp", save(Image.fromarray(SMOOTH), quality=95), SMOOTH, LOSSY),
    "BMP": ("bmp", save(Image.fromarray(RGB)), RGB, EXACT),
    "gray BMP": ("bmp", save(Image.fromarray(GRAY)), in_three(GRAY), EXACT),
}  # fmt: skip
if "avif" in features.modules and features.check("avif"):
    CASES["AVIF"] = ("avif", save(Image.fromarray(SMOOTH), quality=95), SMOOTH, LOSSY)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Kind]:
    kind = CASES[request.param]
    path = tmp_path / f"picture.{kind[0]}"
    kind[1](path)
    if request.param == "YCbCr of a TIFF":
        # Releases before 13 cannot read what they write.
        with Image.open(path) as picture, suppress(OSError):
            picture.load()
            return path, kind
        pytest.skip("this Pillow does not read TIFFs in YCbCr")
    return path, kind


class TestFiles:
    def test_they_show_what_was_saved(self, case: tuple[Path, Kind]) -> None:
        path, (_, _, expected, (most, mean)) = case
        read = read_image(path)
        assert read.shape == (HEIGHT, WIDTH, 3)
        assert read.dtype == np.uint8
        difference = np.abs(read.astype(float) - expected)
        assert difference.max() <= most
        assert difference.mean() <= mean

    def test_path_picture_and_array_are_the_same_input(self, case: tuple[Path, Kind]) -> None:
        path, _ = case
        read = read_image(path)
        sources = [str(path), read, Image.fromarray(read)]
        with Image.open(path) as opened, Image.open(path) as loaded:
            loaded.load()
            sources += [opened, loaded, loaded.copy()]
            if opened.mode in ("1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B"):
                # An array has no transparent colour: only alpha travels in it.
                with_alpha = opened.has_transparency_data and "A" not in opened.mode
                sources += [] if with_alpha else [native(np.asarray(opened))]
            for source in sources:
                again = read_image(source)
                np.testing.assert_array_equal(again, read)
                np.testing.assert_array_equal(PREPROCESSING.apply(again), PREPROCESSING.apply(read))

    def test_reading_twice_is_reading_once(self, case: tuple[Path, Kind]) -> None:
        path, _ = case
        with Image.open(path) as opened:
            mode = opened.mode
            first = read_image(opened)
            assert opened.mode == mode
            np.testing.assert_array_equal(read_image(opened), first)


def native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="))


class TestKindsOfInput:
    def test_a_jpeg_file_equals_its_pil_image_and_its_array(self, shared_data: Path) -> None:
        path = min((shared_data / "bccd" / "images").glob("*.jpg"))
        from_path = read_image(path)
        with Image.open(path) as picture:
            np.testing.assert_array_equal(from_path, np.asarray(picture.convert("RGB")))
            np.testing.assert_array_equal(from_path, read_image(picture))

    def test_channels_are_red_green_blue(self, tmp_path: Path) -> None:
        path = tmp_path / "red.png"
        Image.new("RGB", (4, 3), (255, 10, 0)).save(path)
        assert read_image(path)[1, 2].tolist() == [255, 10, 0]

    def test_gray_is_repeated(self) -> None:
        gray = noise(1)
        expected = np.repeat(gray[..., None], 3, axis=2)
        for source in (gray, gray[..., None], Image.fromarray(gray)):
            np.testing.assert_array_equal(read_image(source), expected)

    def test_black_and_white_is_0_and_255(self) -> None:
        mask = noise(1) > 127
        np.testing.assert_array_equal(read_image(mask)[..., 0], mask * np.uint8(255))
        np.testing.assert_array_equal(read_image(Image.fromarray(mask)), read_image(mask))

    def test_alpha_is_composited_on_white(self) -> None:
        rgba = np.zeros((1, 3, 4), dtype=np.uint8)
        rgba[0, :, 3] = (0, 51, 255)
        assert read_image(rgba)[0, :, 0].tolist() == [255, 204, 0]
        gray_alpha = np.ascontiguousarray(rgba[..., [0, 3]])
        np.testing.assert_array_equal(read_image(gray_alpha), read_image(rgba))
        np.testing.assert_array_equal(read_image(Image.fromarray(rgba)), read_image(rgba))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_16_bits_keep_their_high_byte(self, tmp_path: Path, channels: int) -> None:
        values = noise(channels).astype(np.uint16) * 256 + 200
        values.flat[0], values.flat[1] = 0, 65535
        path = tmp_path / "deep.png"
        cv2.imwrite(str(path), values if channels == 1 else values[..., ::-1])
        read = read_image(path)
        assert read.min() == 0
        assert read.max() == 255
        np.testing.assert_array_equal(read, read_image(values))
        np.testing.assert_array_equal(read, read_image((values >> 8).astype(np.uint8)))

    def test_cmyk_of_no_ink_is_white(self) -> None:
        assert read_image(Image.new("CMYK", (2, 2), (0, 0, 0, 0))).min() == 255

    def test_the_input_is_left_alone(self) -> None:
        pixels = noise()
        before = pixels.copy()
        read_image(pixels)[:] = 0
        np.testing.assert_array_equal(pixels, before)
        picture = Image.fromarray(noise(4))
        read_image(picture)
        assert picture.mode == "RGBA"

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((4, 4, 3), dtype=np.float32), "uint8, uint16 or bool, got float32"),
            (np.zeros((3, 4, 5), dtype=np.uint8), r"shape \(3, 4, 5\)"),
            (np.zeros((0, 4, 3), dtype=np.uint8), r"shape \(0, 4, 3\)"),
            (np.zeros(4, dtype=np.uint8), r"shape \(4,\)"),
        ],
    )
    def test_other_arrays_are_refused(self, array: np.ndarray, message: str) -> None:
        with pytest.raises(DetrKitError, match=message):
            read_image(array)

    def test_other_types_are_refused(self) -> None:
        with pytest.raises(DetrKitError, match="not bytes"):
            read_image(b"")  # type: ignore[arg-type]

    @pytest.mark.parametrize("suffix", ["tiff", "pfm"])
    def test_floating_point_pictures_are_refused(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"float.{suffix}"
        Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(path)
        with pytest.raises(DetrKitError, match=rf"float\.{suffix}: floating-point"):
            read_image(path)
        with Image.open(path) as opened, pytest.raises(DetrKitError, match="floating-point"):
            read_image(opened)

    def test_a_palette_with_alpha_is_composited_on_white(self) -> None:
        picture = Image.fromarray(RGBA).convert("PA")
        expected = np.asarray(picture.convert("RGBA"))
        difference = read_image(picture) - on_white(expected[..., :3], expected[..., 3])
        assert np.abs(difference).max() <= 1

    def test_values_above_16_bits_are_cut_off(self) -> None:
        values = np.array([[-5, 0, 65535, 65536, 2**31 - 1]], dtype=np.int32)
        assert read_image(Image.fromarray(values))[0, :, 0].tolist() == [0, 0, 255, 255, 255]


class TestExif:
    @staticmethod
    def save(path: Path, pixels: np.ndarray, orientation: int) -> None:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        options = {"lossless": True} if path.suffix == ".webp" else {}
        Image.fromarray(pixels).save(path, exif=exif, **options)

    # What the viewer does with the stored picture, in numpy's terms.
    UPRIGHT = {  # noqa: RUF012
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }

    @pytest.mark.parametrize("orientation", UPRIGHT)
    @pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "jpg"])
    def test_turned_copies_give_the_pixels_of_the_upright_picture(
        self, tmp_path: Path, orientation: int, suffix: str
    ) -> None:
        path = tmp_path / f"turned.{suffix}"
        self.save(path, RGB, orientation)
        with Image.open(path) as picture:
            # JPEG keeps the pixels nearly, so that those of the file are what is turned.
            stored = np.asarray(picture) if suffix == "jpg" else RGB
            upright = self.UPRIGHT[orientation](stored)
            np.testing.assert_array_equal(read_image(picture), upright)
        np.testing.assert_array_equal(read_image(path), upright)
        expected = (upright.shape[0], upright.shape[1])
        assert expected == ((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))
        np.testing.assert_array_equal(read_image(path, expected_size_hw=expected), upright)
        # What was read is not turned again.
        np.testing.assert_array_equal(read_image(read_image(path)), upright)

    @pytest.mark.parametrize("orientation", UPRIGHT)
    @pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
    def test_the_stored_pixels_are_kept_where_only_they_fit(
        self, tmp_path: Path, orientation: int, suffix: str
    ) -> None:
        path = tmp_path / f"turned.{suffix}"
        self.save(path, RGB, orientation)
        read = read_image(path, expected_size_hw=(HEIGHT, WIDTH))
        with Image.open(path) as picture:
            stored = np.asarray(picture)
        # Turns that keep the size cannot be told from the size: they are applied.
        expected = stored if orientation > 4 else self.UPRIGHT[orientation](stored)
        np.testing.assert_array_equal(read, expected)

    def test_neither_size_names_the_file_and_both(self, tmp_path: Path) -> None:
        path = tmp_path / "turned.png"
        self.save(path, RGB, 6)
        with pytest.raises(DetrKitError, match=r"turned\.png: the image is 24x36 .* says 36x25"):
            read_image(path, expected_size_hw=(25, 36))

    def test_nonsense_orientations_are_ignored(self, tmp_path: Path) -> None:
        path, pixels = tmp_path / "odd.png", RGB
        self.save(path, pixels, 77)
        np.testing.assert_array_equal(read_image(path), pixels)
