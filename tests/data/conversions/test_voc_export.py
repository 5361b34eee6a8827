"""COCO files as Pascal VOC labels, and back again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.data.annotations import load_annotations
from detr_kit.data.conversions.voc import import_voc
from detr_kit.data.conversions.voc_export import export_voc
from detr_kit.errors import DetrKitError
from tests.data.conversions.label_files import category_names, picture, written


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.json"


def coco_file(path: Path, size_wh: tuple[int, int], *annotations: dict[str, Any]) -> Path:
    content = {
        "images": [{"id": 9, "file_name": "sub/a.png", "width": size_wh[0], "height": size_wh[1]}],
        "annotations": [
            {"id": row, "image_id": 9, "category_id": 7, **one}
            for row, one in enumerate(annotations)
        ],
        "categories": [{"id": 7, "name": "star & <moon>"}, {"id": 2, "name": "Kreis ö"}],
    }
    path.write_text(json.dumps(content))
    return path


class TestExport:
    def test_the_folder_is_laid_out_like_voc(self, tmp_path: Path, out: Path) -> None:
        source = coco_file(tmp_path / "train.json", (40, 20), {"bbox": [10, 4, 20, 8]})
        picture(tmp_path / "p" / "sub" / "a.png")
        report = export_voc(source, tmp_path / "VOC", images=tmp_path / "p")
        root = tmp_path / "VOC"
        assert (root / "ImageSets/Main/train.txt").read_text() == "sub/a\n"
        assert (root / "JPEGImages/sub/a.png").is_symlink()
        text = (root / "Annotations/sub/a.xml").read_text(encoding="utf-8")
        for part in (
            "<filename>a.png</filename>", "<width>40</width>", "<name>star &amp; &lt;moon&gt;</",
            "<xmin>11</xmin>", "<ymin>5</ymin>", "<xmax>30</xmax>", "<ymax>12</ymax>",
            "<difficult>0</difficult>", "<truncated>0</truncated>", "<pose>Unspecified</pose>",
        ):  # fmt: skip
            assert part in text
        assert (report.num_images, report.num_objects, report.num_pictures) == (1, 1, 1)
        import_voc(root, out, split="train")
        assert category_names(out) == ["Kreis ö", "star & <moon>"]
        assert written(out)["annotations"][0]["bbox"] == [10.0, 4.0, 20.0, 8.0]

    def test_crowds_and_flags_come_back(self, tmp_path: Path, out: Path) -> None:
        box = [10, 4, 20, 8]
        source = coco_file(
            tmp_path / "train.json",
            (40, 20),
            {"bbox": box, "iscrowd": 1},
            {"bbox": box, "difficult": 1, "occluded": 1},
            {"bbox": box, "truncated": True},
            {"iscrowd": 1},
        )
        picture(tmp_path / "p" / "sub" / "a.png")
        report = export_voc(source, tmp_path / "VOC", images=tmp_path / "p", split="my")
        assert (report.num_objects, report.num_crowd) == (3, 1)
        import_voc(tmp_path / "VOC", out, split="my", difficult_as_crowd=False)
        found = written(out)["annotations"]
        assert [one["difficult"] for one in found] == [1, 1, 0]
        assert [one["truncated"] for one in found] == [0, 0, 1]
        assert [one.get("occluded") for one in found] == [None, 1, None]

    def test_text_that_xml_cannot_hold_is_named(self, tmp_path: Path) -> None:
        source = coco_file(tmp_path / "train.json", (40, 20), {"bbox": [1, 1, 5, 5]})
        source.write_text(source.read_text().replace("star", "a\\u0001b"))
        with pytest.raises(DetrKitError, match="xml keeps no control characters"):
            export_voc(source, tmp_path / "VOC")
        assert not (tmp_path / "VOC").exists()


class TestRoundTrip:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_whole_pixels_of_bccd_come_back_as_they_were(
        self, shared_data: Path, tmp_path: Path, out: Path, split: str
    ) -> None:
        source = shared_data / "bccd" / "annotations" / f"{split}.json"
        export_voc(source, tmp_path / "VOC", images=shared_data / "bccd" / "images")
        import_voc(tmp_path / "VOC", out, split=split)
        before, after = load_annotations(source), load_annotations(out)
        assert list(after.file_names) == list(before.file_names)
        assert after.categories.names == before.categories.names
        for name in ("sizes_hw", "offsets", "boxes_xyxy", "labels"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))

    @settings(derandomize=True, deadline=None, max_examples=30)
    @given(st.data())
    def test_boxes_move_by_half_a_pixel_or_grow_to_one(self, data: st.DataObject) -> None:
        width, height = data.draw(st.sampled_from([(640, 480), (3, 500), (1, 1)]))
        corner = st.tuples(st.floats(0, width), st.floats(0, height))
        drawn = data.draw(st.lists(st.tuples(corner, corner), min_size=1, max_size=15))
        low, high = (np.array([pick(pair, axis=0) for pair in drawn]) for pick in (np.min, np.max))
        kept = (high - low > 0.01).all(axis=1)
        before = np.concatenate([low, high], axis=1)[kept]
        boxes = np.concatenate([low, high - low], axis=1)[kept]
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            picture(root / "p" / "sub" / "a.png", width, height)
            source = coco_file(
                root / "in.json", (width, height), *({"bbox": box} for box in boxes.tolist())
            )
            export_voc(source, root / "VOC", images=root / "p")
            import_voc(root / "VOC", root / "out.json")
            found = written(root / "out.json")["annotations"]
            assert not load_annotations(root / "out.json").num_clipped
        after = np.array([one["bbox"] for one in found]).reshape(-1, 4)
        after[:, 2:] += after[:, :2]
        moved = np.abs(after - before)
        grown = np.tile(before[:, 2:] - before[:, :2] < 1, 2)
        assert (moved <= np.where(grown, 1, 0.5) + 1e-9).all()
        assert (after[:, 2:] - after[:, :2] >= 1).all()
