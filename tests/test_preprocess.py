"""The one resize, the size rules, and what a checkpoint says about its input."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_kit.config import ImageSizeConfig
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import Preprocessing, preprocessing_from, resize, resize_for_training
from detr_kit.sizes import SizeRule

FIXED = settings(derandomize=True, deadline=None, max_examples=300)
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without fine detail, which JPEG keeps nearly."""
    return cv2.resize(noise(4, 5), (width, height), interpolation=cv2.INTER_LINEAR)


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
        preprocessing = preprocessing_from(
            ImageSizeConfig(rule=rule, short_side=short_side, long_side=200)
        )
        image = noise(100, 131)
        trained = resize_for_training(image, preprocessing.size_rule.target_hw((100, 131)))
        difference = trained.astype(int) - preprocessing.apply(image)
        assert np.abs(difference).max() <= (short_side > 100)  # Pillow shrinks in training too
        assert abs(difference.mean()) < 0.01
