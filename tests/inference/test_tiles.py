"""Tiles and a full view: layout, seams, memory; with a detector that makes no mistakes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.inference import tiles
from detr_kit.inference.predictor import Predictor
from detr_kit.inference.tiles import predict_tiled, shrink, tile_windows
from detr_kit.preprocess import Preprocessing, resize
from detr_kit.sizes import SizeHW, SizeRule

FIXED = settings(derandomize=True, deadline=None, max_examples=200)
TABLE = CategoryTable((4, 9), ("cat", "dog"))
MOST = 100_000  # a size rule that enlarges every picture here: none is shrunk


class Perfect(Predictor):
    """Knows all objects, and answers those of which a view shows at least a share, cut to it.

    It reads from the first pixel of a picture of `positions` where the view is. Scores are other
    ones in every view, and nothing that it answers is less sure than 0.5.
    """

    def __init__(
        self,
        boxes_xyxy: Sequence[Sequence[int]],
        category_ids: Sequence[int] | None = None,
        *,
        share: float = 0.3,
        queries: int = 100,
    ) -> None:
        super().__init__(TABLE, Preprocessing(SizeRule("detr", MOST), (0, 0, 0), (1, 1, 1)))
        self.boxes_xyxy = np.array(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
        self.category_ids = np.array(category_ids or [4] * len(boxes_xyxy), dtype=np.int64)
        self.share, self.queries = share, queries
        self.batches: list[list[SizeHW]] = []

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def detect(
        self, resized: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW], names: list[str]
    ) -> list[Detections]:
        self.batches.append(list(original_sizes_hw))
        return [self._seen(one) for one in resized]

    def _seen(self, view: np.ndarray) -> Detections:
        high_x, low, low_y = (int(value) for value in view[0, 0])
        x, y = high_x << 4 | low >> 4, (low & 15) << 8 | low_y
        corner, end = np.array([x, y]), np.array([x + view.shape[1], y + view.shape[0]])
        low_high = self.boxes_xyxy.reshape(-1, 2, 2).clip(corner, end)
        sides, full = np.diff(low_high, axis=1), np.diff(self.boxes_xyxy.reshape(-1, 2, 2), axis=1)
        shares = (sides / full).prod(axis=(1, 2))
        rows = np.flatnonzero((shares > 0) & (shares >= self.share))[: self.queries]
        boxes = np.zeros((self.queries, 4))
        boxes[: len(rows)] = (low_high[rows] - corner).reshape(-1, 4)
        scores = np.zeros(self.queries)
        scores[: len(rows)] = np.random.default_rng([x, y, len(view)]).uniform(0.5, 1, len(rows))
        ids = np.full(self.queries, TABLE.ids[0])
        ids[: len(rows)] = self.category_ids[rows]
        order = np.argsort(-scores, kind="stable")
        names = [TABLE.names[TABLE.column_of[id_]] for id_ in ids[order].tolist()]
        return Detections(boxes[order], scores[order], ids[order], names)


def positions(height: int, width: int) -> np.ndarray:
    """A picture whose pixels tell where they are, up to 4095."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x >> 4, (x & 15) << 4 | y >> 8, y & 255], axis=-1).astype(np.uint8)


def found_boxes(found: Detections) -> list[tuple[float, ...]]:
    return sorted(
        (*box, id_)
        for box, id_ in zip(found.boxes_xyxy.tolist(), found.category_ids.tolist(), strict=True)
    )


def true_boxes(predictor: Perfect) -> list[tuple[float, ...]]:
    columns = (predictor.boxes_xyxy.tolist(), predictor.category_ids.tolist())
    return sorted((*box, id_) for box, id_ in zip(*columns, strict=True))


def ious(boxes_xyxy: np.ndarray) -> np.ndarray:
    low = np.maximum(boxes_xyxy[:, None, :2], boxes_xyxy[:, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], boxes_xyxy[:, 2:])
    shared = (high - low).clip(0).prod(axis=-1)
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=-1)
    return shared / (area[:, None] + area - shared)


@st.composite
def layouts(
    draw: st.DrawFn, most_iou: float, most_share: float
) -> tuple[SizeHW, int, float, Perfect]:
    """A picture size, a tile, an overlap, and objects that are no longer than the overlap.

    `most_iou` is that of any two objects, `most_share` what a view must show of one at most.
    """
    tile = draw(st.integers(20, 60))
    overlap = draw(st.sampled_from([0.2, 0.25, 0.4, 0.5]))
    size_hw = draw(st.tuples(st.integers(15, 200), st.integers(15, 200)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    longest = min(int(np.ceil(tile * overlap)), *size_hw)
    boxes: list[list[int]] = []
    for _ in range(draw(st.integers(0, 80))):
        height, width = rng.integers(2, longest + 1, 2).tolist()
        y, x = rng.integers(0, size_hw[0] - height + 1), rng.integers(0, size_hw[1] - width + 1)
        more = [*boxes, [int(x), int(y), int(x) + width, int(y) + height]]
        if len(more) == 1 or ious(np.array(more))[-1, :-1].max() <= most_iou:
            boxes = more
    ids = rng.choice(TABLE.ids, len(boxes)).tolist()
    return size_hw, tile, overlap, Perfect(boxes, ids, share=draw(st.floats(0.01, most_share)))


class TestSmallObjects:
    @FIXED
    @given(
        layouts(most_iou=0.3, most_share=0.5) | layouts(most_iou=0.0, most_share=1.0),
        st.booleans(),
        st.integers(1, 9),
    )
    def test_each_is_found_once(
        self, layout: tuple[SizeHW, int, float, Perfect], full_view: bool, batch_size: int
    ) -> None:
        size_hw, tile, overlap, perfect = layout
        found = predict_tiled(
            perfect,
            positions(*size_hw),
            tile=tile,
            overlap=overlap,
            full_view=full_view,
            batch_size=batch_size,
        )
        assert found_boxes(found) == true_boxes(perfect)

    def test_at_every_place_of_a_seam(self) -> None:
        """Touching neighbours of one class, as long as the overlap, over borders of tiles."""
        picture = positions(90, 90)
        for x, y in itertools.product(range(74), (20, 24, 28, 31, 32, 36, 40)):
            boxes = [[x + i, y + j, x + i + 8, y + j + 8] for i in (0, 8) for j in (0, 8)]
            perfect = Perfect(boxes, share=0.1)
            found = predict_tiled(perfect, picture, tile=40, overlap=0.2)
            assert found_boxes(found) == true_boxes(perfect), (x, y)


class TestLargeObjects:
    @settings(FIXED, max_examples=50)
    @given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.9), st.booleans())
    def test_the_full_view_gives_what_no_tile_holds(
        self, seed: int, share: float, neighbours: bool
    ) -> None:
        """Objects of any size above the overlap, in cells of their own; small ones among them."""
        rng = np.random.default_rng(seed)
        boxes = []
        for y, x in itertools.product((0, 100), (0, 70, 140)):
            low = np.array([x, y]) + rng.integers(0, 30, 2)
            high = low + rng.integers(8, (40, 70))
            boxes.append([*low.tolist(), *high.tolist()])
            if neighbours:  # of its class, touching it
                boxes.append([int(low[0]), int(high[1]), int(low[0]) + 8, int(high[1]) + 8])
        perfect = Perfect(boxes, share=share)
        found = predict_tiled(perfect, positions(208, 210), tile=40, overlap=0.2)
        assert found_boxes(found) == true_boxes(perfect)

    @FIXED
    @given(st.integers(0, 119), st.integers(0, 99), st.integers(1, 200), st.integers(1, 200))
    def test_parts_of_one_object_become_one_without_it(
        self, x: int, y: int, width: int, height: int
    ) -> None:
        box = [x, y, min(x + width, 120), min(y + height, 100)]
        perfect = Perfect([box], share=0.0)
        picture = positions(100, 120)
        found = predict_tiled(perfect, picture, tile=40, overlap=0.25, full_view=False)
        assert found_boxes(found) == true_boxes(perfect)


class TestLayout:
    @settings(FIXED, max_examples=100)
    @given(
        st.tuples(st.integers(1, 300), st.integers(1, 300)),
        st.integers(1, 100),
        st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]),
    )
    def test_tiles_have_one_size_and_hold_all_that_is_no_longer_than_the_overlap(
        self, size_hw: SizeHW, tile: int, overlap: float
    ) -> None:
        windows = np.array(tile_windows(size_hw, tile, overlap))
        sides = {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in windows.tolist()}
        assert sides == {(min(tile, size_hw[1]), min(tile, size_hw[0]))}
        assert len(np.unique(windows, axis=0)) == len(windows)
        for low, high, side in ((0, 2, size_hw[1]), (1, 3, size_hw[0])):
            spans = np.unique(windows[:, [low, high]], axis=0)
            assert spans[0, 0] == 0
            assert spans[-1, 1] == side
            shared = spans[:-1, 1] - spans[1:, 0]
            assert (shared >= min(np.ceil(overlap * tile), tile - 1)).all()

    def test_a_small_picture_is_looked_at_once(self) -> None:
        perfect = Perfect([[2, 3, 20, 30], [1, 1, 40, 35]], [4, 9])
        picture = positions(36, 41)
        tiled = predict_tiled(perfect, picture, tile=41)
        assert perfect.batches == [[(36, 41)]]
        (whole,) = perfect.predict(picture)
        assert found_boxes(tiled) == found_boxes(whole)
        assert tiled.scores.tolist() == whole.scores.tolist()
        assert tiled.names == whole.names

    def test_so_many_tiles_at_once_then_the_whole(self) -> None:
        perfect = Perfect([])
        predict_tiled(perfect, positions(90, 100), tile=40, overlap=0.2, batch_size=4)
        assert perfect.batches == [[(40, 40)] * 4, [(40, 40)] * 4, [(40, 40)], [(90, 100)]]


class TestQueries:
    CELLS = tuple([x, y, x + 6, y + 6] for x in range(1, 95, 10) for y in range(1, 95, 10))

    def test_a_picture_may_hold_more_objects_than_a_model_has_queries(self) -> None:
        perfect = Perfect(self.CELLS, queries=20)
        assert len(perfect.predict(positions(100, 100))[0]) == 20
        found = predict_tiled(perfect, positions(100, 100), tile=30, overlap=0.3)
        assert found_boxes(found) == true_boxes(perfect)

    def test_tiles_that_use_nearly_all_are_told_of(self) -> None:
        perfect = Perfect(self.CELLS, queries=10)
        message = (
            r"\d+ of 25 tiles use nearly all of the model's 10 queries, so objects may be "
            "missing; take a smaller tile than 30"
        )
        with pytest.warns(DetrKitWarning, match=message) as caught:
            predict_tiled(perfect, positions(100, 100), tile=30, overlap=0.3)
        assert caught[0].filename == __file__


class TestThresholds:
    def test_each_class_has_its_own(self) -> None:
        perfect = Perfect([[0, 0, 5, 5], [10, 0, 15, 5]], [4, 9])
        found = predict_tiled(perfect, positions(60, 60), {"cat": 0.0, "dog": 1.0}, tile=40)
        assert found.names == ["cat"] * len(found)
        assert len(found) > 0

    def test_none_returns_everything_without_a_warning(self) -> None:
        found = predict_tiled(Perfect([], queries=3), positions(60, 60), 0.0, tile=40)
        assert len(found) == 3 * (4 + 1)


def test_suppression_is_within_views_and_only_on_demand() -> None:
    boxes = [[20, 20, 28, 28], [20, 20, 28, 29]]  # both in the left tile, not in the right one
    perfect = Perfect(boxes, share=0.1)
    assert len(predict_tiled(perfect, positions(40, 64), tile=40)) == 2
    (box,) = predict_tiled(perfect, positions(40, 64), tile=40, nms=0.5).boxes_xyxy.tolist()
    assert box in boxes


class TestPixels:
    @pytest.mark.parametrize("kind", ["path", "PIL image", "memmap"])
    def test_every_kind_of_picture_gives_the_same(self, kind: str, tmp_path: Path) -> None:
        pixels = positions(70, 90)
        picture = Image.fromarray(pixels)
        picture.save(tmp_path / "picture.png")
        np.save(tmp_path / "pixels.npy", pixels)
        image = {
            "path": tmp_path / "picture.png",
            "PIL image": picture,
            "memmap": np.load(tmp_path / "pixels.npy", mmap_mode="r"),
        }[kind]
        perfect = Perfect([[3, 4, 11, 12], [30, 30, 39, 38], [20, 5, 80, 60]])
        assert found_boxes(predict_tiled(perfect, image, tile=40)) == true_boxes(perfect)

    def test_only_parts_of_an_array_are_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[tuple[int, ...]] = []

        def reading(pixels: np.ndarray) -> np.ndarray:
            read.append(pixels.shape)
            return tiles_read_image(pixels)

        tiles_read_image = tiles.read_image
        monkeypatch.setattr(tiles, "read_image", reading)
        perfect = Perfect([])
        perfect.preprocessing = Preprocessing(SizeRule("fit", 50), (0, 0, 0), (1, 1, 1))
        predict_tiled(perfect, np.zeros((700, 900), dtype=np.uint16), tile=100)
        assert perfect.batches[-1] == [(700, 900)]
        # a tile, and what the filter that shrinks by 18 looks at on both sides of it
        assert max(max(shape) for shape in read) <= 100 + 2 * (18 + 2)

    @FIXED
    @given(
        st.tuples(st.integers(1, 120), st.integers(1, 120)),
        st.tuples(st.integers(1, 60), st.integers(1, 60)),
        st.integers(1, 90),
        st.integers(0, 2**32 - 1),
    )
    def test_shrinking_in_parts_is_shrinking(
        self, size_hw: SizeHW, target_hw: SizeHW, side: int, seed: int
    ) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        expected = resize(pixels, target_hw).astype(int)
        assert np.abs(shrink(pixels, target_hw, side) - expected).max() <= 1


def test_the_full_view_is_resized_once() -> None:
    """The size rule makes 47 x 79 of this picture, and 48 x 80 of that."""
    seen: list[SizeHW] = []

    class Noting(Perfect):
        def prepare(self, image: np.ndarray) -> np.ndarray:
            return self.preprocessing.apply(image)

        def detect(self, resized: Sequence[np.ndarray], *told: object) -> list[Detections]:
            seen.extend(picture.shape[:2] for picture in resized)
            nothing = Detections(np.empty((0, 4)), np.empty(0), np.empty(0), [])
            return [nothing] * len(resized)

    detector = Noting([])
    detector.preprocessing = Preprocessing(SizeRule("detr", 48, 80), (0, 0, 0), (1, 1, 1))
    predict_tiled(detector, np.zeros((90, 153, 3), np.uint8), tile=90)
    assert seen[-1] == (47, 79)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile: expected at least 1 pixel, got 0"),
        ({"overlap": 1.0}, "overlap: expected a share from 0 to below 1, got 1.0"),
        ({"overlap": -0.1}, "overlap: expected a share"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"nms": -0.1}, "nms: expected an IoU of 0 to 1, got -0.1"),
        ({"threshold": {"cow": 0.5}}, "there is no category 'cow'"),
        ({"image": np.zeros(5, np.uint8)}, r"must be \(H, W\)"),
        ({"image": np.zeros((3, 50, 50), np.uint8)}, r"must be \(H, W\)"),
        ({"image": np.zeros((0, 5, 3), np.uint8)}, r"must be \(H, W\)"),
        ({"image": "nowhere.png"}, "nowhere.png: no such image file"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"image": positions(50, 50), "tile": 40, **options}
    with pytest.raises(DetrKitError, match=message):
        predict_tiled(Perfect([]), **arguments)  # type: ignore[arg-type]
