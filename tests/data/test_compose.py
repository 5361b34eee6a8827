"""Pipelines of albumentations that users bring, from Python, YAML and json."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from detr_kit.config import ImageSizeConfig, parse_config
from detr_kit.data.augmentation import train_pipeline
from detr_kit.data.compose import A, AlbumentationsPipeline, compose_from_dict
from detr_kit.data.pictures import Picture
from detr_kit.errors import DetrKitError
from detr_kit.sizes import SizeRule

RULES = (SizeRule("square", 64),)
SMALL = ImageSizeConfig(rule="square", short_side=64)
TURN = [A.Transpose(p=1.0), A.RandomCrop(40, 40, p=1.0)]


def painted() -> Picture:
    """Return a black picture of two objects; the label is the brightness, large as ids may be."""
    image = np.zeros((80, 100, 3), dtype=np.uint8)
    boxes = np.array([[10, 10, 30, 50], [60, 20, 90, 70]], dtype=np.float32)
    for (x0, y0, x1, y1), value in zip(boxes.astype(int), (100, 200), strict=True):
        image[y0:y1, x0:x1] = value
    return Picture(image, (80, 100), boxes, np.array([100, 200]))


class TestAlbumentationsPipeline:
    @pytest.mark.parametrize("seed", range(8))
    def test_boxes_and_labels_follow_the_objects(self, seed: int) -> None:
        found = AlbumentationsPipeline(A.Compose(TURN), RULES)([painted()], 0, seed=seed)
        assert found.image.shape == (64, 64, 3)
        for box, label in zip(found.boxes_xyxy, found.labels, strict=True):
            x0, y0, x1, y1 = np.round(box * 64).astype(int)
            inner = found.image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
            assert (inner == label).all()
        assert {*np.unique(found.image).tolist()} >= {*found.labels.tolist()}

    def test_labels_beyond_24_bits_survive(self) -> None:
        picture = painted()
        picture.labels[:] = [2**24 + 1, 2**40 + 1]
        found = AlbumentationsPipeline(A.Compose([A.HorizontalFlip(p=1.0)]), RULES)(
            [picture], 0, seed=0
        )
        assert found.labels.tolist() == [2**24 + 1, 2**40 + 1]

    def test_the_users_limits_on_visibility_hold_whatever_the_format(self) -> None:
        params = A.BboxParams(format="coco", label_fields=["classes"], min_visibility=0.9)
        compose = A.Compose([A.CenterCrop(80, 60, p=1.0)], bbox_params=params)
        found = AlbumentationsPipeline(compose, RULES)([painted()], 0, seed=0)
        assert found.labels.tolist() == []
        assert found.boxes_xyxy.shape == (0, 4)

    def test_seeds_decide_and_transforms_draw_independently(self) -> None:
        flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
        one, two = (AlbumentationsPipeline(A.Compose(flips), RULES) for _ in range(2))
        seen = [one([painted()], 0, seed=seed).image.tobytes() for seed in range(40)]
        assert len(set(seen)) == 4
        assert seen == [two([painted()], 0, seed=seed).image.tobytes() for seed in range(40)]

    @pytest.mark.filterwarnings("ignore:Got processor for bboxes")  # of the test's own pipeline
    def test_colours_alone_need_no_geometry(self) -> None:
        params = A.BboxParams(format="coco", label_fields=["classes"])
        compose = A.Compose([A.InvertImg(p=1.0)], bbox_params=params)
        for pipeline in (
            AlbumentationsPipeline(compose, RULES),
            train_pipeline(A.to_dict(compose), SMALL),
        ):
            found = pipeline([painted()], 0, seed=0)
            assert found.labels.tolist() == [100, 200]
            assert found.image.max() == 255

    def test_small_boxes_are_dropped_as_the_user_says(self) -> None:
        params = A.BboxParams(format="coco", label_fields=["classes"], min_width=25)
        compose = A.Compose([A.HorizontalFlip(p=1.0)], bbox_params=params)
        found = AlbumentationsPipeline(compose, RULES)([painted()], 0, seed=0)
        assert found.labels.tolist() == [200]  # 30 pixels wide, the other 20

    def test_a_transform_that_fails_names_the_picture(self) -> None:
        picture = painted()
        picture.source = Path("a.png")
        picture.read_for_training = lambda scale: np.zeros((80, 100, 3), np.uint8)  # type: ignore[method-assign]
        pipeline = AlbumentationsPipeline(A.Compose([A.RandomCrop(500, 500, p=1.0)]), RULES)
        with pytest.raises(DetrKitError, match=r"^a\.png: the augmentation failed: ") as raised:
            pipeline([picture], 0, seed=0)
        assert "\n" not in str(raised.value)

    def test_replaying_pipelines_are_refused(self) -> None:
        with pytest.raises(DetrKitError, match="ReplayCompose"):
            AlbumentationsPipeline(A.ReplayCompose([A.HorizontalFlip(p=1.0)]), RULES)

    @pytest.mark.parametrize("transform", [A.ToFloat(p=1.0), A.Normalize(p=1.0)])
    def test_pictures_must_stay_pictures(self, transform: Any) -> None:
        pipeline = AlbumentationsPipeline(A.Compose([transform]), RULES)
        with pytest.raises(DetrKitError, match=r"float32 .* must leave pictures"):
            pipeline([painted()], 0, seed=0)


class TestFromDict:
    def test_what_to_dict_writes_gives_the_same_pictures(self) -> None:
        compose = A.Compose(
            [A.RandomCrop(50, 50, p=1.0), A.RandomGamma(p=0.5)],
            bbox_params=A.BboxParams(format="pascal_voc", label_fields=["labels"]),
        )
        direct = AlbumentationsPipeline(compose, RULES)
        for values in (A.to_dict(compose), A.to_dict(compose)["transform"]):
            again = train_pipeline(json.loads(json.dumps(values)), SMALL)
            again = pickle.loads(pickle.dumps(again))
            for seed in range(5):
                left, right = (p([painted()], 0, seed=seed) for p in (direct, again))
                np.testing.assert_array_equal(left.image, right.image)
                np.testing.assert_array_equal(left.boxes_xyxy, right.boxes_xyxy)

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("PadIfNeeded", {"min_height": 90, "min_width": 110}),
            ("SafeRotate", {"limit": 20}),
            ("RGBShift", {}),
            ("ShiftScaleRotate", {}),
            ("BBoxSafeRandomCrop", {}),
            ("CoarseDropout", {}),
        ],
    )
    @pytest.mark.filterwarnings("ignore")  # advice of the test's own pipelines
    def test_what_to_dict_writes_of_a_transform_is_accepted(
        self, name: str, arguments: dict[str, Any]
    ) -> None:
        transform = getattr(A, name)(**arguments, p=1.0)
        chosen = A.OneOf([A.Sequential([transform], p=1.0), transform], p=1.0)
        values = json.loads(json.dumps(A.to_dict(A.Compose([chosen]))))
        found = train_pipeline(values, SMALL)([painted()], 0, seed=0)
        assert found.image.shape == (64, 64, 3)

    def test_a_chance_may_be_left_out(self) -> None:
        compose = compose_from_dict({"__class_fullname__": "HorizontalFlip"}, "here")
        assert compose.transforms[0].p == 0.5

    def test_a_single_transform_will_do(self) -> None:
        compose = compose_from_dict({"__class_fullname__": "HorizontalFlip", "p": 1.0}, "here")
        assert isinstance(compose, A.Compose)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                {
                    "__class_fullname__": "Compose",
                    "transforms": [{"__class_fullname__": "Flop", "p": 1.0}],
                },
                "no albumentations transform or key 'Flop'",
            ),
            (
                {"__class_fullname__": "HorizontalFlip", "p": 1.0, "strength": 3},
                "HorizontalFlip has no argument 'strength'",
            ),
            (
                {
                    "__class_fullname__": "Compose",
                    "transforms": [
                        {"__class_fullname__": "HorizontalFlip"},
                        {"__class_fullname__": "RandomGamma", "p": 7.0},
                    ],
                },
                "RandomGamma: p Input should be less than or equal to 1$",
            ),
            ({"__class_fullname__": "RandomCrop", "p": 1.0, "height": "much"}, "RandomCrop: .*"),
            ({"__class_fullname__": "os.system", "p": 1.0}, "key 'system'|key 'os.system'"),
            ({"transform": "HorizontalFlip"}, "mapping"),
            ({}, "__class_fullname__"),
            ({"__class_fullname__": "Compose"}, "transforms"),
        ],
    )
    def test_mistakes_are_named_in_one_line(self, values: Any, message: str) -> None:
        with pytest.raises(DetrKitError, match=rf"^data\.augmentation: .*({message})") as raised:
            train_pipeline(values, SMALL)
        assert "\n" not in str(raised.value)


class TestConfig:
    PIPELINE = A.to_dict(A.Compose([A.HorizontalFlip(p=0.5)]))

    @pytest.mark.parametrize("suffix", [".yaml", ".json"])
    def test_a_file_becomes_part_of_the_config(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"augmentation{suffix}"
        values = json.loads(json.dumps(self.PIPELINE))  # tuples become lists
        path.write_text(yaml.safe_dump(values) if suffix == ".yaml" else json.dumps(values))
        config = parse_config(
            {"epochs": 1, "model": {"name": "any"}, "data": {"augmentation": str(path)}}, "test"
        )
        assert config.data.augmentation == values

    def test_a_missing_file_and_an_unknown_name_are_one_line(self) -> None:
        for value, message in (("gone.yaml", "gone.yaml: no such"), ("heavy", "augmentation")):
            values = {"epochs": 1, "model": {"name": "any"}, "data": {"augmentation": value}}
            with pytest.raises(DetrKitError, match=message) as raised:
                parse_config(values, "test")
            assert "\n" not in str(raised.value)
