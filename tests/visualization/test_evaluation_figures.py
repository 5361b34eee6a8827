"""What the charts and the head of an evaluation's page say about its figures."""

from __future__ import annotations

from pathlib import Path

from detr_kit.evaluation.error_kinds import KINDS
from detr_kit.evaluation.options import ScoringOptions
from tests.visualization.evaluation_pages import (
    Found,
    Objects,
    analysis_of,
    drawn_analysis,
    texts_of,
    write,
)

OBJECT: Objects = [(1, 0, [2, 3, 30, 20])]
FOUND: Found = [(1, 0, [2, 3, 30, 20], 0.9), (1, 1, [40, 30, 9, 9], 0.8)]
TWO = ("cat", "dog")
OTHERS = ScoringOptions(
    iou_thresholds=(0.3, 0.6), areas={"tiny": (0, 100)}, max_detections=(5, 300)
)


def test_error_bars_tell_what_was_counted(tmp_path: Path) -> None:
    analysis = drawn_analysis(tmp_path / "val.json")
    errors = analysis.errors
    assert min(errors.counts.values()) > 0  # the problem has them all
    page = write(analysis, tmp_path / "out.html")
    names = [kind.capitalize() for kind in KINDS]
    costs = texts_of(page, "AP50 that each kind costs")
    assert costs[0::2] == names
    assert costs[1::2] == [f"{errors.costs[kind]:.3f}" for kind in KINDS]
    counts = texts_of(page, "Number of errors of each kind")
    assert counts[1::2] == [f"{errors.counts[kind]:,}" for kind in KINDS]


def test_what_loose_boxes_cost_is_told_apart(tmp_path: Path) -> None:
    # Right at IoU 0.5 alone: nothing costs AP50, and still AP is low.
    found = [(1, 0, [2, 3, 30, 10.5], 0.9)]
    analysis = analysis_of(tmp_path / "val.json", OBJECT, found)
    page = write(analysis, tmp_path / "out.html")
    assert texts_of(page, "AP50 that each kind costs")[1::2] == ["0.000"] * 6
    loose = "What loosely placed boxes cost: AP50 less AP"
    assert texts_of(page, loose) == ["AP50", "1.000", "AP", "0.100", "Loose boxes", "0.900"]
    assert "too loose for stricter thresholds: AP50 1.000, AP 0.100." in page.text
    options = ScoringOptions(iou_thresholds=(0.5,))
    page = write(
        analysis_of(tmp_path / "val.json", OBJECT, found, options=options), tmp_path / "out.html"
    )
    assert loose not in page.text


def test_figures_at_another_iou_are_called_so(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path / "val.json", OBJECT, FOUND, TWO, options=OTHERS)
    page = write(analysis, tmp_path / "out.html")
    assert "<h2>What costs AP at IoU 0.3</h2>" in page.raw
    assert texts_of(page, "AP at IoU 0.3 that each kind costs")
    assert "AP50" not in page.text


def test_rules_that_are_not_cocos_are_said(tmp_path: Path) -> None:
    page = write(analysis_of(tmp_path / "val.json", OBJECT, FOUND, TWO), tmp_path / "out.html")
    assert "not COCO's rules" not in page.text
    analysis = analysis_of(tmp_path / "val.json", OBJECT, FOUND, TWO, options=OTHERS)
    assert (
        "not COCO's rules IoU thresholds 0.3, 0.6; at most 5, 300 detections an image and class; "
        "ranges of area: tiny"
    ) in write(analysis, tmp_path / "out.html").text
    options = ScoringOptions(class_agnostic=True)
    analysis = analysis_of(tmp_path / "val.json", OBJECT, FOUND, TWO, options=options)
    page = write(analysis, tmp_path / "out.html")
    assert "not COCO's rules all classes count as one (class-agnostic)" in page.text


def test_curves_of_classes_rest_on_enough_objects(tmp_path: Path) -> None:
    names = [f"class {place}" for place in range(6)]
    # The fewer objects, the better they are found.
    objects = [(1, k, [9 * k, 9 * n, 8, 8]) for k in range(6) for n in range(2 * k + 4)]
    found = [(1, k, [9 * k, 9 * n, 8, 8], 0.9) for k in range(6) for n in range(9 - k)]
    analysis = analysis_of(tmp_path / "val.json", objects, found, names)
    page = write(analysis, tmp_path / "out.html")
    texts = texts_of(page, "Precision and recall of classes at IoU 0.5")
    named = [text.partition(",")[0] for text in texts if "class " in text]
    assert named == ["best: class 3", "median: class 4", "worst: class 5"]
    assert "Chosen among the classes with 10 objects or more. Thin: the other classes." in page.text
    few = analysis_of(tmp_path / "val.json", [o for o in objects if o[2][1] < 30], found, names)
    page = write(few, tmp_path / "out.html")
    assert "best: class 0" in " ".join(texts_of(page, "Precision and recall of classes"))
    assert "Chosen among" not in page.text


def test_bars_of_few_objects_are_pale(tmp_path: Path) -> None:
    objects = [(1, 0, [9 * n, 0, 8, 8]) for n in range(10)]
    objects += [(2, 0, [9 * n, 0, 8, 8]) for n in range(9)]
    analysis = analysis_of(tmp_path / "val.json", objects, FOUND)
    page = write(analysis, tmp_path / "out.html")
    drawing = page.drawing("Objects in the picture: ")
    looks = {
        group.findtext("title", "").partition(":")[0]: [
            rect.attrib["class"] for rect in group.findall("rect")[1:]
        ]
        for group in drawing.iter("g")
    }
    assert looks["5 to 9"] == ["bar few", "bar other few"]
    assert looks["10 to 19"] == ["bar", "bar other"]
    assert page.text.count("Pale: fewer than 10 objects, which say little.") == 1
