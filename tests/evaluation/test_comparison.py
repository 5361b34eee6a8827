"""Two results on the same pictures: which is better, and whether that can be told."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.evaluation import comparison as comparison_module
from detr_kit.evaluation import evaluate_results
from detr_kit.evaluation.bootstrap import WeightedPrecision, resampled_precisions
from detr_kit.evaluation.coco import evaluation_of
from detr_kit.evaluation.comparison import Comparison, compare_results, holm
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.results import ResultColumns
from tests.evaluation.coco_problems import ROW, Rows, coco_content, problems, write_json
from tools.interval_coverage import LAWS, OPTIONS, Law, drawn_results, drawn_truth

MIDDLING = Law(40, (0.6, 0.4, 0.25))
FIXED = settings(derandomize=True, deadline=None, max_examples=25)


def drawn(seed: int, *laws: Law) -> tuple[GroundTruth, list[ResultColumns]]:
    """Return objects, and what a detector of each law finds of them."""
    rng = np.random.default_rng(seed)
    truth, hardness = drawn_truth(rng, laws[0], laws[0].num_images)
    return truth, [drawn_results(rng, law, truth, hardness) for law in laws]


def compared(
    a: object, b: object, truth: object, resamples: int = 100, **others: object
) -> Comparison:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DetrKitWarning)
        return compare_results(a, b, truth, resamples=resamples, **others)  # type: ignore[arg-type]


def printed(comparison: Comparison, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison)
    return console.export_text()


def test_the_same_results_do_not_differ() -> None:
    truth, (found,) = drawn(0, MIDDLING)
    comparison = compared(found, found, truth)
    assert (comparison.difference, comparison.p_value) == (0, 1)
    assert (comparison.interval.low, comparison.interval.high) == (0, 0)
    assert [change.difference for change in comparison.classes] == [0, 0, 0]
    assert {(c.p_value, c.adjusted_p_value) for c in comparison.classes} == {(1, 1)}
    assert comparison.verdict == "A and B are equal, in every resample of the pictures"


def test_an_obviously_better_one_is_told_either_way_round() -> None:
    better = replace(MIDDLING, skill=3.0, shake=0.03)
    truth, (a, b) = drawn(2, MIDDLING, better)
    there, back = compared(a, b, truth), compared(b, a, truth)
    assert there.difference > 0.1
    assert there.interval.low > 0.05
    assert there.p_value < 1e-6
    assert there.verdict.startswith("B is better: +0.")
    assert there.verdict.endswith(", p < 0.001")
    assert back.difference == -there.difference
    assert back.p_value == pytest.approx(there.p_value, rel=1e-9)
    assert back.interval.low == pytest.approx(-there.interval.high, abs=1e-12)
    assert back.verdict.startswith("A is better: -0.")
    assert all(c.adjusted_p_value < 0.05 and c.difference > 0 for c in there.classes)


def test_figures_are_those_of_each_alone() -> None:
    truth, (a, b) = drawn(2, MIDDLING, MIDDLING)
    options = ScoringOptions(iou_thresholds=(0.5, 0.6), class_agnostic=True)
    comparison = compared(a, b, truth, options=options)
    for metrics, found in ((comparison.a, a), (comparison.b, b)):
        alone = evaluate_results(found, truth, options=options)
        assert replace(metrics, seconds=0) == replace(alone, seconds=0)
    assert comparison.difference == comparison.b.ap - comparison.a.ap
    assert comparison.num_images == 40
    assert [change.name for change in comparison.classes] == ["all classes"]
    assert comparison.classes[0].p_value == pytest.approx(comparison.p_value, rel=1e-9)


@FIXED
@given(seed=st.integers(0, 2**32 - 1), skill=st.sampled_from([1.0, 1.3, 2.0]))
def test_p_values_fit_their_intervals(seed: int, skill: float) -> None:
    truth, (a, b) = drawn(seed, MIDDLING, replace(MIDDLING, skill=skill))
    comparison = compared(a, b, truth, resamples=40, options=OPTIONS)
    for part in (comparison, *comparison.classes):
        if part.p_value is None:
            assert part.interval is None
            continue
        assert -1 <= part.interval.low <= part.difference <= part.interval.high <= 1
        assert 0 < part.p_value <= 1
        assert (part.p_value < 0.05) == (not part.interval.low <= 0 <= part.interval.high)
    for change in comparison.classes:
        assert change.p_value is None or change.p_value <= change.adjusted_p_value <= 1


@FIXED
@given(problem=problems())
def test_any_two_results_can_be_compared(
    tmp_path_factory: pytest.TempPathFactory, problem: object
) -> None:
    path = write_json(tmp_path_factory.mktemp("any") / "val.json", problem.content)
    comparison = compared(problem.rows, problem.rows[::2], path, resamples=5)
    json.dumps(comparison.to_dict(), allow_nan=False)
    assert comparison.verdict in " ".join(printed(comparison, 300).split())


def test_both_see_the_same_pictures() -> None:
    """What both find alike cancels out: far less is left than what each alone varies."""
    truth, (found,) = drawn(3, MIDDLING)
    moved = found.scores.copy()
    moved[:3] += 1e-3
    nearly = replace(found, scores=moved)
    comparison = compared(found, nearly, truth)
    curves = WeightedPrecision(evaluation_of(found, truth).table)
    (alone,) = resampled_precisions([curves], 100, 0)
    width = comparison.interval.high - comparison.interval.low
    assert width < 0.1 * 4 * np.nanmean(alone, axis=1).std()


def test_the_seed_decides() -> None:
    truth, (a, b) = drawn(4, MIDDLING, MIDDLING)
    first = compared(a, b, truth, seed=1)
    assert compared(a, b, truth, seed=1).interval == first.interval
    assert compared(a, b, truth, seed=2).interval != first.interval


def test_annotations_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    load = comparison_module.load_ground_truth
    monkeypatch.setattr(
        comparison_module, "load_ground_truth", lambda path: reads.append(path) or load(path)
    )
    path = write_json(tmp_path / "val.json", coco_content())
    compared([ROW], [ROW], path)
    assert reads == [path]


def test_warnings_point_at_who_asked(tmp_path: Path) -> None:
    path = write_json(tmp_path / "val.json", coco_content())
    with pytest.warns(DetrKitWarning, match="there are no detections") as caught:
        compare_results([ROW], [], path)
    assert [warning.filename for warning in caught] == [__file__]


def test_too_few_resamples_are_an_error(tmp_path: Path) -> None:
    path = write_json(tmp_path / "val.json", coco_content())
    with pytest.raises(DetrKitError, match="2 resamples or more, got 0"):
        compare_results([ROW], [ROW], path, resamples=0)


def test_nothing_to_find() -> None:
    truth, (found,) = drawn(5, replace(MIDDLING, shares=(0.0,)))
    comparison = compared(found, found, truth)
    assert comparison.difference is comparison.interval is comparison.p_value is None
    assert comparison.classes == ()
    assert comparison.verdict == "no ground truth"
    assert comparison.to_dict()["interval"] is None
    assert printed(comparison).count("no ground truth") == 13


def pictures_of_two_classes(num_images: int, num_cats: int) -> tuple[dict, Rows]:
    """One [dog] in each picture, a cat in some, and results that find all."""
    annotations = [
        {"image_id": id_, "category_id": 1, "bbox": [10, 10, 50, 50]}
        for id_ in range(1, num_images + 1)
    ]
    annotations += [
        {"image_id": id_, "category_id": 2, "bbox": [100, 10, 50, 50]}
        for id_ in range(1, num_cats + 1)
    ]
    content = coco_content(annotations, image_ids=tuple(range(1, num_images + 1)))
    content["categories"][0]["name"] = "[dog]"
    return content, [{**row, "score": 0.04} for row in annotations]


def test_few_pictures_cannot_tell_however_they_agree(tmp_path: Path) -> None:
    content, rows = pictures_of_two_classes(5, 2)
    comparison = compared([], rows, write_json(tmp_path / "val.json", content))
    assert comparison.difference == pytest.approx(1.0)
    assert comparison.interval is comparison.p_value is None
    assert comparison.verdict == (
        "no difference can be told: +1.000, but fewer than 6 pictures have objects"
    )
    text = printed(comparison)
    assert text.count("too few images") == 2
    assert "No class is seen in the 6 images that a test needs." in text


def test_a_test_is_no_surer_than_if_all_pictures_agree(tmp_path: Path) -> None:
    """Every resample shows the same difference; by the toss of a coin, 6 agree in 2 of 64 cases."""
    content, rows = pictures_of_two_classes(6, 2)
    comparison = compared([], rows, write_json(tmp_path / "val.json", content))
    assert (comparison.interval.low, comparison.interval.high) == pytest.approx((1, 1))
    assert comparison.p_value == 1 / 32
    assert comparison.verdict == "B is better: +1.000 (1.000 to 1.000), p = 0.031"


def test_classes_in_few_pictures_are_not_tested_and_come_last(tmp_path: Path) -> None:
    content, rows = pictures_of_two_classes(30, 5)
    dogs = [row for row in rows if row["category_id"] == 1]
    comparison = compared(dogs[1:], rows, write_json(tmp_path / "val.json", content))
    dog, cat = comparison.classes
    assert (dog.name, dog.num_images, dog.num_objects) == ("[dog]", 30, 30)
    assert (cat.name, cat.num_images, cat.num_objects) == ("class 2", 5, 5)
    assert 0 < dog.difference < cat.difference
    assert dog.adjusted_p_value == dog.p_value > 0.05
    assert cat.interval is cat.p_value is cat.adjusted_p_value is None


def test_classes_without_objects_are_left_out(tmp_path: Path) -> None:
    content, rows = pictures_of_two_classes(8, 0)
    comparison = compared(rows, rows[1:], write_json(tmp_path / "val.json", content))
    assert [change.name for change in comparison.classes] == ["[dog]"]


def test_p_values_adjusted_by_hand() -> None:
    assert holm([]) == []
    assert holm([0.3]) == [0.3]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]


def test_the_table_says_it_in_words(tmp_path: Path) -> None:
    content, rows = pictures_of_two_classes(40, 20)
    a = [row for row in rows if row["category_id"] == 2 or row["image_id"] > 20]
    comparison = compared(a, rows, write_json(tmp_path / "val.json", content))
    lines = printed(comparison).splitlines()
    assert lines[0].rstrip() == comparison.verdict
    assert "A and B on 40 images" in lines[1]
    for start, values in (
        ("│ AP  ", ("0.752", "1.000", "+0.248")),
        ("│ AR 100 ", ("0.750", "1.000", "+0.250")),
        ("│ [dog] ", ("40", "0.505", "1.000", "+0.495", "< 0.001")),
        ("│ class 2 ", ("20", "1.000", "1.000", "+0.000", "1.00")),
    ):
        (line,) = [line for line in lines if line.startswith(start)]
        assert all(value in line for value in values), line
    text = " ".join(" ".join(lines).split())
    assert f"{comparison.verdict} " in text
    assert comparison.verdict.startswith("B is better: +0.248 (0.1")
    assert "1 of 2 classes tested have p < 0.05; by chance alone, 0.1 would." in text
    assert "p (Holm) allows for their number: 1 below 0.05: [dog]" in text
    assert printed(comparison, 60)  # a narrow terminal


def test_results_of_other_pictures_are_told(tmp_path: Path) -> None:
    content, rows = pictures_of_two_classes(40, 20)
    path = write_json(tmp_path / "val.json", content)
    write_json(tmp_path / "all.json", rows)
    write_json(tmp_path / "some.json", [row for row in rows if row["image_id"] > 7])
    message = "B has no detections in 7 of 40 pictures in which the other has some"
    with pytest.warns(DetrKitWarning) as caught:
        comparison = compare_results(tmp_path / "all.json", tmp_path / "some.json", path)
    assert any(message in str(warning.message) for warning in caught)
    lines = printed(comparison, 300).splitlines()
    assert lines[1].rstrip() == f"A: {tmp_path / 'all.json'}"
    assert lines[2].rstrip() == f"B: {tmp_path / 'some.json'}"


def test_plain_values_for_json(tmp_path: Path) -> None:
    content, rows = pictures_of_two_classes(10, 3)
    comparison = compared(rows[2:], rows, write_json(tmp_path / "val.json", content))
    values = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert values["difference"] == comparison.difference
    assert values["interval"] == [comparison.interval.low, comparison.interval.high]
    assert values["b"]["ap"] == comparison.b.ap
    assert values["verdict"] == comparison.verdict
    assert values["classes"][0]["interval"] == [
        comparison.classes[0].interval.low,
        comparison.classes[0].interval.high,
    ]
    assert values["classes"][1]["p_value"] is None
    assert set(values) == {
        "names", "a", "b", "difference", "interval", "p_value", "verdict", "num_images", "classes",
    }  # fmt: skip


def test_p_values_are_rarely_low_where_neither_is_better() -> None:
    """In 5 % of cases; `tools/interval_coverage.py` draws more, of more laws."""
    low = 0
    for seed in range(60):
        truth, (a, b) = drawn(seed, LAWS["few-pictures"], LAWS["few-pictures"])
        low += compared(a, b, truth, options=OPTIONS).p_value < 0.05
    assert 1 <= low <= 6
