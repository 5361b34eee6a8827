"""Reading pictures of every kind, the one resize, and the size rules."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_kit.config import ImageSizeConfig
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import (
    EXIF_ORIENTATION,
    Preprocessing,
    preprocessing_from,
    read_image,
    resize,
    resize_for_training,
)
from detr_kit.sizes import SizeRule

FIXED = settings(derandomize=True, deadline=None, max_examples=300)
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without fine detail, which JPEG keeps nearly."""
    return cv2.resize(noise(4, 5), (width, height), interpolation=cv2.INTER_LINEAR)


def picture_of_kind(kind: str) -> Image.Image:
    gray, rgb, rgba = noise(8, 14, 1), noise(8, 14), noise(8, 14, 4)
    if kind == "I;16":
        return Image.fromarray(gray.astype(np.uint16) * 256 + 7)
    if kind == "P+alpha":
        palette = Image.fromarray(rgb).quantize(8)
        palette.info["transparency"] = 0
        return palette
    source = {"L": gray, "1": gray, "RGBA": rgba, "LA": rgba}.get(kind, rgb)
    return Image.fromarray(source).convert(kind)


KINDS = {
    "RGB": "png", "L": "png", "1": "png", "LA": "png", "RGBA": "png", "P": "png",
    "P+alpha": "png", "I;16": "png", "CMYK": "tiff", "YCbCr": "jpg", "LAB": "tiff",
}  # fmt: skip


class TestKindsOfInput:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_path_and_the_pil_image_of_it_give_the_same_pixels(
        self, tmp_path: Path, kind: str
    ) -> None:
        path = tmp_path / f"picture.{KINDS[kind]}"
        picture = picture_of_kind(kind)
        picture.save(path, **({"transparency": 0} if kind == "P+alpha" else {}))
        from_path = read_image(path)
        assert from_path.shape == (8, 14, 3)
        assert from_path.dtype == np.uint8
        with Image.open(path) as opened:
            np.testing.assert_array_equal(from_path, read_image(opened))
        np.testing.assert_array_equal(from_path, read_image(str(path)))
        np.testing.assert_array_equal(from_path, read_image(from_path))

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
        gray = noise(5, 7, 1)
        expected = np.repeat(gray[..., None], 3, axis=2)
        for source in (gray, gray[..., None], Image.fromarray(gray)):
            np.testing.assert_array_equal(read_image(source), expected)

    def test_black_and_white_is_0_and_255(self) -> None:
        mask = noise(5, 7, 1) > 127
        np.testing.assert_array_equal(read_image(mask)[..., 0], mask * np.uint8(255))
        np.testing.assert_array_equal(read_image(Image.fromarray(mask)), read_image(mask))

    def test_alpha_is_composited_on_white(self) -> None:
        rgba = np.zeros((1, 3, 4), dtype=np.uint8)
        rgba[0, :, 3] = (0, 51, 255)
        assert read_image(rgba)[0, :, 0].tolist() == [255, 204, 0]
        gray_alpha = np.ascontiguousarray(rgba[..., [0, 3]])
        np.testing.assert_array_equal(read_image(gray_alpha), read_image(rgba))
        np.testing.assert_array_equal(read_image(Image.fromarray(rgba)), read_image(rgba))

    def test_a_transparent_colour_is_white(self, tmp_path: Path) -> None:
        path = tmp_path / "key.png"
        pixels = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
        Image.fromarray(pixels).save(path, transparency=(1, 2, 3))
        assert read_image(path).tolist() == [[[255, 255, 255], [4, 5, 6]]]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_16_bits_keep_their_high_byte(self, tmp_path: Path, channels: int) -> None:
        values = noise(6, 5, channels).astype(np.uint16) * 256 + 200
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
        pixels = noise(4, 4)
        before = pixels.copy()
        read_image(pixels)[:] = 0
        np.testing.assert_array_equal(pixels, before)
        picture = Image.fromarray(noise(4, 4, 4))
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

    def test_floating_point_pictures_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "float.tiff"
        Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(path)
        with pytest.raises(DetrKitError, match=r"float\.tiff: floating-point"):
            read_image(path)


class TestUnreadableFiles:
    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
    @pytest.mark.parametrize("keep", [0.0, 0.05, 0.6])
    def test_truncated_files_are_named(self, tmp_path: Path, suffix: str, keep: float) -> None:
        path = tmp_path / f"broken.{suffix}"
        Image.fromarray(noise(60, 80)).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's, about the TIFF's metadata
            with pytest.raises(DetrKitError, match=rf"broken\.{suffix}: cannot read") as raised:
                read_image(path)
        assert "\n" not in str(raised.value)

    def test_missing_files_and_folders_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(DetrKitError, match=r"nowhere\.jpg: no such image file"):
            read_image(tmp_path / "nowhere.jpg")
        with pytest.raises(DetrKitError, match=f"{tmp_path.name}: cannot read the image"):
            read_image(tmp_path)

    def test_what_is_no_picture_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.jpg"
        path.write_text("not a picture")
        with pytest.raises(DetrKitError, match=r"notes\.jpg: .*not a picture of a known format"):
            read_image(path)

    def test_decompression_bombs_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "bomb.png"
        Image.new("L", (50, 50)).save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(DetrKitError, match=r"bomb\.png: image too large"):
            read_image(path)


class TestExif:
    @staticmethod
    def save(path: Path, pixels: np.ndarray, orientation: int) -> None:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        Image.fromarray(pixels).save(path, exif=exif)

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
    @pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
    def test_orientation_is_applied_once(
        self, tmp_path: Path, orientation: int, suffix: str
    ) -> None:
        path, pixels = tmp_path / f"turned.{suffix}", noise(6, 9)
        if suffix == "webp":
            exif = Image.Exif()
            exif[EXIF_ORIENTATION] = orientation
            Image.fromarray(pixels).save(path, exif=exif, lossless=True)
        else:
            self.save(path, pixels, orientation)
        upright = self.UPRIGHT[orientation](pixels)
        np.testing.assert_array_equal(read_image(path), upright)
        with Image.open(path) as picture:
            np.testing.assert_array_equal(read_image(picture), upright)
        expected = (upright.shape[0], upright.shape[1])
        np.testing.assert_array_equal(read_image(path, expected_size_hw=expected), upright)

    def test_labels_made_on_the_stored_picture_get_the_stored_picture(self, tmp_path: Path) -> None:
        path, pixels = tmp_path / "turned.jpg", smooth(40, 60)
        self.save(path, pixels, 6)
        assert read_image(path).shape == (60, 40, 3)
        stored = read_image(path, expected_size_hw=(40, 60))
        assert np.abs(stored.astype(int) - pixels).mean() < 3

    def test_neither_size_names_the_file_and_both(self, tmp_path: Path) -> None:
        path = tmp_path / "turned.png"
        self.save(path, noise(6, 9), 6)
        with pytest.raises(DetrKitError, match=r"turned\.png: the image is 6x9 .* says 9x7"):
            read_image(path, expected_size_hw=(7, 9))

    def test_nonsense_orientations_are_ignored(self, tmp_path: Path) -> None:
        path, pixels = tmp_path / "odd.png", noise(6, 9)
        self.save(path, pixels, 77)
        np.testing.assert_array_equal(read_image(path), pixels)


class TestResize:
    @pytest.mark.parametrize("size_hw", [(288, 384), (100, 700), (700, 100), (1, 1), (800, 1066)])
    def test_resizing_equals_pillow(self, size_hw: tuple[int, int]) -> None:
        image = noise(480, 640)
        expected = Image.fromarray(image).resize(size_hw[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(resize(image, size_hw), np.asarray(expected))

    @pytest.mark.parametrize("size_hw", [(288, 384), (100, 700), (700, 100), (1, 1)])
    def test_training_shrinks_in_the_same_way(self, size_hw: tuple[int, int]) -> None:
        image = noise(480, 640)
        np.testing.assert_array_equal(resize_for_training(image, size_hw), resize(image, size_hw))

    @pytest.mark.parametrize("size_hw", [(800, 1066), (480, 700), (481, 640)])
    def test_training_enlarges_within_one_level_and_without_bias(
        self, size_hw: tuple[int, int]
    ) -> None:
        image = noise(480, 640)
        difference = resize_for_training(image, size_hw).astype(int) - resize(image, size_hw)
        assert np.abs(difference).max() <= 1
        assert abs(difference.mean()) < 0.01

    def test_views_and_the_own_size_are_fine(self) -> None:
        image = noise(40, 60)
        np.testing.assert_array_equal(resize(image, (40, 60)), image)
        view = image[5:35, ::-1]
        for size_hw in ((20, 30), (50, 90)):
            np.testing.assert_array_equal(
                resize(view, size_hw), resize(np.ascontiguousarray(view), size_hw)
            )


def of_transformers(module: str, name: str) -> Callable[..., tuple[int, int]]:
    """A function of transformers; the test skips where this version has it elsewhere."""
    function = getattr(pytest.importorskip(f"transformers.{module}"), name, None)
    if function is None:
        pytest.skip(f"this version of transformers has no {module}.{name}")
    return function


class TestSizeRules:
    @pytest.mark.parametrize(
        ("rule", "size_hw", "target_hw"),
        [
            (SizeRule("detr", 800, 1333), (480, 640), (800, 1066)),
            (SizeRule("detr", 800, 1333), (640, 480), (1066, 800)),
            (SizeRule("detr", 800, 1333), (800, 801), (800, 801)),
            # 1333 * 300 / 900 = 444.33, so the long side is 444 * 3.
            (SizeRule("detr", 800, 1333), (300, 900), (444, 1332)),
            (SizeRule("huggingface", 800, 1333), (300, 900), (444, 1333)),
            (SizeRule("huggingface", 800, 1333), (480, 640), (800, 1066)),
            (SizeRule("detr", 400), (300, 900), (400, 1200)),
            (SizeRule("yolos_16", 800, 1333), (480, 640), (800, 1056)),
            (SizeRule("yolos_16", 512, 853), (480, 640), (512, 672)),
            (SizeRule("yolos_16", 800, 1333), (10, 5000), (16, 1488)),
            (SizeRule("huggingface_16", 800, 1333), (480, 640), (800, 1056)),
            # 1343 * 500 / 1344 = 499.63: the short side is right already, but for the upright one
            # the long side is computed all the same.
            (SizeRule("huggingface_16", 800, 1343), (500, 1344), (496, 1344)),
            (SizeRule("huggingface_16", 800, 1343), (1344, 500), (1328, 496)),
            (SizeRule("huggingface_16", 800, 1333), (10, 5000), (16, 1328)),
            (SizeRule("fit", 320), (480, 640), (240, 320)),
            (SizeRule("fit", 320, 100), (80, 40), (320, 160)),
            (SizeRule("fit", 320), (9000, 1), (320, 1)),
            (SizeRule("square", 320, 100), (480, 640), (320, 320)),
            (SizeRule("detr", 800, 1333), (1, 9000), (1, 1333)),
        ],
    )
    def test_known_targets(
        self, rule: SizeRule, size_hw: tuple[int, int], target_hw: tuple[int, int]
    ) -> None:
        assert rule.target_hw(size_hw) == target_hw

    @FIXED
    @given(SIZES, st.integers(16, 1000), st.integers(16, 1500))
    def test_huggingface_equals_transformers(
        self, size_hw: tuple[int, int], short_side: int, long_side: int
    ) -> None:
        function = of_transformers("image_transforms", "get_size_with_aspect_ratio")
        theirs = function(size_hw, short_side, long_side)
        ours = SizeRule("huggingface", short_side, long_side).target_hw(size_hw)
        assert ours == tuple(max(side, 1) for side in theirs)

    @FIXED
    @given(SIZES, st.integers(16, 1000), st.integers(16, 1500))
    @example((1344, 500), 800, 1343)
    @example((500, 1344), 800, 1343)
    def test_huggingface_16_equals_transformers(
        self, size_hw: tuple[int, int], short_side: int, long_side: int
    ) -> None:
        function = of_transformers(
            "models.yolos.image_processing_yolos", "get_size_with_aspect_ratio_yolos"
        )
        theirs = function(size_hw, short_side, long_side)
        ours = SizeRule("huggingface_16", short_side, long_side).target_hw(size_hw)
        assert ours == tuple(max(side, 16) for side in theirs)

    @FIXED
    @given(SIZES, st.integers(16, 1000))
    def test_fit_equals_transformers(self, size_hw: tuple[int, int], side: int) -> None:
        function = of_transformers("image_utils", "get_image_size_for_max_height_width")
        theirs = function(size_hw, side, side)
        ours = SizeRule("fit", side).target_hw(size_hw)
        assert ours == tuple(max(side, 1) for side in theirs)

    @FIXED
    @given(SIZES, st.integers(16, 1000), st.integers(16, 1500))
    def test_detr_and_yolos_keep_ratio_and_cap(
        self, size_hw: tuple[int, int], short_side: int, long_side: int
    ) -> None:
        height, width = SizeRule("detr", short_side, long_side).target_hw(size_hw)
        low, high = sorted((height, width))
        assert low <= short_side
        # The short side is rounded before the long one is made of it.
        assert high <= long_side + 0.5 * max(size_hw) / min(size_hw)
        assert (height >= width) == (size_hw[0] >= size_hw[1]) or abs(height - width) <= 1
        floored = SizeRule("yolos_16", short_side, long_side).target_hw(size_hw)
        assert floored == (max(height // 16 * 16, 16), max(width // 16 * 16, 16))

    @FIXED
    @given(SIZES, st.integers(16, 1000))
    def test_turning_the_picture_turns_the_target(
        self, size_hw: tuple[int, int], short_side: int
    ) -> None:
        for name in ("detr", "yolos_16", "huggingface", "fit", "square"):
            rule = SizeRule(name, short_side, 1333)
            assert rule.target_hw(size_hw[::-1]) == rule.target_hw(size_hw)[::-1]

    def test_bad_rules_are_refused(self) -> None:
        with pytest.raises(DetrKitError, match="unknown size rule 'detrr'"):
            SizeRule("detrr", 800)
        with pytest.raises(DetrKitError, match="at least 1"):
            SizeRule("detr", 0)
        with pytest.raises(DetrKitError, match="at least 16"):
            SizeRule("yolos_16", 15)
        with pytest.raises(DetrKitError, match="huggingface_16 must be at least 16"):
            SizeRule("huggingface_16", 800, 15)


class TestPreprocessing:
    def test_json_round_trip(self) -> None:
        for long_side in (1333, None):
            rule = SizeRule("yolos_16", 512, long_side)
            ours = Preprocessing(rule, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
            assert Preprocessing.from_json(ours.to_json()) == ours

    def test_faulty_json_is_named(self) -> None:
        good = preprocessing_from(ImageSizeConfig()).to_json()
        with pytest.raises(DetrKitError, match="'mean' is missing"):
            Preprocessing.from_json({k: v for k, v in good.items() if k != "mean"})
        with pytest.raises(DetrKitError, match="preprocessing: "):
            Preprocessing.from_json({**good, "mean": [0.5, 0.5]})
        with pytest.raises(DetrKitError, match="unknown size rule"):
            Preprocessing.from_json({**good, "size": {**good["size"], "rule": "x"}})

    def test_apply_resizes_by_the_rule(self) -> None:
        config = ImageSizeConfig(rule="yolos_16", short_side=64, long_side=100)
        assert preprocessing_from(config).apply(noise(48, 64)).shape == (64, 80, 3)

    @pytest.mark.parametrize("rule", ["detr", "yolos_16", "huggingface", "huggingface_16", "fit"])
    @pytest.mark.parametrize("short_side", [48, 160])
    def test_training_resizes_to_the_same_pixels_but_for_rounding(
        self, rule: str, short_side: int
    ) -> None:
        from detr_kit.data.transforms import A, ResizeByRule

        preprocessing = preprocessing_from(
            ImageSizeConfig(rule=rule, short_side=short_side, long_side=200)
        )
        image = noise(100, 131)
        trained = A.Compose([ResizeByRule((preprocessing.size_rule,))])(image=image)["image"]
        difference = trained.astype(int) - preprocessing.apply(image)
        assert np.abs(difference).max() <= (short_side > 100)  # Pillow shrinks in training too
        assert abs(difference.mean()) < 0.01
