from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.images import ImageError
from detr_kit.inference.predictor import WAITING_BATCHES, Predictor
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeHW, SizeRule


class Sizes(Predictor):
    """Finds a cat and a dog in every picture, scored by the picture's mean; notes its batches."""

    def __init__(self) -> None:
        preprocessing = Preprocessing(SizeRule("fit", 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        super().__init__(CategoryTable((2, 5), ("cat", "dog")), preprocessing)
        self.batches: list[list[SizeHW]] = []

    def detect(
        self, resized: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW], names: list[str]
    ) -> list[Detections]:
        self.batches.append([image.shape[:2] for image in resized])
        return [
            Detections(
                np.array([[0, 0, width, height], [0, 0, width, height]]),
                np.array([image.mean() / 255, image.mean() / 510]),
                np.array([2, 5]),
                ["cat", "dog"],
            )
            for image, (height, width) in zip(resized, original_sizes_hw, strict=True)
        ]


def gray(value: int, size_hw: SizeHW = (8, 8)) -> np.ndarray:
    return np.full((*size_hw, 3), value, dtype=np.uint8)


@given(
    st.lists(st.sampled_from([(8, 8), (8, 4), (4, 8), (16, 16)]), max_size=60),
    st.integers(1, 5),
)
def test_every_picture_comes_back_once_in_order_in_batches_of_one_size(
    sizes: list[SizeHW], batch_size: int
) -> None:
    own = Sizes()
    pictures = [gray(4 * index, size) for index, size in enumerate(sizes)]
    found = list(own.stream(iter(pictures), 0, batch_size))
    assert [id(source) for source, _ in found] == [id(picture) for picture in pictures]
    for index, (_, detections) in enumerate(found):
        height, width = sizes[index]
        assert detections.boxes_xyxy[0].tolist() == [0, 0, width, height]
        np.testing.assert_allclose(detections.scores[0], 4 * index / 255, atol=1e-6)
    assert all(len(set(batch)) == 1 and len(batch) <= batch_size for batch in own.batches)
    assert sum(map(len, own.batches)) == len(sizes)


def test_a_lonely_size_does_not_wait_for_its_like_for_ever() -> None:
    own = Sizes()
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        yield gray(1, (8, 4))
        for _ in itertools.count():
            read += 1
            yield gray(2)

    stream = own.stream(endless(), 0, batch_size=2)
    (first, _) = next(stream)
    assert first.shape == (8, 4, 3)
    for _, _ in itertools.islice(stream, 50):
        pass
    stream.close()
    assert read <= 50 + (WAITING_BATCHES + 4) * 2


def test_thresholds_by_class_and_suppression() -> None:
    own = Sizes()
    (both,) = own.predict(gray(255), threshold=0.5)
    assert both.names == ["cat", "dog"]
    (dog,) = own.predict(gray(255), threshold={"dog": 0.3, 2: 1.0})
    assert dog.names == ["cat", "dog"]
    (cat,) = own.predict(gray(255), threshold={"dog": 0.6})
    assert cat.names == ["cat"]
    with pytest.raises(DetrKitError, match="bird"):
        own.predict(gray(255), threshold={"bird": 0.6})
    with pytest.raises(DetrKitError, match="nms: expected an IoU of 0 to 1, got 2"):
        own.predict(gray(255), nms=2)
    # Boxes of two classes do not compete.
    assert own.predict(gray(255), nms=0.1)[0].names == ["cat", "dog"]


def test_unreadable_pictures_stop_a_stream_or_are_told(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    Image.new("RGB", (8, 4), "white").save(tmp_path / "c.png")
    told: list[ImageError] = []
    found = list(Sizes().stream(tmp_path, on_unreadable=told.append))
    assert [Path(str(path)).name for path, _ in found] == ["a.png", "c.png"]
    assert [Path(error.name).name for error in told] == ["b.png"]
    with pytest.raises(ImageError, match=r"b\.png"):
        list(Sizes().stream(tmp_path))


def test_what_the_source_of_pictures_raises_is_raised() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield gray(1)
        raise ConnectionError("the camera is gone")

    with pytest.raises(ConnectionError, match="the camera is gone"):
        list(Sizes().stream(broken()))


def test_nothing_gives_nothing() -> None:
    assert Sizes().predict([]) == []
    assert list(Sizes().stream(iter([]))) == []


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_one_lazy_picture_many_times(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    path = tmp_path / f"noise.{suffix}"
    Image.fromarray(noise).save(path)
    own = Sizes()
    (expected,) = own.predict(path, threshold=0)
    for _ in range(3):
        with Image.open(path) as picture:
            for found in own.predict([picture] * 8, threshold=0):
                assert (found.scores == expected.scores).all()


def test_what_is_no_picture_is_named_and_may_be_left_out() -> None:
    pictures = [gray(1), gray(2).astype(float), gray(3), None]
    with pytest.raises(ImageError, match=r"number 1 of the list: .* got float64"):
        Sizes().predict(pictures)
    told: list[ImageError] = []
    found = list(Sizes().stream(pictures, on_unreadable=told.append))
    assert len(found) == 2
    assert [error.name for error in told] == ["number 1 of the list", "number 3 of the list"]


def test_arguments_are_judged_before_anything_is_read() -> None:
    for options, message in (
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"threshold": 7}, "threshold"),
        ({"nms": -1}, "nms"),
    ):
        with pytest.raises(DetrKitError, match=message):
            Sizes().stream([], **options)
    with pytest.raises(DetrKitError, match="give a single one to predict"):
        Sizes().stream(gray(1))


def test_large_pictures_do_not_wait_in_great_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_kit.inference.predictor.WAITING_BYTES", 3 * 8 * 8 * 3)
    own = Sizes()
    sizes = [(8, 8), (8, 7), (8, 6), (8, 5), (8, 4), (8, 3)]
    stream = own.stream((gray(1, size) for size in sizes), 0, batch_size=4)
    next(stream)
    assert own.batches == [[(8, 8)]]
    assert len(list(stream)) == 5
