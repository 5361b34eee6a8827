"""COCO files as YOLO labels, and the way there and back."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_kit.data.annotations import load_annotations
from detr_kit.data.conversions.formats import export_labels, import_labels
from detr_kit.data.conversions.yolo import export_yolo, import_yolo
from detr_kit.errors import DetrKitError
from tests.data.conversions.label_files import file_names, picture, written

# What a round trip may move a side of a box by, in pixels: the rounding of the import.
ROUND_TRIP = 0.001


def coco_file(path: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 9, "file_name": "sub/a.png", "width": 40, "height": 20}],
        "annotations": [{"id": 3, "image_id": 9, "category_id": 7, "bbox": [10, 4, 20, 8]}],
        "categories": [{"id": 7, "name": "star"}, {"id": 2, "name": "circle"}],
    }
    path.write_text(json.dumps({**content, **changes}))
    return path


class TestExport:
    def test_labels_are_fractions_and_classes_are_columns(self, tmp_path: Path) -> None:
        source = coco_file(tmp_path / "in.json")
        report = export_yolo(source, tmp_path / "out")
        labels = (tmp_path / "out/labels/sub/a.txt").read_text()
        assert labels == "1 0.50000000 0.40000000 0.50000000 0.40000000\n"
        text = (tmp_path / "out/data.yaml").read_text()
        assert yaml.safe_load(text) == {
            "train": "images",
            "val": "images",
            "names": {0: "circle", 1: "star"},
        }
        assert text.startswith("# train and val are the same pictures")
        assert str(report) == f"{tmp_path / 'out'}: 1 files of labels, 1 objects of 2 classes"
        assert not (tmp_path / "out/images").exists()

    def test_crowds_are_left_out_boxes_are_cut_and_both_counted(self, tmp_path: Path) -> None:
        box = {"image_id": 9, "category_id": 7, "bbox": [-10, 0, 20, 50]}
        source = coco_file(
            tmp_path / "in.json", annotations=[{**box, "id": 1}, {**box, "id": 2, "iscrowd": 1}]
        )
        report = export_yolo(source, tmp_path / "out")
        labels = (tmp_path / "out/labels/sub/a.txt").read_text()
        assert labels == "1 0.12500000 0.50000000 0.25000000 1.00000000\n"
        assert (report.num_objects, report.num_crowd, report.num_clipped) == (1, 1, 1)

    def test_pictures_are_linked_or_copied(self, tmp_path: Path) -> None:
        source = coco_file(tmp_path / "in.json")
        original = picture(tmp_path / "p" / "sub" / "a.png")
        for copy in (False, True):
            out = tmp_path / f"copy {copy}"
            report = export_yolo(source, out, images=tmp_path / "p", copy=copy)
            target = out / "images" / "sub" / "a.png"
            assert report.num_pictures == 1
            assert target.is_symlink() == (not copy)
            assert target.read_bytes() == original.read_bytes()
            assert import_yolo(out, tmp_path / "back.json").num_objects == 1
            assert file_names(tmp_path / "back.json") == ["sub/a.png"]

    def test_labels_without_pictures_are_read_with_the_folder_of_these(
        self, tmp_path: Path
    ) -> None:
        picture(tmp_path / "p" / "sub" / "a.png")
        export_yolo(coco_file(tmp_path / "in.json"), tmp_path / "out")
        report = import_yolo(tmp_path / "out", tmp_path / "back.json", images=tmp_path / "p")
        assert (report.num_objects, report.num_unmatched) == (1, 0)
        assert [one["name"] for one in written(tmp_path / "back.json")["categories"]] == [
            "circle",
            "star",
        ]

    def test_labels_are_where_ultralytics_looks_for_them(self, tmp_path: Path) -> None:
        image = {"id": 9, "file_name": "images/a.png", "width": 40, "height": 20}
        source = coco_file(tmp_path / "in.json", images=[image])
        picture(tmp_path / "p" / "images" / "a.png")
        export_yolo(source, tmp_path / "out", images=tmp_path / "p")
        assert (tmp_path / "out/images/labels/a.txt").is_file()
        assert import_yolo(tmp_path / "out", tmp_path / "back.json").num_objects == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"categories": []}, "annotation 3: no category has the id 7|holds no category"),
            ({"images": []}, "annotation 3: no image has the id 9"),
            (
                {"annotations": [{"id": 3, "image_id": 9, "category_id": 7, "bbox": [0, 0, 0, 5]}]},
                r"annotation 3: bbox .* has no width or no height \(1 such",
            ),
            (
                {"annotations": [{"id": 3, "image_id": 9, "category_id": 7}]},
                "annotation 3: bbox is missing",
            ),
            ({"images": [{"id": 9, "file_name": "a.png"}]}, "image 9: width .* must be"),
            (
                {"images": [{"id": 9, "file_name": "../a.png", "width": 4, "height": 2}]},
                r"image 9: file_name '../a.png' must lead to a file inside",
            ),
            (
                {
                    "images": [
                        {"id": id_, "file_name": name, "width": 40, "height": 20}
                        for id_, name in ((9, "a.png"), (10, "a.jpg"))
                    ]
                },
                "'a.png' and 'a.jpg' would have the same labels, labels/a.txt",
            ),
            (
                {"images": [{"id": 9, "file_name": "a.png", "width": 4, "height": 2}] * 2},
                "image id 9 appears twice",
            ),
        ],
    )
    def test_what_cannot_be_written_is_named(
        self, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        source = coco_file(tmp_path / "in.json", **changes)
        with pytest.raises(DetrKitError, match=message):
            export_yolo(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_bad_boxes_are_left_out_on_request(self, tmp_path: Path) -> None:
        bad = {"id": 3, "image_id": 9, "category_id": 7, "bbox": [0, 0, 0, 5]}
        source = coco_file(tmp_path / "in.json", annotations=[bad])
        report = export_yolo(source, tmp_path / "out", on_bad_box="skip")
        assert (report.num_objects, report.num_skipped) == (0, 1)
        assert (tmp_path / "out/labels/sub/a.txt").read_text() == ""

    def test_folders_and_pictures_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        source = coco_file(tmp_path / "in.json")
        with pytest.raises(DetrKitError, match="it exists; name a folder that is new or empty"):
            export_yolo(source, tmp_path)
        with pytest.raises(DetrKitError, match=r"in.json: it exists"):
            export_yolo(source, source)
        with pytest.raises(DetrKitError, match=r"out: cannot write the labels"):
            export_yolo(source, source / "out")
        with pytest.raises(DetrKitError, match="copying pictures needs images"):
            export_yolo(source, tmp_path / "out", copy=True)
        with pytest.raises(DetrKitError, match=r"sub/a.png: no such image file \(1 of 1 are m"):
            export_yolo(source, tmp_path / "out", images=tmp_path)
        (tmp_path / "out").mkdir()
        assert export_yolo(source, tmp_path / "out").num_objects == 1

    def test_pictures_that_cannot_be_linked_are_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(1, "not permitted")

        picture(tmp_path / "p" / "sub" / "a.png")
        monkeypatch.setattr(Path, "symlink_to", refuse)
        with pytest.raises(DetrKitError, match="cannot link to the file: not permitted; ask for c"):
            export_yolo(coco_file(tmp_path / "in.json"), tmp_path / "out", images=tmp_path / "p")


class TestRoundTrip:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_bccd_comes_back(self, shared_data: Path, tmp_path: Path, split: str) -> None:
        source = shared_data / "bccd" / "annotations" / f"{split}.json"
        export_yolo(source, tmp_path / "out", images=shared_data / "bccd" / "images")
        report = import_yolo(tmp_path / "out", tmp_path / "back.json")
        before, after = load_annotations(source), load_annotations(tmp_path / "back.json")
        order = np.argsort(list(before.file_names))
        assert [before.file_names[row] for row in order] == list(after.file_names)
        assert after.categories.names == before.categories.names
        for new, old in enumerate(order):
            assert after.size_hw(new) == before.size_hw(old)
            for found, wanted in zip(after.objects_of(new), before.objects_of(old), strict=True):
                np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUND_TRIP)
        assert (report.num_objects, report.num_clipped) == (before.num_objects, 0)

    @settings(derandomize=True, deadline=None, max_examples=40)
    @given(st.data())
    def test_generated_boxes_come_back(self, data: st.DataObject) -> None:
        width, height = data.draw(st.sampled_from([(640, 480), (3, 5000), (1, 1), (7919, 13)]))
        box = st.tuples(
            st.floats(0, width * 0.99), st.floats(0, height * 0.99),
            st.floats(0.002, 1), st.floats(0.002, 1),
        )  # fmt: skip
        drawn = data.draw(st.lists(box, max_size=5))
        # Sides of 0.002 pixels and more: the json keeps thousandths.
        boxes = [
            [x, y, max(w * (width - x), 0.002), max(h * (height - y), 0.002)]
            for x, y, w, h in drawn
        ]
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            Image.new("1", (width, height)).save(root / "a.png")
            annotations = [
                {"id": row, "image_id": 9, "category_id": (7, 2)[row % 2], "bbox": box}
                for row, box in enumerate(boxes)
            ]
            image = {"id": 9, "file_name": "a.png", "width": width, "height": height}
            source = coco_file(root / "in.json", images=[image], annotations=annotations)
            export_yolo(source, root / "out", images=root)
            import_yolo(root / "out", root / "back.json")
            found = written(root / "back.json")["annotations"]
        assert [one["category_id"] for one in found] == [
            (1, 0)[row % 2] for row in range(len(found))
        ]
        after = np.array([one["bbox"] for one in found]).reshape(-1, 4)
        before = np.array(boxes).reshape(-1, 4)
        np.testing.assert_allclose(after[:, :2], before[:, :2], rtol=0, atol=ROUND_TRIP)
        ends = after[:, :2] + after[:, 2:], before[:, :2] + before[:, 2:]
        np.testing.assert_allclose(*ends, rtol=0, atol=ROUND_TRIP)


def test_both_ways_go_by_the_name_of_the_format(tmp_path: Path) -> None:
    source = coco_file(tmp_path / "in.json")
    picture(tmp_path / "p" / "sub" / "a.png")
    for name in ("yolo", "voc"):
        out = tmp_path / name
        assert export_labels(source, out, name, images=tmp_path / "p").num_objects == 1
        assert os.listdir(out).count("Annotations") == (name == "voc")
        assert import_labels(out, tmp_path / "back.json").num_objects == 1
        assert import_labels(out, tmp_path / "a.json", label_format=name).num_objects == 1
