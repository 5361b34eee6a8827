"""The augmentation `strong`: boxes against painted objects, sizes, shares and random streams."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.data import placements as placements_module
from detr_kit.data.pictures import Picture
from detr_kit.data.pipelines import Augmented
from detr_kit.data.placements import (
    FILL_RGB,
    MIN_VISIBILITY,
    Placement,
    covering_view,
    iou_crop,
    mosaic,
    objects_of,
    pixels_of,
    zoom_out,
)
from detr_kit.data.strong import (
    SHARES,
    StrongPipeline,
    drawn_way,
    mixed,
    shown_as,
    strong_pipeline,
)
from detr_kit.data.views import View
from detr_kit.images import ImageError
from detr_kit.preprocess import resize_for_training
from detr_kit.sizes import SizeHW, SizeRule

RULE = SizeRule("detr", 96, 160)
RULES = (RULE, SizeRule("detr", 64, 160))
CANVAS = (96, 144)
BOXES = ((20, 30, 90, 100), (150, 10, 230, 60), (120, 90, 180, 150))


def colour(label: int) -> tuple[int, int, int]:
    """Return a colour that no other label and no blend with black has in all channels."""
    return 255 - 9 * label, 130 + 5 * label, 80 + 11 * label


def painted(
    size_hw: SizeHW = (160, 240), boxes: Sequence[tuple[int, ...]] = BOXES, first: int = 0
) -> Picture:
    """Return a black picture with each box filled in the colour of its label."""
    image = np.zeros((*size_hw, 3), dtype=np.uint8)
    labels = np.arange(first, first + len(boxes))
    for (x0, y0, x1, y1), label in zip(boxes, labels.tolist(), strict=True):
        image[y0:y1, x0:x1] = colour(label)
    return Picture(image, size_hw, np.array(boxes, dtype=np.float32).reshape(-1, 4), labels)


def plain(size_hw: SizeHW, boxes: Sequence[tuple[float, ...]] = (), level: int = 90) -> Picture:
    """Return a picture of one gray, whatever its boxes."""
    boxes_xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    image = np.full((*size_hw, 3), level, dtype=np.uint8)
    return Picture(image, size_hw, boxes_xyxy, np.arange(len(boxes)))


def check_painted(shown: Augmented) -> None:
    """Boxes are filled with their colour, which is nowhere else."""
    height, width = shown.image.shape[:2]
    for box, label in zip(shown.boxes_xyxy, shown.labels.tolist(), strict=True):
        x0, y0, x1, y1 = np.rint(box * (width, height, width, height)).astype(int).tolist()
        same = (shown.image == colour(label)).all(axis=-1)
        assert same[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].all()
        same[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2] = False
        assert not same.any()


def check_dropped(shown: Augmented, placements: Sequence[Placement]) -> None:
    """Of objects that are no longer listed, hardly anything is there."""
    for placement in placements:
        corners = placement.view.boxes(placement.picture.boxes_xyxy)
        sides = (corners[:, 2:] - corners[:, :2]) * placement.view.size_hw[::-1]
        for (width, height), label in zip(sides, placement.picture.labels.tolist(), strict=True):
            if label not in shown.labels:
                count = (shown.image == colour(label)).all(axis=-1).sum()
                assert count <= MIN_VISIBILITY * width * height + width + height


def composed(placements: Sequence[Placement], canvas_hw: SizeHW = CANVAS) -> Augmented:
    return Augmented(pixels_of(placements, canvas_hw), *objects_of(placements, canvas_hw))


class TestPaintedObjects:
    @pytest.mark.parametrize("draw", [iou_crop, zoom_out])
    def test_one_picture(self, draw) -> None:  # type: ignore[no-untyped-def]
        mirrored, dropped = 0, 0
        for seed in range(40):
            placement = draw(painted(), CANVAS, np.random.default_rng(seed))
            shown = composed([placement])
            check_painted(shown)
            check_dropped(shown, [placement])
            assert shown.image.shape == (*CANVAS, 3)
            mirrored += placement.view.mirrored
            dropped += 3 - len(shown.labels)
        assert 8 < mirrored < 32
        assert (dropped > 0) == (draw is iou_crop)

    def test_mosaic(self) -> None:
        pictures = [painted(first=3 * number) for number in range(4)]
        seen = set()
        for seed in range(40):
            placements = mosaic(pictures, CANVAS, np.random.default_rng(seed))
            shown = composed(placements)
            check_painted(shown)
            check_dropped(shown, placements)
            seen |= set(shown.labels.tolist())
        assert seen == set(range(12))

    @pytest.mark.parametrize("way", ["relative", "iou_crop", "zoom_out", "mosaic"])
    def test_every_way_from_a_list_of_pictures(self, way: str) -> None:
        pictures = [painted(first=3 * number) for number in range(4)]
        pictures.append(painted((240, 160), (), first=12))
        for seed in range(12):
            rng = np.random.default_rng(seed)
            shown = shown_as(way, pictures, seed % 4, RULE, rng)
            labels = shown.labels.tolist()
            if way == "mosaic" and len(set(labels)) < len(labels):
                continue  # a picture is there twice: so are its colours
            check_painted(shown)

    def test_mixup_blends_pixels_and_keeps_the_objects_of_both(self) -> None:
        first, second = (
            composed([zoom_out(painted(first=3 * k), CANVAS, np.random.default_rng(k))])
            for k in range(2)
        )
        shown = mixed(first, second, 0.4)
        expected = 0.4 * first.image.astype(float) + 0.6 * second.image
        assert np.abs(shown.image - expected).max() <= 0.5 + 1e-6
        assert shown.labels.tolist() == [0, 1, 2, 3, 4, 5]
        np.testing.assert_array_equal(shown.boxes_xyxy[:3], first.boxes_xyxy)
        np.testing.assert_array_equal(shown.boxes_xyxy[3:], second.boxes_xyxy)

    def test_mixup_never_blends_a_picture_with_itself(self) -> None:
        pictures = [painted(), painted(first=3)]
        for seed in range(20):
            shown = shown_as("mixup", pictures, 1, RULE, np.random.default_rng(seed))
            of_first = shown.labels < 3
            assert of_first.any()
            assert len(set(shown.labels.tolist())) == len(shown.labels)


class TestGeometry:
    def test_a_zoomed_out_picture_is_resized_once_and_stands_on_the_mean_colour(self) -> None:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (160, 240, 3), dtype=np.uint8)
        picture = Picture(pixels, (160, 240), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        for seed in range(10):
            placement = zoom_out(picture, CANVAS, np.random.default_rng(seed))
            image = pixels_of([placement], CANVAS)
            height, width = placement.view.size_hw
            expected = resize_for_training(pixels, (height, width))
            expected = expected[:, ::-1] if placement.view.mirrored else expected
            inside = np.zeros(CANVAS, dtype=bool)
            inside[placement.top :, placement.left :][:height, :width] = True
            np.testing.assert_array_equal(image[inside], expected.reshape(-1, 3))
            assert (image[~inside] == FILL_RGB).all()

    @pytest.mark.parametrize(("short_side", "largest"), [(96, 1.5), (480, 2.0), (800, 3.0)])
    def test_small_canvases_are_zoomed_out_less(self, short_side: int, largest: float) -> None:
        canvas_hw = (short_side, 2 * short_side)
        ratios = []
        for seed in range(60):
            placement = zoom_out(plain((50, 100)), canvas_hw, np.random.default_rng(seed))
            ratios.append(short_side / placement.view.size_hw[0])
        assert 1 <= min(ratios) < 1.1
        assert 0.9 * largest < max(ratios) < 1.02 * largest

    @pytest.mark.parametrize("minimum", [0.3, 0.7])
    def test_crops_overlap_an_object_as_demanded(
        self, minimum: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(placements_module, "_MIN_OVERLAPS", (minimum,))
        box = np.array([60, 40, 180, 120])
        cropped = 0
        for seed in range(60):
            placement = iou_crop(painted(boxes=[(60, 40, 180, 120)]), CANVAS, _rng(seed))
            window = np.array(placement.view.window_xyxy)
            low, high = np.maximum(window[:2], box[:2]), np.minimum(window[2:], box[2:])
            shared = (high - low).clip(0).prod()
            areas = (window[2:] - window[:2]).prod() + (box[2:] - box[:2]).prod()
            whole = placement.view.window_hw == (160, 240)
            assert whole or shared / (areas - shared) >= minimum
            cropped += not whole
        assert cropped > 10

    def test_crops_hold_the_centre_of_an_object_and_bound_its_stretch(self) -> None:
        for seed in range(100):
            placement = iou_crop(painted(boxes=[(10, 10, 90, 70)]), CANVAS, _rng(seed))
            x0, y0, x1, y1 = placement.view.window_xyxy
            assert x0 <= 50 <= x1
            assert y0 <= 40 <= y1
            height, width = placement.view.window_hw
            assert height >= 0.29 * 160
            assert width >= 0.29 * 240
            assert 1 / 1.55 < width / height / 1.5 < 1.55
            assert len(placement.objects(CANVAS)[1]) == 1

    def test_cut_objects_keep_their_label_while_they_are_visible(self) -> None:
        """Also with the centre outside: without a label they would be background."""
        picture = plain((100, 200), [(0, 0, 100, 100)])
        for left, kept in ((60, True), (80, True), (90, False)):
            placement = Placement(picture, View((left, 0, 200, 100), (50, 70)))
            assert len(placement.objects((50, 70))[1]) == kept

    def test_objects_under_a_pixel_are_dropped(self) -> None:
        picture = plain((100, 200), [(10, 10, 13, 90), (50, 10, 55, 90)])
        placement = Placement(picture, View((0, 0, 200, 100), (25, 50)), top=5, left=3)
        boxes, labels, _ = placement.objects((60, 80))
        assert labels.tolist() == [1]
        expected = [(50 / 4 + 3) / 80, (10 / 4 + 5) / 60, (55 / 4 + 3) / 80, (90 / 4 + 5) / 60]
        np.testing.assert_allclose(boxes, [expected], rtol=1e-6)

    @pytest.mark.parametrize("size_hw", [(120, 160), (400, 100), (60, 600)])
    @pytest.mark.parametrize("target_hw", [(40, 40), (30, 90), (90, 25)])
    def test_covering_views_stretch_little(self, size_hw: SizeHW, target_hw: SizeHW) -> None:
        for seed in range(20):
            view = covering_view(size_hw, target_hw, _rng(seed))
            height, width = view.window_hw
            stretch = (target_hw[1] / target_hw[0]) / (width / height)
            assert 1 / 1.3 < stretch < 1.3
            x0, y0, x1, y1 = view.window_xyxy
            assert 0 <= x0 < x1 <= size_hw[1]
            assert 0 <= y0 < y1 <= size_hw[0]

    def test_mosaics_leave_no_gap_and_read_every_picture_once_in_a_small_size(self) -> None:
        class Recorded(Picture):
            def read_for_training(self, scale: float) -> np.ndarray:
                scales.append(scale)
                return super().read_for_training(scale)

        scales: list[float] = []
        pixels = np.full((400, 600, 3), 200, dtype=np.uint8)
        picture = Recorded(pixels, (400, 600), np.zeros((0, 4)), np.zeros(0, np.int64))
        for seed in range(5):
            assert (pixels_of(mosaic([picture] * 4, CANVAS, _rng(seed)), CANVAS) == 200).all()
        assert len(scales) == 20
        assert max(scales) < 1

    def test_mosaics_on_a_stripe_leave_out_what_has_no_pixel(self) -> None:
        pictures = [plain((5, 700), level=50 * k) for k in range(4)]
        placements = mosaic(pictures, (1, 160), _rng(0))
        assert 1 <= len(placements) <= 2
        assert pixels_of(placements, (1, 160)).shape == (1, 160, 3)


class TestInvariants:
    @settings(derandomize=True, deadline=None, max_examples=150)
    @given(
        st.sampled_from(list(SHARES)),
        st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=3),
        st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), max_size=6),
        st.sampled_from(["detr", "yolos_16", "square", "fit", "huggingface"]),
        st.integers(0, 2**64 - 1),
    )
    def test_sizes_boxes_and_labels(
        self,
        way: str,
        sizes_hw: list[SizeHW],
        corners: list[tuple[float, ...]],
        rule: str,
        seed: int,
    ) -> None:
        pictures = []
        for size_hw in sizes_hw:
            drawn = np.array(corners).reshape(-1, 2, 2) * size_hw[::-1]
            boxes = np.concatenate([drawn.min(axis=1), drawn.max(axis=1)], axis=1)
            pictures.append(plain(size_hw, boxes.tolist()))
        alone = len(pictures) == 1
        way = "mosaic" if alone and way == "mixup" else way
        size_rule = SizeRule(rule, 48, 96)
        shown = shown_as(way, pictures, 0, size_rule, _rng(seed))
        height, width = size_rule.target_hw(sizes_hw[0])
        assert shown.image.shape == (height, width, 3)
        assert shown.image.dtype == np.uint8
        assert shown.image.flags.c_contiguous
        boxes = shown.boxes_xyxy
        assert boxes.dtype == np.float32
        assert boxes.shape == (len(shown.labels), 4)
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) * (width, height) > 0.999).all()
        assert shown.labels.dtype == np.int64
        assert set(shown.labels.tolist()) <= set(range(len(corners)))

    @pytest.mark.parametrize("size_hw", [(8, 8), (1, 1), (3, 900), (700, 4)])
    def test_single_tiny_and_elongated_pictures(self, size_hw: SizeHW) -> None:
        pipeline = strong_pipeline(RULES)
        sizes = {rule.target_hw(size_hw) for rule in RULES}
        for boxes in ([], [(0, 0, size_hw[1], size_hw[0])]):
            for seed in range(25):
                shown = pipeline([plain(size_hw, boxes)], 0, seed=seed)
                assert shown.image.shape[:2] in sizes
                assert shown.image.flags.c_contiguous
                assert shown.boxes_xyxy.shape == (len(shown.labels), 4)
                assert shown.labels.dtype == np.int64


class TestShares:
    def test_each_way_is_drawn_by_its_share(self) -> None:
        counts = Counter(drawn_way(_rng(seed), alone=False) for seed in range(4000))
        for way, share in SHARES.items():
            assert abs(counts[way] / 4000 - share) < 0.025
        alone = {drawn_way(_rng(seed), alone=True) for seed in range(400)}
        assert alone == set(SHARES) - {"mixup"}

    def test_pictures_are_shown_by_these_shares(self) -> None:
        """Told from the colours of pictures of one gray each."""
        pictures = [plain((20, 30), level=2 * k) for k in range(127)]
        pipeline = StrongPipeline((SizeRule("square", 24),), None)
        counts: Counter[str] = Counter()
        for seed in range(800):
            colours = set(map(tuple, pipeline(pictures, 5, seed=seed).image.reshape(-1, 3)))
            if FILL_RGB in colours:
                counts["zoom_out"] += 1
            elif len(colours) > 1:
                counts["mosaic"] += 1
            else:
                counts["crop" if colours == {(10, 10, 10)} else "mixup"] += 1
        shares = {**SHARES, "crop": SHARES["relative"] + SHARES["iou_crop"]}
        for way, count in counts.items():
            assert abs(count / 800 - shares[way]) < 0.04
        assert len(counts) == 4

    def test_sizes_are_those_of_the_picture_asked_for(self) -> None:
        pictures = [plain((100, 150)), plain((150, 100)), plain((70, 300))]
        pipeline = StrongPipeline(RULES, None)
        for index, picture in enumerate(pictures):
            shapes = {pipeline(pictures, index, seed=seed).image.shape[:2] for seed in range(40)}
            assert shapes == {rule.target_hw(picture.size_hw) for rule in RULES}


class TestRandomStreams:
    PICTURES = tuple(painted(first=3 * number) for number in range(4))

    def test_the_seed_decides_also_in_a_pickled_copy(self) -> None:
        one = strong_pipeline(RULES)
        one(self.PICTURES, 0, seed=99)
        two = pickle.loads(pickle.dumps(one))
        for seed in (*range(20), 2**64 - 1):
            first = one(self.PICTURES, 1, seed=seed)
            second = two(self.PICTURES, 1, seed=seed)
            np.testing.assert_array_equal(first.image, second.image)
            np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)
            np.testing.assert_array_equal(first.labels, second.labels)
        images = {one(self.PICTURES, 1, seed=seed).image.tobytes() for seed in range(20)}
        assert len(images) == 20

    def test_colours_move_no_box(self) -> None:
        coloured, uncoloured = strong_pipeline(RULES), StrongPipeline(RULES, None)
        changed = 0
        for seed in range(40):
            first = coloured(self.PICTURES, 2, seed=seed)
            second = uncoloured(self.PICTURES, 2, seed=seed)
            np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)
            np.testing.assert_array_equal(first.labels, second.labels)
            changed += first.image.tobytes() != second.image.tobytes()
        assert 20 < changed < 40

    def test_unreadable_partners_raise_their_own_error(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing.png"
        bad = Picture(missing, (20, 30), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        pipeline = StrongPipeline(RULES, None)
        pictures = [plain((20, 30)), bad]
        way_of = {drawn_way(_rng(seed), alone=False): seed for seed in range(60)}
        for way, seed in way_of.items():
            if way in ("mosaic", "mixup"):
                with pytest.raises(ImageError) as caught:
                    pipeline(pictures, 0, seed=seed)
                assert str(caught.value) == f"{missing}: no such image file"
            else:
                pipeline(pictures, 0, seed=seed)
        assert set(way_of) == set(SHARES)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
