"""The repaired copy of a file and its log."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detr_kit.data.checks.findings import KINDS
from detr_kit.data.checks.fix import Repaired, fix
from detr_kit.data.checks.run import check
from detr_kit.errors import DetrKitError
from tests.data.checks.corpus import (
    NEVER_REPAIRED,
    SAMPLES,
    Sample,
    added,
    annotation,
    changed,
    coco,
    named,
    replaced,
    whole,
)


@dataclass
class Outcome:
    content: dict[str, Any]
    lines: list[str]
    result: Repaired

    @property
    def annotations(self) -> dict[int, dict[str, Any]]:
        return {record["id"]: record for record in self.content["annotations"]}


@pytest.fixture
def repaired(tmp_path: Path) -> Any:
    def write_and_fix(content: Any, **options: Any) -> Outcome:
        path, out = tmp_path / "labels.json", tmp_path / "fixed.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        result = fix(path, out, **options)
        lines = result.log.read_text(encoding="utf-8").splitlines()
        return Outcome(json.loads(out.read_bytes()), lines, result)

    return write_and_fix


def test_a_sound_file_is_copied(repaired: Any) -> None:
    done = repaired(coco())
    assert done.content == coco()
    assert done.lines == ["changes: 0"]
    assert (done.result.num_changes, done.result.left) == (0, ())


def test_records_without_a_fault_are_copied_byte_for_byte(tmp_path: Path) -> None:
    path, out = tmp_path / "labels.json", tmp_path / "fixed.json"
    odd = b'{"id":  1e1 ,"image_id":5,"category_id":3,"bbox":[1.50,2,3E0,4],"area":1.0,"iscrowd":0'
    kept = odd.replace(b"1e1", b"11") + b',"segmentation":[[1.0,2.00, 3 ]],"\\u00e9":"\xc3\xa9"}'
    content = json.dumps(coco([])).encode().replace(b'"annotations": [', b'"annotations": [' + kept)
    content = content.replace(kept, kept + b",").replace(
        b'{"images"', b'{"info":{"a" : 1},"images"'
    )
    path.write_bytes(content)
    fix(path, out)
    assert kept in out.read_bytes()
    assert b'"info": {"a" : 1}' in out.read_bytes()


@pytest.mark.parametrize(
    "sample",
    [sample for sample in SAMPLES if not isinstance(sample.content, bytes) or sample.repairable],
    ids=lambda sample: f"{sample.kind}: {sample.name}",
)
def test_nothing_that_can_be_repaired_is_left(tmp_path: Path, sample: Sample) -> None:
    path, out = sample.write(tmp_path / "labels.json"), tmp_path / "fixed.json"
    before = path.read_bytes()
    result = fix(path, out)
    assert path.read_bytes() == before
    lines = result.log.read_text(encoding="utf-8").splitlines()
    assert lines[result.num_changes] == f"changes: {result.num_changes}"
    severe = {found.kind for found in check(out).findings if found.severity != "note"}
    assert {found.kind for found in result.left} == severe - {"too_many_objects"}
    if KINDS[sample.kind][0] != "note" and sample.kind != "too_many_objects":
        assert (sample.kind in severe) == (not sample.repairable)
        assert result.num_changes > 0 or not sample.repairable
    assert severe <= NEVER_REPAIRED | {"too_many_objects"} or not sample.repairable
    again = fix(out, tmp_path / "again.json")
    assert again.num_changes == 0
    assert json.loads((tmp_path / "again.json").read_bytes()) == json.loads(out.read_bytes())


class TestBoxes:
    @pytest.mark.parametrize(
        ("box", "reason"),
        [
            ([10, 20, 0, 40], "its bbox has no width or no height: [10, 20, 0, 40]"),
            ([200, 5, 30, 40], "its bbox lies outside its image: [200, 5, 30, 40]"),
        ],
    )
    def test_boxes_of_which_nothing_can_be_used_are_removed(
        self, repaired: Any, box: list[float], reason: str
    ) -> None:
        done = repaired(coco([box, [50, 5, 20, 30]]))
        assert list(done.annotations) == [11, 90]
        assert done.lines == [
            f"annotation 10 (image 5 'a.jpg'): removed: {reason}",
            "changes: 1",
        ]

    def test_overshoot_is_clipped(self, repaired: Any) -> None:
        done = repaired(coco([[-5, 10.5, 30, 40], [80, 65, 25, 20]]))
        assert done.annotations[10]["bbox"] == [0, 10.5, 25, 40]
        assert done.annotations[11]["bbox"] == [80, 65, 20, 15]
        assert done.lines[0] == (
            "annotation 10 (image 5 'a.jpg'): bbox [-5, 10.5, 30, 40] -> [0, 10.5, 25, 40]: "
            "clipped to its image"
        )

    def test_area_follows_a_box_only_where_it_was_that_of_the_box(self, repaired: Any) -> None:
        content = coco([[-5, 10, 30, 40], [-5, 10, 30, 30]])
        content["annotations"][0]["area"] = 1200
        content["annotations"][1]["area"] = 333
        done = repaired(content)
        assert done.annotations[10]["area"] == 25 * 40
        assert done.annotations[11]["area"] == 333
        assert done.lines[1] == "annotation 10 (image 5 'a.jpg'): area 1200 -> 1000"

    def test_area_of_a_mask_that_does_not_fit_the_clipped_box_is_replaced(
        self, repaired: Any
    ) -> None:
        content = coco([[-10, 10, 30, 40]])
        content["annotations"][0]["area"] = 1100
        assert repaired(content).annotations[10]["area"] == 20 * 40

    def test_corners_are_converted_in_the_whole_file(self, repaired: Any) -> None:
        content = whole([[10, 20, 40, 60], [60, 5, 95.5, 75], [55, 40, 100, 80]])
        for record in content["annotations"]:
            x0, y0, x1, y1 = record["bbox"]
            record["area"] = (x1 - x0) * (y1 - y0)
        done = repaired(content)
        boxes = [record["bbox"] for record in done.content["annotations"]]
        assert boxes == [[10, 20, 30, 40], [60, 5, 35.5, 70], [55, 40, 45, 40]]
        areas = [record["area"] for record in done.content["annotations"]]
        assert areas == [1200, 35.5 * 70, 1800]
        assert done.lines[0] == (
            "annotation 10 (image 5 'a.jpg'): bbox [10, 20, 40, 60] -> [10, 20, 30, 40]: "
            "as x, y, w, h in pixels"
        )

    @pytest.mark.parametrize(
        ("boxes", "pixels"),
        [
            ([[0.1, 0.2, 0.3, 0.4], [0.5, 0, 0.5, 1]], [[10, 16, 30, 32], [50, 0, 50, 80]]),
            ([[0.1, 0.2, 0.4, 0.6], [0.6, 0.5, 0.9, 1]], [[10, 16, 30, 32], [60, 40, 30, 40]]),
            ([[0.3, 0.2, 0.2, 0.4], [0.9, 0.5, 0.2, 1]], [[20, 0, 20, 32], [80, 0, 20, 80]]),
        ],
        ids=["sizes", "corners", "centres"],
    )
    def test_fractions_are_converted_in_the_whole_file(
        self, repaired: Any, boxes: list[list[float]], pixels: list[list[float]]
    ) -> None:
        content = whole(boxes)
        for record in content["annotations"]:
            record["area"] = 0.01
        done = repaired(content)
        assert [record["bbox"] for record in done.content["annotations"]] == pixels
        assert [record["area"] for record in done.content["annotations"]] == [80, 80]

    def test_fractions_wait_for_the_sizes_of_all_images(self, repaired: Any) -> None:
        content = whole([[0.1, 0.2, 0.3, 0.4], [0.5, 0, 0.5, 1]])
        del content["images"][1]["width"]
        done = repaired(content)
        assert [record["bbox"] for record in done.content["annotations"]] == [
            [0.1, 0.2, 0.3, 0.4],
            [0.5, 0, 0.5, 1],
        ]
        assert {found.kind for found in done.result.left} == {"looks_normalised", "size_missing"}


class TestIds:
    def test_taken_and_missing_ids_become_new_ones_above_the_largest(self, repaired: Any) -> None:
        content = coco([[1, 1, 5, 5], [2, 2, 5, 5], [3, 3, 5, 5]])
        content["annotations"][1]["id"] = 10
        del content["annotations"][2]["id"]
        done = repaired(content)
        assert list(done.annotations) == [10, 91, 92, 90]
        assert done.lines[:2] == [
            "annotation 10 (image 5 'a.jpg'): id -> 91: 10 is taken",
            "annotations[2] (without an id) (image 5 'a.jpg'): id -> 92: it had none",
        ]

    def test_where_there_is_no_room_above_the_largest_free_ones_are_taken(
        self, repaired: Any
    ) -> None:
        content = coco([[1, 1, 5, 5], [2, 2, 5, 5], [3, 3, 5, 5]])
        content["annotations"][0]["id"] = 2**63 - 1
        content["annotations"][1]["id"] = 1
        content["annotations"][2]["id"] = 1
        assert list(repaired(content).annotations) == [2**63 - 1, 1, 2, 90]

    def test_an_object_that_is_there_twice_is_removed_not_renumbered(self, repaired: Any) -> None:
        done = repaired(added("annotations", annotation(10, [10, 20, 30, 40])))
        assert list(done.annotations) == [10, 11, 90]
        assert done.result.num_removed == {"images": 0, "annotations": 1, "categories": 0}

    def test_the_second_image_of_an_id_goes_and_the_log_says_what_that_means(
        self, repaired: Any
    ) -> None:
        other = {"id": 5, "file_name": "c.jpg", "width": 100, "height": 80}
        done = repaired(added("images", other))
        assert [image["file_name"] for image in done.content["images"]] == ["a.jpg", "b.jpg"]
        assert len(done.annotations) == 3
        assert done.lines[0] == (
            "image 5 'c.jpg': removed: its id is that of image 5 'a.jpg', which keeps all "
            "annotations of the id: look at them"
        )

    def test_an_image_that_goes_takes_its_annotations_along(self, repaired: Any) -> None:
        done = repaired(named("../b.jpg"))
        assert [image["id"] for image in done.content["images"]] == [5]
        assert list(done.annotations) == [10, 11]
        assert done.lines[1] == "annotation 90 (image 6): removed: its image is removed: image_id 6"

    def test_an_image_is_not_lost_where_another_of_its_id_is_sound(self, repaired: Any) -> None:
        content = added("images", {"id": 5, "file_name": "", "width": 1, "height": 1})
        content["images"].insert(0, content["images"].pop())
        done = repaired(content)
        assert [image["file_name"] for image in done.content["images"]] == ["a.jpg", "b.jpg"]
        assert len(done.annotations) == 3


class TestRecords:
    def test_numbers_in_another_form_are_put_right_not_removed(self, repaired: Any) -> None:
        content = changed("images", 0, width=100.0, id="5")
        content["annotations"][0].update(bbox=["10", 20, "30.5", 40], image_id="5", iscrowd=0.0)
        content["categories"][1].update(id="7", name=101)
        done = repaired(content)
        assert done.content["images"][0] == coco()["images"][0]
        assert done.annotations[10]["bbox"] == [10, 20, 30.5, 40]
        assert done.annotations[10]["image_id"] == 5
        assert done.content["categories"][1] == {"id": 7, "name": "101"}
        assert done.lines == [
            "image 5 'a.jpg': id \"5\" -> 5, width 100.0 -> 100",
            'annotation 10 (image 5 \'a.jpg\'): image_id "5" -> 5, bbox ["10", 20, "30.5", 40] -> '
            "[10.0, 20, 30.5, 40], iscrowd 0.0 -> 0",
            'category 7 \'101\': id "7" -> 7, name 101 -> "101"',
            "changes: 3",
        ]

    def test_other_malformed_records_are_removed_with_what_hangs_on_them(
        self, repaired: Any
    ) -> None:
        content = changed("images", 0, width="wide")
        content["annotations"].append([])
        done = repaired(content)
        assert [image["id"] for image in done.content["images"]] == [6]
        assert list(done.annotations) == [90]
        assert [line.partition(": removed")[0] for line in done.lines[:4]] == [
            "image 5: width: Expected `int | null`, got `str`",
            "annotation 10 (image 5)",
            "annotation 11 (image 5)",
            "annotations[3]: Expected `object`, got `array`",
        ]

    def test_objects_of_a_category_that_cannot_be_read_are_kept(self, repaired: Any) -> None:
        done = repaired(changed("categories", 0, id="three"))
        assert len(done.annotations) == 3
        assert {found.kind for found in done.result.left} == {"not_coco", "unknown_category"}
        assert done.lines[0] == "changes: 0"
        assert "left: not_coco: categories[0]: id: Expected `int`, got `str`" in done.lines

    def test_missing_values_are_filled_in(self, repaired: Any) -> None:
        content = changed("annotations", 0, area=None, iscrowd=None)
        done = repaired(content)
        assert done.annotations[10]["area"] == 1200
        assert done.annotations[10]["iscrowd"] == 0
        assert done.lines[:2] == [
            "annotation 10 (image 5 'a.jpg'): area -> 1200",
            "annotation 10 (image 5 'a.jpg'): iscrowd -> 0: it had none",
        ]

    def test_field_names_that_are_no_text_do_not_stop_a_repair(self, repaired: Any) -> None:
        done = repaired(replaced('"iscrowd"', '"Z"').replace(b"Z", b"\xff"))
        assert done.annotations[10]["\ufffd"] == 0
        assert done.lines[0] == "annotation 10 (image 5 'a.jpg'): bytes that are no UTF-8 -> \ufffd"

    def test_polygons_of_a_changed_record_are_kept_as_written(
        self, repaired: Any, tmp_path: Path
    ) -> None:
        repaired(replaced('"iscrowd": 0', '"segmentation": [[1.00, 2]]'))
        assert b'"segmentation":[[1.00, 2]]' in (tmp_path / "fixed.json").read_bytes()


class TestSizes:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (100, 80)).save(folder / "a.jpg")
        Image.new("RGB", (100, 80)).save(folder / "b.jpg", exif=exif)
        return folder

    def test_a_missing_size_is_that_of_the_file(self, repaired: Any, folder: Path) -> None:
        done = repaired(changed("images", 0, width=None), images=folder)
        assert done.content["images"][0]["width"] == 100
        assert done.lines[0] == "image 5 'a.jpg': width and height -> 100 x 80, as in the file"
        assert done.result.left == ()

    @pytest.mark.parametrize("name", ["b.jpg", "missing.jpg"])
    def test_it_is_not_guessed_where_exif_turns_the_file_or_it_is_missing(
        self, repaired: Any, folder: Path, name: str
    ) -> None:
        done = repaired(changed("images", 0, width=0, file_name=name), images=folder)
        assert done.content["images"][0]["width"] == 0
        assert "size_missing" in {found.kind for found in done.result.left}

    def test_fractions_become_pixels_of_sizes_that_were_read(
        self, repaired: Any, folder: Path
    ) -> None:
        content = whole([[0.1, 0.2, 0.3, 0.4], [0.5, 0, 0.5, 1]])
        del content["images"][0]["width"]
        done = repaired(content, images=folder)
        assert done.annotations[10]["bbox"] == [10, 16, 30, 32]

    def test_what_the_report_says_of_pictures_is_listed_as_left(
        self, repaired: Any, folder: Path, tmp_path: Path
    ) -> None:
        content = named("missing.jpg")
        (tmp_path / "labels.json").write_text(json.dumps(content))
        report = check(tmp_path / "labels.json", folder)
        done = repaired(content, report=report)
        assert [found.kind for found in done.result.left] == ["file_missing"]
        assert any(line.startswith("left: file_missing: ") for line in done.lines)


class TestFiles:
    def test_the_original_is_never_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(coco()))
        link = tmp_path / "link.json"
        link.symlink_to(path)
        for out in (path, link, tmp_path / "." / "labels.json"):
            with pytest.raises(DetrKitError, match="it is the file to repair"):
                fix(path, out)
        log = path.rename(tmp_path / "labels.log.txt")
        with pytest.raises(DetrKitError, match="it is the file to repair"):
            fix(log, tmp_path / "labels.json")

    def test_nothing_is_written_for_a_file_that_is_no_coco(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.json"
        for content, message in (
            ("[]", "not a COCO annotation file"),
            ('{"images": [], "annotations": []}', "it has no categories"),
            ("{", "not a json file"),
        ):
            path.write_text(content)
            with pytest.raises(DetrKitError, match=message):
                fix(path, tmp_path / "fixed.json")
        assert os.listdir(tmp_path) == ["labels.json"]

    def test_places_that_cannot_be_written_are_named(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(coco()))
        with pytest.raises(DetrKitError, match="it is a folder"):
            fix(path, tmp_path)
        with pytest.raises(DetrKitError, match=r"fixed\.json: cannot write"):
            fix(path, path / "fixed.json")
