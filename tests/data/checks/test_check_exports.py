"""Files as other data sets and tools write them: no false alarms, and repairs that lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detr_kit.data.checks.fix import fix
from detr_kit.data.checks.run import check
from detr_kit.errors import DetrKitError
from tests.data.checks.corpus import Coco, coco


def each(content: Coco, section: str, **values: Any) -> Coco:
    """Return the file with values in every record of a section; ... removes a key."""
    for record in content[section]:
        record.update(values)
        for key in [key for key, value in record.items() if value is ...]:
            del record[key]
    return content


def write(tmp_path: Path, content: Coco) -> Path:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    return path


SOUND = {
    "LVIS": each(each(coco(), "images", neg_category_ids=[3], not_exhaustive_category_ids=[]),
                 "annotations", iscrowd=...),
    "key points": each(coco(), "annotations", keypoints=[0] * 51, num_keypoints=0),
    "crowds as polygons": coco() | {"annotations": [
        *coco()["annotations"],
        *({**one, "id": one["id"] + 100, "iscrowd": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
          for one in coco()["annotations"]),
    ]},
    "Open Images": each(coco(), "annotations", isoccluded=True, isgroupof=False),
    "CVAT": each(each(coco(), "annotations", segmentation=[], attributes={"occluded": False}),
                 "images", license=0, flickr_url="", date_captured=0),
    "nulls": each(each(coco(), "images", license=None, coco_url=None),
                  "annotations", segmentation=None) | {"info": None, "licenses": None},
    "Roboflow": coco() | {"categories": [{"id": 0, "name": "pets", "supercategory": "none"},
                                         *coco()["categories"]]},
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_files_of_others_have_notes_only(tmp_path: Path, name: str) -> None:
    findings = check(write(tmp_path, SOUND[name])).findings
    assert {found.kind for found in findings if found.severity != "note"} == set()


def test_a_class_that_is_also_its_own_unused_group_is_repaired(tmp_path: Path) -> None:
    group = {"id": 0, "name": "cat", "supercategory": "none"}
    path = write(tmp_path, coco() | {"categories": [group, *coco()["categories"]]})
    result = fix(path, tmp_path / "fixed.json")
    assert json.loads(result.out.read_bytes()) == coco()
    assert result.log.read_text().splitlines() == [
        "category 0 'cat': removed: its name is that of category 3 'cat'; it has no objects",
        "changes: 1",
    ]


def test_a_class_whose_objects_are_all_removed_is_unused(tmp_path: Path) -> None:
    content = coco([[200, 5, 30, 40]]) | {"categories": [{"id": i, "name": "cat"} for i in (3, 7)]}
    result = fix(write(tmp_path, content), tmp_path / "fixed.json")
    assert json.loads(result.out.read_bytes())["categories"] == [{"id": 7, "name": "cat"}]
    assert fix(result.out, tmp_path / "again.json").num_changes == 0


def test_annotations_whose_ids_are_words_get_new_ones(tmp_path: Path) -> None:
    content = coco()
    for record in content["annotations"]:
        record["id"] = f"a-{record['id']}"
    result = fix(write(tmp_path, content), tmp_path / "fixed.json")
    repaired = json.loads(result.out.read_bytes())["annotations"]
    assert [record["id"] for record in repaired] == [1, 2, 3]
    assert [record["bbox"] for record in repaired] == [r["bbox"] for r in content["annotations"]]
    assert 'id "a-10" -> null' in result.log.read_text().splitlines()[0]


def panoptic() -> Coco:
    segments = [{"id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 9, "iscrowd": 0}]
    return coco([], annotations=[{"image_id": 5, "file_name": "a.png", "segments_info": segments}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (panoptic(), "all of its 1 annotations; annotations.0.: Object missing required field"),
        (each(coco(), "images", file_name=..., coco_url="http://localhost/train2017/1.jpg"),
         "all of its 2 images; image 5 .no file_name.: it has no file_name"),
        (each(coco(), "images", id="x"), "all of its 2 images; images.0.: id: Expected"),
    ],
    ids=["panoptic", "LVIS without file names", "image ids are words"],
)  # fmt: skip
def test_a_repair_that_would_leave_nothing_is_refused(
    tmp_path: Path, content: Coco, message: str
) -> None:
    path = write(tmp_path, content)
    assert check(path).num_errors > 0
    with pytest.raises(DetrKitError, match=message):
        fix(path, tmp_path / "fixed.json")
    assert [file.name for file in tmp_path.iterdir()] == ["labels.json"]


def test_what_is_no_json_is_replaced_and_that_is_logged(tmp_path: Path) -> None:
    path = write(tmp_path, each(coco(), "annotations", score=float("nan")))
    result = fix(path, tmp_path / "fixed.json")
    assert {one["score"] for one in json.loads(result.out.read_bytes())["annotations"]} == {None}
    assert result.log.read_text().splitlines() == [
        "labels.json: rewritten as plain json: UTF-8, null for NaN and Infinity",
        "changes: 1",
    ]
    assert fix(result.out, tmp_path / "again.json").num_changes == 0
