"""COCO files to columns: label maps, faulty boxes, references, files that are something else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.data.annotations import (
    BoxFormatWarning,
    CocoAnnotations,
    load_annotations,
)
from detr_kit.errors import DetrKitError
from tests.data.coco_values import coco


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def write_and_load(values: Any, **options: Any) -> CocoAnnotations:
        path = tmp_path / "labels.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return load_annotations(path, **options)

    return write_and_load


class TestLabelMap:
    @pytest.mark.parametrize("ids", [(0,), tuple(range(1, 11)), (3, 7, 91), (91, 3, 7)])
    def test_columns_are_contiguous_in_the_order_of_the_ids(
        self, load: Any, ids: tuple[int, ...]
    ) -> None:
        values = coco(category_ids=ids)
        values["annotations"] = [
            {"id": 0, "image_id": 5, "category_id": id_, "bbox": [1, 2, 3, 4]} for id_ in ids
        ]
        loaded = load(values)
        assert loaded.categories.ids == tuple(sorted(ids))
        assert loaded.categories.ids_array[loaded.labels].tolist() == list(ids)
        assert set(loaded.labels.tolist()) == set(range(len(ids)))
        assert loaded.labels.dtype == np.int64

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("category_id", 4, "annotation 10: no category has the id 4"),
            ("category_id", 1000, "annotation 10: no category has the id 1000"),
            ("image_id", 6, "annotation 10: no image has the id 6"),
        ],
    )
    def test_unknown_references_are_named(
        self, load: Any, key: str, value: int, message: str
    ) -> None:
        values = coco([[1, 2, 3, 4]])
        values["annotations"][0][key] = value
        with pytest.raises(DetrKitError, match=rf"labels\.json: {message}$"):
            load(values)

    def test_annotations_without_any_image_are_named(self, load: Any) -> None:
        values = coco([[1, 2, 3, 4]])
        values["images"] = []
        with pytest.raises(DetrKitError, match="annotation 10: no image has the id 5"):
            load(values)

    def test_category_ids_that_appear_twice_are_named(self, load: Any) -> None:
        with pytest.raises(DetrKitError, match=r"labels\.json: .*id 3 appears twice"):
            load(coco(category_ids=(3, 3)))


class TestColumns:
    IMAGES = (
        {"id": 7, "file_name": "b.jpg", "width": 10, "height": 20},
        {"id": 2, "file_name": "sub/a ä.jpg", "width": 30, "height": 40},
        {"id": 9, "file_name": "c.jpg", "width": 50, "height": 60},
    )

    def test_objects_follow_their_pictures_in_the_order_of_the_file(self, load: Any) -> None:
        values = coco(images=list(self.IMAGES))
        values["annotations"] = [
            {"id": id_, "image_id": image_id, "category_id": 7, "bbox": [id_, 1, 2, 3]}
            for id_, image_id in ((4, 9), (3, 7), (2, 9), (1, 9))
        ]
        loaded = load(values)
        assert len(loaded) == 3
        assert loaded.image_ids.tolist() == [7, 2, 9]
        assert list(loaded.file_names) == ["b.jpg", "sub/a ä.jpg", "c.jpg"]
        assert loaded.sizes_hw.tolist() == [[20, 10], [40, 30], [60, 50]]
        assert loaded.offsets.tolist() == [0, 1, 1, 4]
        assert loaded.annotation_ids.tolist() == [3, 4, 2, 1]
        assert loaded.size_hw(1) == (40, 30)
        boxes, labels = loaded.objects_of(2)
        assert boxes.tolist() == [[4, 1, 6, 4], [2, 1, 4, 4], [1, 1, 3, 4]]
        assert labels.tolist() == [1, 1, 1]
        assert (loaded.max_objects, loaded.num_objects, loaded.num_empty) == (3, 4, 1)

    def test_the_order_is_kept_among_many(self, load: Any) -> None:
        values = coco(images=list(self.IMAGES))
        values["annotations"] = [
            {"id": id_, "image_id": (7, 9)[id_ % 2], "category_id": 7, "bbox": [1, 1, 2, 3]}
            for id_ in range(400)
        ]
        expected = [*range(0, 400, 2), *range(1, 400, 2)]
        assert load(values).annotation_ids.tolist() == expected

    def test_pictures_without_objects_have_boxes_of_shape_0_4(self, load: Any) -> None:
        loaded = load(coco(images=list(self.IMAGES)))
        boxes, labels = loaded.objects_of(1)
        assert boxes.shape == (0, 4)
        assert boxes.dtype == np.float32
        assert labels.shape == (0,)
        assert loaded.num_empty == len(loaded) == 3
        assert loaded.max_objects == 0

    def test_no_pictures_at_all(self, load: Any) -> None:
        values = coco()
        values["images"] = []
        loaded = load(values)
        assert (len(loaded), loaded.num_objects, loaded.max_objects) == (0, 0, 0)

    def test_crowds_are_left_out_and_counted(self, load: Any) -> None:
        values = coco([[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]])
        values["annotations"][0] |= {"iscrowd": 1, "segmentation": {"counts": "x", "size": [1, 1]}}
        values["annotations"][1] |= {"iscrowd": False, "area": None}
        loaded = load(values)
        assert loaded.annotation_ids.tolist() == [11, 12]
        assert loaded.num_crowd == 1

    def test_crowds_may_have_an_empty_box(self, load: Any) -> None:
        values = coco([[1, 2, 3, 4], []])
        values["annotations"][1]["iscrowd"] = 1
        loaded = load(values)
        assert (loaded.num_crowd, loaded.num_objects) == (1, 1)
        values["annotations"][1]["iscrowd"] = 0
        with pytest.raises(DetrKitError, match="annotation 11: bbox is missing"):
            load(values)

    def test_annotation_id_0_and_large_ids_are_kept(self, load: Any) -> None:
        values = coco([[1, 2, 3, 4]], images=[{**self.IMAGES[0], "id": 2**53 + 1}])
        values["annotations"][0]["id"] = 0
        loaded = load(values)
        assert loaded.annotation_ids.tolist() == [0]
        assert loaded.image_ids.tolist() == [2**53 + 1]


class TestBoxes:
    BAD = (
        ([1, 2, 0, 4], "no width or no height"),
        ([1, 2, 3, -4], "no width or no height"),
        ([math.nan, 2, 3, 4], "not finite"),
        ([1, 2, math.inf, 4], "not finite"),
        ([100, 2, 3, 4], "outside its image"),
        ([1, -9, 3, 4], "outside its image"),
    )

    @pytest.mark.parametrize(("box", "message"), BAD)
    def test_bad_boxes_are_refused_by_name(self, load: Any, box: list[float], message: str) -> None:
        with pytest.raises(DetrKitError, match=rf"labels\.json: annotation 11: .*{message}"):
            load(coco([[1, 2, 3, 4], box]))

    def test_or_skipped_and_counted(self, load: Any) -> None:
        loaded = load(coco([[1, 2, 3, 4], *(box for box, _ in self.BAD)]), on_bad_box="skip")
        assert loaded.num_skipped == len(self.BAD)
        assert loaded.annotation_ids.tolist() == [10]
        assert loaded.num_clipped == 0

    def test_overshoot_is_clipped_and_counted(self, load: Any) -> None:
        loaded = load(coco([[-1, 2, 3, 4], [98, 70, 3, 10.005], [1, 2, 3, 4]]))
        assert loaded.boxes_xyxy.tolist() == [[0, 2, 2, 6], [98, 70, 100, 80], [1, 2, 4, 6]]
        assert loaded.num_clipped == 2

    def test_rounding_at_the_border_is_not_counted(self, load: Any) -> None:
        assert load(coco([[90, 2, 10.001, 4]])).num_clipped == 0

    @pytest.mark.parametrize("box", [[1], [1, 2, 3], [1, 2, 3, 4, 5]])
    def test_boxes_of_other_lengths_are_named(self, load: Any, box: list[float]) -> None:
        with pytest.raises(DetrKitError, match=r"annotation 10: bbox must be \[x, y, w, h\]"):
            load(coco([box]))

    def test_boxes_that_look_like_corners_raise_a_warning(self, load: Any) -> None:
        corners = [[10, 10, 40, 30], [60, 50, 90, 75], [55, 5, 99, 80]]
        with pytest.warns(BoxFormatWarning, match=r"labels\.json: the boxes look like corners"):
            load(coco(corners))
        fractions = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]]
        with pytest.warns(BoxFormatWarning, match=r"labels\.json: the boxes look like fractions"):
            load(coco(fractions))
        # As x, y, w, h the same boxes are silent (warnings are errors here).
        load(coco([[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners]))

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(st.lists(st.tuples(*[st.floats(-50, 150)] * 2, *[st.floats(-5, 150)] * 2), max_size=8))
    @pytest.mark.filterwarnings("ignore::detr_kit.data.annotations.BoxFormatWarning")
    def test_what_is_kept_lies_inside_with_positive_sides(
        self, tmp_path_factory: pytest.TempPathFactory, boxes: list[tuple[float, ...]]
    ) -> None:
        path = tmp_path_factory.mktemp("labels") / "labels.json"
        path.write_text(json.dumps(coco([list(box) for box in boxes])))
        loaded = load_annotations(path, on_bad_box="skip")
        assert loaded.num_objects + loaded.num_skipped == len(boxes)
        kept = loaded.boxes_xyxy
        assert (kept >= 0).all()
        assert (kept <= [100, 80, 100, 80]).all()
        assert (kept[:, 2:] > kept[:, :2]).all()

    def test_unknown_option(self, load: Any) -> None:
        with pytest.raises(DetrKitError, match="on_bad_box"):
            load(coco(), on_bad_box="ignore")


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DetrKitError, match=r"gone\.json: no such annotation file"):
            load_annotations(tmp_path / "gone.json")
        with pytest.raises(DetrKitError, match="cannot read the file"):
            load_annotations(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "not a json file"),
            ("{", "not a json file"),
            ("\x00\xff", "not a json file"),
            ("[]", "not a COCO annotation file"),
            ("null", "not a COCO annotation file"),
            (" NaN ", "not a COCO annotation file"),
            ("{}", "not a COCO annotation file: .*`images`"),
            (json.dumps({"images": [], "categories": []}), "`annotations`"),
            (
                json.dumps(coco(images=[{"id": 1, "file_name": "a.jpg", "height": 3}])),
                "width 0 and",
            ),
            (
                json.dumps(coco([["1", 2, 3, 4]])),
                r"annotation 10: bbox must be \[x, y, w, h\]: Exp",
            ),  # type: ignore[list-item]
            (json.dumps(coco(category_ids=())), "holds no category"),
            (json.dumps(coco(images=[{"id": 2**70, "file_name": "a"}])), r"images\[0\]: id"),
            (json.dumps(coco([[math.nan, 1, None, 3]])), "annotation 10: .* not finite"),  # type: ignore[list-item]
        ],
    )
    def test_what_is_not_coco_is_named_in_one_line(
        self, load: Any, content: str, message: str
    ) -> None:
        with pytest.raises(DetrKitError, match=rf"labels\.json: .*{message}") as raised:
            load(content)
        assert "\n" not in str(raised.value)

    def test_image_ids_that_appear_twice_are_named(self, load: Any) -> None:
        image = {"id": 5, "file_name": "a.jpg", "width": 100, "height": 80}
        with pytest.raises(DetrKitError, match="image id 5 appears twice"):
            load(coco(images=[image, image]))

    @pytest.mark.parametrize(
        "name", ["/etc/a.jpg", "../a.jpg", "b/../../a.jpg", "C:\\a.jpg", "..\\a.jpg", "", "\\a"]
    )
    def test_names_that_lead_out_of_the_folder_are_refused(self, load: Any, name: str) -> None:
        image = {"id": 5, "file_name": name, "width": 100, "height": 80}
        with pytest.raises(DetrKitError, match=r"image 5: file_name .* inside the image folder"):
            load(coco(images=[image]))

    def test_sizes_must_be_positive(self, load: Any) -> None:
        image = {"id": 5, "file_name": "a.jpg", "width": 0, "height": 80}
        with pytest.raises(DetrKitError, match="image 5: width 0 and height 80"):
            load(coco(images=[image]))


class TestRealData:
    @pytest.mark.parametrize("name", ["bccd/annotations/train.json", "coco_mini"])
    def test_columns_hold_what_the_json_says(self, shared_data: Path, name: str) -> None:
        path = shared_data / name
        if path.is_dir():
            path = next(path.glob("annotations/instances_train*.json"))
        values = json.loads(path.read_text())
        loaded = load_annotations(path)
        single = [a for a in values["annotations"] if not a.get("iscrowd")]
        assert loaded.num_objects == len(single)
        assert loaded.num_crowd == len(values["annotations"]) - len(single)
        row_of = {id_: row for row, id_ in enumerate(loaded.annotation_ids.tolist())}
        for annotation in single:
            row = row_of[annotation["id"]]
            image = np.searchsorted(loaded.offsets, row, side="right") - 1
            assert loaded.image_ids[image] == annotation["image_id"]
            assert loaded.categories.ids[loaded.labels[row]] == annotation["category_id"]
            x, y, w, h = annotation["bbox"]
            np.testing.assert_allclose(loaded.boxes_xyxy[row], [x, y, x + w, y + h], atol=0.02)
