"""Images whose size or box format is in doubt: told, taken from the files, or left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_kit.data.checks.fix import Repaired, fix
from detr_kit.data.checks.run import check
from tests.data.checks.corpus import CORNERS, annotation, changed, coco, named

Boxes = list[list[float]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a.jpg and b.jpg of 100x80."""
    path = tmp_path / "images"
    path.mkdir()
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        pixels = np.random.default_rng(seed).integers(0, 256, (80, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / name)
    return path


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to_file(content: Any) -> Path:
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(content))
        return path

    return to_file


def fixed(path: Path, images: Path | None = None) -> tuple[Any, Repaired]:
    report = check(path, images)
    result = fix(path, path.with_name("fixed.json"), report, images=images)
    again = fix(result.out, path.with_name("again.json"), images=images)
    assert again.num_changes == 0
    return json.loads(result.out.read_bytes()), result


def boxes_of(content: Any) -> Boxes:
    return [record["bbox"] for record in content["annotations"]]


def left(result: Repaired) -> dict[str, int]:
    return {found.kind: found.count for found in result.left}


class TestSizes:
    @pytest.mark.parametrize("size", [{"width": 80, "height": 100}, {"width": 50, "height": 40}])
    def test_a_size_that_the_boxes_speak_against_is_that_of_the_file(
        self, write: Any, folder: Path, size: dict[str, int]
    ) -> None:
        content = changed("images", 1, **size)
        done, result = fixed(write(content), folder)
        assert done == coco()
        assert result.left == ()
        assert result.log.read_text().splitlines()[0] == (
            "image 6 'b.jpg': width and height -> 100 x 80, as in the file"
        )

    def test_a_file_that_was_made_larger_keeps_its_labels(self, write: Any, folder: Path) -> None:
        content = changed("images", 0, width=75, height=60)
        content["annotations"][1]["bbox"] = [-9, 5, 30, 30]
        done, result = fixed(write(content), folder)
        assert done == content
        assert left(result) == {"overshoot": 1, "size_differs": 1}

    def test_boxes_that_fit_neither_are_left_alone(self, write: Any, folder: Path) -> None:
        content = changed("images", 0, width=60, height=50)
        content["annotations"][0]["bbox"] = [150, 20, 30, 40]
        done, result = fixed(write(content), folder)
        assert done == content
        assert left(result) == {"outside_image": 1, "overshoot": 1, "size_differs": 1}

    def test_the_size_of_an_image_without_boxes_is_that_of_the_file(
        self, write: Any, folder: Path
    ) -> None:
        content = coco([], annotations=[annotation(1, [1, 1, 9, 9])])
        content["images"][1]["width"] = 9
        assert fixed(write(content), folder)[0]["images"][1]["width"] == 100

    def test_without_the_files_a_swapped_size_is_told_and_its_boxes_are_kept(
        self, write: Any, folder: Path
    ) -> None:
        path = write(coco([[10, 20, 30, 75], [20, 5, 55, 90]]))
        for case in next(f for f in check(path).findings if f.kind == "overshoot").cases:
            assert case.text.endswith("; it fits with width and height swapped")
        done, result = fixed(path)
        assert boxes_of(done)[:2] == [[10, 20, 30, 75], [20, 5, 55, 90]]
        assert left(result) == {"overshoot": 2}

    def test_a_file_of_the_size_of_the_json_proves_it(self, write: Any, folder: Path) -> None:
        done, result = fixed(write(coco([[10, 20, 30, 75], [20, 5, 55, 90]])), folder)
        assert boxes_of(done)[:2] == [[10, 20, 30, 60], [20, 5, 55, 75]]
        assert result.left == ()


class TestFormats:
    def test_images_of_corners_are_converted_where_areas_prove_it(self, write: Any) -> None:
        content = coco(CORNERS)
        content["annotations"].append(annotation(91, [30, 40, 20, 10], 6))
        path = write(content)
        assert boxes_of(fixed(path)[0]) == boxes_of(content)
        for name in ("fixed.json", "fixed.log.txt", "again.json", "again.log.txt"):
            path.with_name(name).unlink()
        for record in content["annotations"][:3]:
            x0, y0, x1, y1 = record["bbox"]
            record["area"] = (x1 - x0) * (y1 - y0)
        done, result = fixed(write(content))
        assert boxes_of(done)[:3] == [[10, 20, 30, 40], [60, 5, 35, 70], [55, 40, 45, 40]]
        assert [record["area"] for record in done["annotations"][:3]] == [1200, 2450, 1800]
        assert result.left == ()

    def test_an_image_of_fractions_keeps_boxes_and_areas(self, write: Any) -> None:
        content = coco([[0.1, 0.2, 0.3, 0.4]])
        content["annotations"][0]["area"] = 960
        done, result = fixed(write(content))
        assert done == content
        assert left(result) == {"mixed_formats": 1}

    def test_one_box_of_fractions_among_others_keeps_its_area(self, write: Any) -> None:
        content = coco()
        content["annotations"][0].update(bbox=[0.1, 0.2, 0.3, 0.4], area=960)
        assert fixed(write(content))[0] == content

    def test_an_image_of_pixels_in_a_file_of_corners_is_right(self, write: Any) -> None:
        right = [[70, 40, 20, 20], [60, 30, 10, 20], [40, 60, 50, 10]]
        content = coco([*CORNERS] * 20)
        for number, box in enumerate(right):
            record = annotation(200 + number, box, 6)
            content["annotations"].append({**record, "area": box[2] * box[3]})
        content["annotations"] = [one for one in content["annotations"] if one["id"] != 90]
        for number, record in enumerate(content["annotations"][:60]):
            record["bbox"] = [value - number / 100 for value in record["bbox"]]
        report = check(write(content), num_queries=None)
        assert (report.count("looks_like_corners"), report.count("mixed_formats")) == (60, 1)
        done, result = fixed(write(content))
        assert boxes_of(done)[-3:] == right
        assert result.left == ()

    def test_boxes_are_left_where_many_pass_the_border(self, write: Any) -> None:
        boxes: Boxes = [[10, 70, 20 + i / 10, 9 + i] for i in range(20)]
        content = coco([*boxes, [200, 5, 5, 5]])
        finding = next(f for f in check(write(content)).findings if f.kind == "overshoot")
        assert "19 of 22 boxes pass it or lie outside" in finding.cases[0].text
        assert "19 of 22" not in finding.cases[1].text
        assert fixed(write(content))[0] == content

    def test_real_boxes_as_centres_are_told_and_converted(
        self, shared_data: Path, write: Any
    ) -> None:
        content = json.loads((shared_data / "bccd/annotations/val.json").read_bytes())
        expected = boxes_of(content)
        for record in content["annotations"]:
            x, y, w, h = record["bbox"]
            record["bbox"] = [x + w / 2, y + h / 2, w, h]
        path = write(content)
        assert check(path).count("looks_like_centres") == len(expected)
        np.testing.assert_allclose(boxes_of(fixed(path)[0]), expected)

    def test_every_second_image_of_corners_is_found_in_real_labels(
        self, shared_data: Path, write: Any
    ) -> None:
        content = json.loads((shared_data / "bccd/annotations/val.json").read_bytes())
        expected = boxes_of(content)
        for record in content["annotations"]:
            x, y, w, h = record["bbox"]
            if record["image_id"] % 2:
                record["bbox"] = [x, y, x + w, y + h]
        path = write(content)
        odd = {record["image_id"] for record in content["annotations"] if record["image_id"] % 2}
        assert check(path).count("mixed_formats") == len(odd)
        np.testing.assert_allclose(boxes_of(fixed(path)[0]), expected)


class TestCategories:
    @pytest.mark.parametrize(
        ("listed", "hint"),
        [
            ([2, 3, 4], "id 5 is used, ids 2-4 are listed: shifted by one?"),
            ([6], "id 5 is used, id 6 is listed: shifted by one?"),
            ([1, 2], ""),
            ([2, 4], ""),
        ],
    )
    def test_ids_that_are_all_one_off_are_told_and_kept(
        self, write: Any, listed: list[int], hint: str
    ) -> None:
        content = coco(annotations=[annotation(1, [1, 1, 5, 5], 5, 5)])
        content["categories"] = [{"id": id_, "name": f"c{id_}"} for id_ in listed]
        path = write(content)
        finding = next(f for f in check(path).findings if f.kind == "unknown_category")
        assert finding.cases[0].text.partition("; ")[2] == hint
        result = fix(path, path.with_name("fixed.json"))
        assert result.num_removed["annotations"] == (0 if hint else 1)
        assert left(result).get("unknown_category", 0) == (1 if hint else 0)


class TestNames:
    def test_the_true_name_is_written(self, write: Any, folder: Path) -> None:
        done, result = fixed(write(named("B.JPG")), folder)
        assert done["images"][1]["file_name"] == "b.jpg"
        assert result.left == ()
        assert result.log.read_text().splitlines()[0] == (
            "image 6 'B.JPG': file_name -> 'b.jpg', as the file is called"
        )

    def test_a_name_that_another_image_has_is_not_taken(self, write: Any, folder: Path) -> None:
        done, result = fixed(write(named("A.jpg")), folder)
        assert done["images"][1]["file_name"] == "A.jpg"
        assert left(result) == {"case_differs": 1}
