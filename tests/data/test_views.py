"""Views: windows, boxes, and what one resize instead of three costs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_kit.data.pictures import Picture
from detr_kit.data.views import View, official_view, relative_view, visible_boxes, whole_view
from detr_kit.images import EXIF_ORIENTATION, read_for_training, read_image
from detr_kit.preprocess import resize
from detr_kit.sizes import SizeRule

SIZES = st.tuples(st.integers(1, 900), st.integers(1, 900))
RULES = tuple(SizeRule("detr", side, 1333) for side in (480, 640, 800))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_picture(image: np.ndarray) -> Picture:
    return Picture(image, image.shape[:2], np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


class TestPixels:
    @pytest.mark.parametrize("mirrored", [False, True])
    def test_a_view_of_the_same_size_is_a_slice(self, mirrored: bool) -> None:
        image = noise(20, 30)
        found = View((4, 5, 14, 17), (12, 10), mirrored).pixels(as_picture(image))
        expected = image[5:17, 4:14]
        np.testing.assert_array_equal(found, expected[:, ::-1] if mirrored else expected)
        assert found.flags.c_contiguous

    @pytest.mark.parametrize("mirrored", [False, True])
    @pytest.mark.parametrize("size_hw", [(7, 9), (30, 9), (9, 31)])
    def test_shrinking_is_pillow_on_the_window(
        self, size_hw: tuple[int, int], mirrored: bool
    ) -> None:
        image = noise(20, 30)
        found = View((4, 5, 14, 17), size_hw, mirrored).pixels(as_picture(image))
        expected = resize(image[5:17, 4:14], size_hw)
        np.testing.assert_array_equal(found, expected[:, ::-1] if mirrored else expected)

    def test_growing_is_within_one_level_of_pillow(self) -> None:
        image = noise(20, 30)
        found = View((4, 5, 14, 17), (50, 41)).pixels(as_picture(image))
        expected = resize(image[5:17, 4:14], (50, 41))
        assert np.abs(found.astype(int) - expected).max() <= 1


class TestDraftScale:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        smooth = cv2.resize(noise(9, 12) // 2 + 64, (1203, 805), interpolation=cv2.INTER_CUBIC)
        path = tmp_path / "large.jpg"
        Image.fromarray(smooth).save(path, quality=95)
        return path

    def test_large_files_are_decoded_no_smaller_than_asked(self, path: Path) -> None:
        sizes = {
            scale: read_for_training(path, scale=scale).shape[:2] for scale in (1, 0.6, 0.5, 0.2)
        }
        assert sizes == {1: (805, 1203), 0.6: (805, 1203), 0.5: (403, 602), 0.2: (202, 301)}

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("size_wh", [(1200, 800), (1203, 805)])
    def test_turned_files_are_not_shifted_against_their_boxes(
        self, tmp_path: Path, orientation: int, size_wh: tuple[int, int]
    ) -> None:
        smooth = cv2.resize(noise(9, 12) // 2 + 64, size_wh, interpolation=cv2.INTER_CUBIC)
        path = tmp_path / "turned.jpg"
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        Image.fromarray(smooth).save(path, quality=95, exif=exif)
        full = as_picture(read_image(path))
        height, width = full.size_hw
        view = View((0, 0, width, height), (height // 6, width // 6))
        found = view.pixels(Picture(path, full.size_hw, full.boxes_xyxy, full.labels))
        assert np.abs(found.astype(int) - view.pixels(full)).mean() < 0.6
        reduced = read_for_training(path, scale=0.25)
        sticks_out = size_wh == (1203, 805) and orientation != 1
        assert max(reduced.shape) == (1203 if sticks_out else -(-size_wh[0] // 4))

    def test_very_flat_files_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "flat.jpg"
        Image.fromarray(noise(12, 10000)).save(path)
        picture = Picture(path, (12, 10000), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        assert View((0, 0, 10000, 12), (1, 800)).pixels(picture).shape == (1, 800, 3)

    @pytest.mark.parametrize("mirrored", [False, True])
    @pytest.mark.parametrize("window", [(0, 0, 1203, 805), (101, 50, 1000, 777)])
    def test_a_view_of_a_reduced_file_is_nearly_that_of_the_full_one(
        self, path: Path, window: tuple[int, int, int, int], mirrored: bool
    ) -> None:
        full = as_picture(read_image(path))
        reduced = Picture(path, (805, 1203), full.boxes_xyxy, full.labels)
        view = View(window, (150, 200), mirrored)
        found, expected = view.pixels(reduced), view.pixels(full)
        difference = np.abs(found.astype(int) - expected).mean()
        assert difference < 0.6
        # It would not pass for a picture that is a pixel off.
        assert np.abs(found.astype(int) - np.roll(expected, 1, axis=1)).mean() > 4 * difference


class TestBoxes:
    def test_boxes_move_with_the_window_and_the_mirror(self) -> None:
        view = View((10, 20, 50, 40), (100, 100))
        boxes = np.array([[10, 20, 50, 40], [0, 30, 20, 60]], dtype=np.float32)
        np.testing.assert_allclose(view.boxes(boxes), [[0, 0, 1, 1], [-0.25, 0.5, 0.25, 2]])
        mirrored = View((10, 20, 50, 40), (100, 100), mirrored=True)
        np.testing.assert_allclose(mirrored.boxes(boxes), [[0, 0, 1, 1], [0.75, 0.5, 1.25, 2]])

    def test_what_is_hardly_visible_is_dropped(self) -> None:
        boxes = np.array([[0.9, 0, 1.9, 1], [0.89, 0, 1.89, 1], [1, 0, 2, 1], [0.2, 0.2, 0.4, 0.4]])
        cut, rows = visible_boxes(boxes, (50, 50), min_visibility=0.105)
        assert rows.tolist() == [1, 3]
        assert cut[0].tolist() == pytest.approx([0.89, 0, 1, 1])
        assert visible_boxes(boxes, (50, 50))[1].tolist() == [0, 1, 3]


class TestDraws:
    @settings(derandomize=True, deadline=None)
    @given(SIZES, st.integers(0, 2**32), st.sampled_from(["whole", "official", "relative"]))
    def test_windows_lie_in_the_picture(
        self, size_hw: tuple[int, int], seed: int, kind: str
    ) -> None:
        rng = np.random.default_rng(seed)
        if kind == "relative":
            view = relative_view(size_hw, rng, RULES, min_scale=0.3, max_stretch=2.0)
        else:
            view = {"whole": whole_view, "official": official_view}[kind](size_hw, rng, RULES)
        x0, y0, x1, y1 = view.window_xyxy
        assert 0 <= x0 < x1 <= size_hw[1]
        assert 0 <= y0 < y1 <= size_hw[0]
        assert min(view.size_hw) >= 1

    def test_the_official_crop_is_the_composition_of_its_steps(self) -> None:
        """Along each side the window is a crop of 384 to 600 of the middle picture's pixels."""
        size_hw, seen = (480, 640), set()
        middles = [SizeRule("detr", side).target_hw(size_hw) for side in (400, 500, 600)]
        for seed in range(300):
            view = official_view(size_hw, np.random.default_rng(seed), RULES)
            if view.window_hw == size_hw:
                continue
            height, width = view.window_hw
            fits = [
                middle
                for middle in middles
                if 383 <= height * middle[0] / 480 <= 601 and 383 <= width * middle[1] / 640 <= 601
            ]
            assert fits
            assert min(view.size_hw) in (480, 640, 800)
            # The shape follows the crop's, but for rounding to whole pixels.
            assert view.size_hw[0] / view.size_hw[1] == pytest.approx(height / width, rel=0.01)
            seen.add(view.window_xyxy)
        assert len(seen) > 100
