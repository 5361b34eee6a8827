"""Merges that lose nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from detr_kit.data.conversions.merging import merge
from detr_kit.data.conversions.subsets import split
from detr_kit.errors import DetrKitError
from tests.data.conversions.coco_files import by_id, classes_of_images, coco_file
from tests.data.conversions.label_files import written


class TestMerge:
    def test_parts_of_a_split_give_the_whole(self, shared_data: Path, tmp_path: Path) -> None:
        source = shared_data / "coco_mini/annotations/instances_train2017.json"
        outs = {tmp_path / "a.json": 0.6, tmp_path / "b.json": 0.4}
        split(source, outs)
        report = merge([*outs], tmp_path / "c.json")
        before, after = written(source), written(tmp_path / "c.json")
        assert report.notes == ()
        for section in ("images", "annotations"):
            assert by_id(after[section]) == by_id(before[section])
            assert len(after[section]) == len(before[section])
        for key in before.keys() - {"images", "annotations"}:
            assert after[key] == before[key]

    def test_taken_ids_change_and_nothing_else(self, tmp_path: Path) -> None:
        sources = [coco_file(tmp_path / "a.json"), coco_file(tmp_path / "b.json")]
        report = merge(sources, tmp_path / "c.json", prefixes=["a/", "b/"])
        before, after = written(sources[0]), written(tmp_path / "c.json")
        assert after["categories"] == before["categories"]
        assert after["licenses"] == before["licenses"]
        assert (after["info"], after["odd key"]) == (before["info"], before["odd key"])
        first, second = after["images"][:4], after["images"][4:]
        assert first == [
            {**image, "file_name": f"a/{image['file_name']}"} for image in before["images"]
        ]
        assert second == [
            {**image, "file_name": f"b/{image['file_name']}", "id": 9 + row}
            for row, image in enumerate(before["images"])
        ]
        new_id = {old["id"]: new["id"] for old, new in zip(before["images"], second, strict=True)}
        assert after["annotations"] == [
            *before["annotations"],
            *(
                {**one, "id": 5 + row, "image_id": new_id[one["image_id"]]}
                for row, one in enumerate(before["annotations"])
            ),
        ]
        assert report.notes == (
            f"{sources[1]}: 4 images have a new id, theirs was taken",
            f"{sources[1]}: 4 annotations have a new id, theirs was taken",
        )

    def test_categories_are_joined_by_name(self, tmp_path: Path) -> None:
        first = coco_file(tmp_path / "a.json")
        second = coco_file(
            tmp_path / "b.json",
            categories=[
                {"id": 9, "name": "circle", "extra": 1}, {"id": 3, "name": "cross", "extra": 2}
            ],
        )  # fmt: skip
        report = merge([first, second], tmp_path / "c.json", prefixes=["", "b/"])
        after = written(tmp_path / "c.json")
        assert after["categories"] == [
            {"id": 9, "name": "star", "supercategory": "shape"},
            {"id": 3, "name": "circle"},
            {"id": 10, "name": "cross", "extra": 2},
        ]
        assert [one["category_id"] for one in after["annotations"]] == [3, 3, 9, 9, 10, 10, 3, 3]
        assert f"{second}: category 'circle' has id 3, was 9" in report.notes
        assert f"{second}: category 'cross' has id 10, was 3" in report.notes
        counts = Counter(
            classes for found in classes_of_images(tmp_path / "c.json") for classes in found
        )
        assert sum(counts.values()) == 6

    def test_images_keep_their_licenses(self, tmp_path: Path) -> None:
        first = coco_file(tmp_path / "a.json")
        second = coco_file(
            tmp_path / "b.json",
            licenses=[{"id": 1, "name": "MIT"}, {"id": 2, "name": "CC BY"}, "no record"],
            info={"year": 1999},
        )
        third = coco_file(tmp_path / "d.json", licenses=[{"id": 7, "name": "CC BY"}], info={})
        report = merge([first, second, third], tmp_path / "c.json", prefixes=["a/", "b/", "d/"])
        after = written(tmp_path / "c.json")
        assert after["licenses"] == [
            {"id": 1, "name": "CC BY"}, {"id": 8, "name": "MIT"}, "no record"
        ]  # fmt: skip
        assert [image["license"] for image in after["images"]] == [1] * 4 + [8] * 4 + [1] * 4
        assert f"{second}: its 'info' is left out, the first one is kept" in report.notes
        assert not any("d.json: its 'info'" in note for note in report.notes)

    def test_records_without_ids_or_licenses_are_fine(self, tmp_path: Path) -> None:
        plain = {
            "images": [{"id": 1, "file_name": "z.png", "width": 4, "height": 4}],
            "annotations": [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}],
            "categories": [{"id": 3, "name": "circle"}],
        }
        (tmp_path / "b.json").write_text(json.dumps(plain))
        merge([coco_file(tmp_path / "a.json"), tmp_path / "b.json"], tmp_path / "c.json")
        assert written(tmp_path / "c.json")["annotations"][-1] == plain["annotations"][0]

    @pytest.mark.parametrize(
        ("names", "out", "prefixes", "message"),
        [
            (["a", "b"], "c", [], r"b.json: the file name '5.png' is in .*a.json too; give"),
            (["a", "a"], "c", [], r"a.json: the file name '5.png' is in .*a.json too"),
            (["a", "b"], "c", ["x/", "x/"], "the file name 'x/5.png' is in"),
            (["a"], "c", [], "two sources or more"),
            (["a", "b"], "c", ["x/"], "1 prefixes for 2 sources"),
            (["a", "b"], "c", ["../", "y/"], r"prefix '../': '../5.png' must stay inside"),
            (["a", "b"], "b", [], r"b.json: it is an input"),
        ],
    )
    def test_what_cannot_be_done_is_named(
        self, tmp_path: Path, names: list[str], out: str, prefixes: list[str], message: str
    ) -> None:
        for name in ("a", "b"):
            coco_file(tmp_path / f"{name}.json")
        sources = [tmp_path / f"{name}.json" for name in names]
        with pytest.raises(DetrKitError, match=message):
            merge(sources, tmp_path / f"{out}.json", prefixes=prefixes)
        assert not (tmp_path / "c.json").exists()
