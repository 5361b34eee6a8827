"""What the check says to a json, by a small file for each fault, and to whole files of a fault."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_kit.data.checks.findings import KINDS, MAX_CASES, CheckReport, Finding
from detr_kit.data.checks.label_faults import first_twins, repeated
from detr_kit.data.checks.run import check
from detr_kit.data.soundness import rows_of
from tests.data.checks.corpus import SAMPLES, Sample, annotation, changed, coco, whole

LABEL_KINDS = tuple(KINDS)[: tuple(KINDS).index("file_missing")]


@pytest.fixture
def found_in(tmp_path: Path) -> Any:
    def write_and_check(content: Any, **options: Any) -> dict[str, Finding]:
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(content))
        report: CheckReport = check(path, **options)
        return {finding.kind: finding for finding in report.findings}

    return write_and_check


def test_a_sound_file_has_no_findings(found_in: Any) -> None:
    assert found_in(coco()) == {}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.kind}: {sample.name}")
def test_every_fault_is_told_in_one_line(tmp_path: Path, sample: Sample) -> None:
    path = sample.write(tmp_path / "labels.json")
    report = check(path, num_queries=sample.num_queries)
    found = {finding.kind: finding for finding in report.findings}
    assert set(found) == {sample.kind, *sample.also}
    text = found[sample.kind].cases[0].text
    assert text == sample.line or (sample.kind == "not_coco" and text.startswith(sample.line))
    assert found[sample.kind].count == sample.count
    assert all("\n" not in case.text for finding in report.findings for case in finding.cases)


def test_the_corpus_has_two_files_for_every_kind_that_a_json_shows() -> None:
    kinds = [sample.kind for sample in SAMPLES]
    assert {kind for kind in LABEL_KINDS if kinds.count(kind) < 2} == set()


def test_cases_carry_what_they_are_about(found_in: Any) -> None:
    case = found_in(changed("annotations", 0, bbox=[200, 5, 30, 40]))["outside_image"].cases[0]
    assert (case.file, case.annotation_id, case.image_id) == ("a.jpg", 10, 5)
    case = found_in(changed("images", 1, width=0))["size_missing"].cases[0]
    assert (case.file, case.annotation_id, case.image_id) == ("b.jpg", None, 6)
    case = found_in(changed("annotations", 0, id=None, image_id=99))["unknown_image"].cases[0]
    assert (case.file, case.annotation_id, case.image_id) == (None, None, 99)


def test_all_are_counted_and_the_first_are_kept(found_in: Any) -> None:
    content = coco([[10, 20, 0, 1 + row] for row in range(MAX_CASES + 7)])
    finding = found_in(content, num_queries=None)["no_width_or_height"]
    assert finding.count == MAX_CASES + 7
    assert [case.annotation_id for case in finding.cases] == list(range(10, 10 + MAX_CASES))


class TestConsequencesAreLeftOut:
    def test_annotations_of_a_malformed_image_are_not_called_unknown(self, found_in: Any) -> None:
        found = found_in(changed("images", 0, width="wide"))
        assert set(found) == {"not_coco", "unused_category"}

    def test_boxes_that_are_corners_are_not_judged_as_sizes(self, found_in: Any) -> None:
        content = whole([[60, 50, 99, 79], [90, 70, 100, 80], [10, 70, 20, 75]])
        content["annotations"][0]["area"] = 29 * 39 * 10
        assert set(found_in(content)) == {"looks_like_corners"}

    def test_among_a_few_one_box_that_is_no_corner_speaks_for_all(self, found_in: Any) -> None:
        content = whole([[60, 50, 99, 79], [90, 70, 100, 80], [10, 70, 5, 5]])
        assert set(found_in(content)) == {"overshoot"}

    def test_boxes_that_are_fractions_have_no_wrong_areas(self, found_in: Any) -> None:
        content = whole([[0.1, 0.2, 0.3, 0.4], [0.5, 0.05, 0.25, 0.5]])
        content["annotations"][0]["area"] = 960
        assert set(found_in(content)) == {"looks_normalised"}

    def test_tiny_boxes_of_pixels_are_no_fractions(self, found_in: Any) -> None:
        content = whole([[0.001, 0.002, 0.003, 0.004], [0.005, 0.006, 0.002, 0.003]])
        assert found_in(content) == {}


class TestWhatIsNotKnown:
    def test_boxes_of_an_image_without_a_size_are_judged_by_what_is_known(
        self, found_in: Any
    ) -> None:
        content = coco([[500, 20, 30, 40], [-10, 20, 5, 5], [-2, 3, 50, 50], [1, 1, 0, 5]])
        content["images"][0].update(width=0, height=0)
        found = found_in(content)
        assert set(found) == {"size_missing", "outside_image", "overshoot", "no_width_or_height"}
        assert [case.annotation_id for case in found["outside_image"].cases] == [11]
        assert [case.annotation_id for case in found["overshoot"].cases] == [12]
        assert found["outside_image"].cases[0].text.endswith("lies outside its image")
        assert found["overshoot"].cases[0].text.endswith(": left by 2 pixels")

    def test_a_side_that_is_known_is_used(self, found_in: Any) -> None:
        content = coco([[500, 20, 30, 40], [10, 20, 5, 500]])
        content["images"][0].update(height=0)
        found = found_in(content)
        assert set(found) == {"size_missing", "outside_image"}

    def test_boxes_of_unknown_images_are_judged_by_themselves(self, found_in: Any) -> None:
        content = coco()
        content["annotations"] += [
            annotation(20, [500, 500, 5, 5], image_id=99),
            annotation(21, [5, 5, -1, 5], image_id=99),
        ]
        found = found_in(content)
        assert {kind: found[kind].count for kind in found} == {
            "unknown_image": 2,
            "no_width_or_height": 1,
            "wrong_area": 1,
        }

    def test_a_crowd_region_needs_no_box(self, found_in: Any) -> None:
        content = coco()
        crowd = {"id": 30, "image_id": 5, "category_id": 3, "iscrowd": 1, "area": 5}
        content["annotations"].append(crowd)
        assert found_in(content) == {}


class TestLookups:
    @pytest.mark.parametrize("spread", [1, 3, 10**12])
    def test_rows_are_those_of_a_plain_search(self, spread: int) -> None:
        generator = np.random.default_rng(0)
        known = generator.integers(-50, 50, 80) * spread
        ids = generator.integers(-80, 80, 500) * spread + generator.integers(0, 2, 500)
        expected = [(known == id_).argmax() if id_ in known else -1 for id_ in ids]
        assert rows_of(ids, known).tolist() == expected

    def test_of_nothing_nothing_is_found(self) -> None:
        none = np.empty(0, dtype=np.int64)
        assert rows_of(np.array([3]), none).tolist() == [-1]
        assert rows_of(none, np.array([3])).tolist() == []
        assert repeated(none).tolist() == []

    def test_repeated_ids_are_all_but_the_first(self) -> None:
        assert repeated(np.array([4, 2, 4, 4, 2])).tolist() == [False, False, True, True, True]

    def test_twins_are_those_of_a_plain_search(self) -> None:
        generator = np.random.default_rng(0)
        keys = generator.integers(0, 3, (400, 2))
        boxes = generator.integers(0, 2, (400, 4)).astype(np.float64)
        rows = np.flatnonzero(generator.random(400) < 0.9)
        seen: dict[tuple[float, ...], int] = {}
        expected = np.full(400, -1)
        for row in rows.tolist():
            first = seen.setdefault((*keys[row].tolist(), *boxes[row].tolist()), row)
            expected[row] = first if first != row else -1
        assert (expected >= 0).sum() > 100
        np.testing.assert_array_equal(first_twins(keys, boxes, rows), expected)


def test_time_grows_with_the_size_of_the_file_only(tmp_path: Path) -> None:
    # 40,000 boxes that are all at fault; a search per annotation would take minutes.
    content = coco([[10, 20, 30, 40]] * 20_000 + [[200, 5, 30, 40]] * 20_000)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    started = time.process_time()
    report = check(path)
    assert time.process_time() - started < 5
    assert report.count("outside_image") == 20_000
    assert report.count("duplicate_object") == 19_999
