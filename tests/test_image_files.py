"""Files that cannot be read, and the faster way of reading for training."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_kit.errors import DetrKitError
from detr_kit.images import EXIF_ORIENTATION, ImageError, read_for_training, read_image


def _noise_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


class TestUnreadableFiles:
    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
    @pytest.mark.parametrize("keep", [0.0, 0.05, 0.6])
    def test_truncated_files_are_named(self, tmp_path: Path, suffix: str, keep: float) -> None:
        path = tmp_path / f"broken.{suffix}"
        Image.fromarray(_noise_of(60, 80)).save(path)
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

    def test_more_pixels_than_the_limit_are_refused_before_decoding(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pillow itself only warns of up to twice as many."""
        path = tmp_path / "large.png"
        Image.new("L", (60, 50)).save(path)
        for limit in (2000, 1000):
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(ImageError, match=r"large\.png: image too large"):
                    read_image(path)

    def test_programs_that_draw_are_not_run(self, tmp_path: Path) -> None:
        path = tmp_path / "drawing.eps"
        Image.new("RGB", (8, 8)).save(path)
        with pytest.raises(ImageError, match=r"drawing\.eps: .* EPS is a program"):
            read_image(path)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe.jpg"
        os.mkfifo(path)
        with pytest.raises(ImageError, match=r"pipe\.jpg: .* not a regular file"):
            read_image(path)

    def test_arrays_of_the_other_byte_order_are_read(self) -> None:
        array = np.array([[0, 255], [256, 65535]], dtype=np.uint16)
        expected = read_image(array)
        np.testing.assert_array_equal(read_image(array.astype(">u2")), expected)
        assert expected[..., 0].tolist() == [[0, 0], [1, 255]]


class TestReadingForTraining:
    def test_real_jpegs_give_the_same_pixels(self, shared_data: Path) -> None:
        for folder in ("bccd/images", "coco_mini/val2017"):
            for path in sorted((shared_data / folder).glob("*.jpg"))[:12]:
                np.testing.assert_array_equal(read_for_training(path), read_image(path))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_the_exif_orientation_is_applied_as_expected(
        self, tmp_path: Path, orientation: int
    ) -> None:
        path = tmp_path / "turned.jpg"
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        Image.fromarray(_noise_of(24, 36)).save(path, exif=exif, quality=95)
        for expected_hw in (None, (24, 36), (36, 24)):
            try:
                exact = read_image(path, expected_size_hw=expected_hw)
            except ImageError as error:
                with pytest.raises(ImageError, match=str(error)[-20:]):
                    read_for_training(path, expected_size_hw=expected_hw)
                continue
            found = read_for_training(path, expected_size_hw=expected_hw)
            np.testing.assert_array_equal(found, exact)
            assert found.flags.c_contiguous

    def test_other_kinds_are_left_to_pillow(self, tmp_path: Path) -> None:
        for name, mode in (("a.png", "RGBA"), ("b.jpg", "L"), ("c.jpg", "CMYK"), ("d.png", "P")):
            path = tmp_path / name
            Image.fromarray(_noise_of(24, 36)).convert(mode).save(path)
            np.testing.assert_array_equal(read_for_training(path, scale=0.1), read_image(path))

    def test_a_jpeg_that_was_cut_off_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "cut.jpg"
        Image.fromarray(_noise_of(200, 300)).save(path, quality=95)
        content = path.read_bytes()
        for share in (0.1, 0.6, 0.99):
            path.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(ImageError, match=r"cut\.jpg: cannot read the image"):
                read_for_training(path, scale=0.3)
        path.write_bytes(content + b"\0" * 100)
        np.testing.assert_array_equal(read_for_training(path), read_image(path))

    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"gone\.jpg: no such image file"):
            read_for_training(tmp_path / "gone.jpg")
