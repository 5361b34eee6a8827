"""The page of an evaluation: complete in itself, true to the analysis, safe with any text."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detr_kit.data.coco_file import read_columns
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.analysis import analyse
from detr_kit.evaluation.coco import evaluation_of
from detr_kit.evaluation.metrics import Interval
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.results import write_results
from detr_kit.visualization.evaluation_report import write_evaluation_report
from detr_kit.visualization.page import MAX_BYTES
from tests.visualization.evaluation_pages import (
    Found,
    Objects,
    analysis_of,
    drawn_analysis,
    texts_of,
    write,
)
from tests.visualization.report_pages import Page, picture

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\x00\u202e"
SECTIONS = [
    "What costs AP50",
    "Curves",
    "Confusion of classes",
    "Which objects are found",
    "Classes",
    "Pictures",
]
HISTORY = [{"epoch": 1, "lr": 1e-4, "train": {"class": 1.0}, "val": {"ap": 0.1}}]


def class_names(page: Page) -> list[str]:
    """Return the names in the tables of classes, in their order."""
    tables = re.findall(r'<table class="classes".*?</table>', page.raw, re.S)
    return [name for table in tables for name in re.findall(r"<td><bdi>(.*?)</bdi>", table)]


def test_the_page_is_complete_in_itself(tmp_path: Path) -> None:
    for id_ in range(1, 21):
        picture(tmp_path / "images" / f"{id_}.png", 640, 480)
    analysis = drawn_analysis(tmp_path / "val.json")
    page = write(analysis, tmp_path / "out.html", images=tmp_path / "images", history=HISTORY)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "srcset", "xlink:href", "action", "background", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name)
    assert not re.search(r"https?://|@import|url\(", page.raw)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert (policy or "").startswith("default-src 'none'; img-src data:;")


def test_sections_stand_in_their_order(tmp_path: Path) -> None:
    analysis = drawn_analysis(tmp_path / "val.json")
    headings = re.findall(r"<h2>(.*?)</h2>", write(analysis, tmp_path / "out.html").raw)
    assert headings == SECTIONS
    page = write(analysis, tmp_path / "out.html", history=HISTORY)
    assert re.findall(r"<h2>(.*?)</h2>", page.raw) == [*SECTIONS, "Training"]
    # Each says in one sentence how to read it.
    assert len(re.findall(r'</h2>\s*<p class="soft">[^<]{40,}\.</p>', page.raw)) == 7
    # The head leads to each of them.
    targets = [a["href"] for tag, a in page.tags if tag == "a"]
    assert targets == [f"#{a['id']}" for tag, a in page.tags if tag == "section"]
    assert len(targets) == 7


def test_the_head_has_all_figures(tmp_path: Path) -> None:
    analysis = drawn_analysis(tmp_path / "val.json")
    metrics = analysis.evaluation.metrics
    page = write(analysis, tmp_path / "out.html", title="my run", subtitle="a/b.json")
    assert page.texts[1:3] == ["my run", "a/b.json"]
    assert f"AP {metrics.ap:.3f}" in page.texts
    for figure, value in metrics.figures():
        expected = "no ground truth" if value is None else f"{value:.3f}"
        assert f"{figure.name} {figure.over} {expected}" in page.text
    for line in ("images 20", f"detections {metrics.num_detections}", "objects 52"):
        assert line in page.text
    assert "interval" not in page.text
    metrics = replace(metrics, ap_interval=Interval(0.1234, 0.5678, 0.9))
    evaluation = replace(analysis.evaluation, metrics=metrics)
    page = write(replace(analysis, evaluation=evaluation), tmp_path / "out.html")
    assert f"AP {metrics.ap:.3f}, 90 % interval 0.123 to 0.568" in page.texts


def test_curves_name_their_figures(tmp_path: Path) -> None:
    analysis = drawn_analysis(tmp_path / "val.json")
    metrics, curves = analysis.evaluation.metrics, analysis.score_curves
    page = write(analysis, tmp_path / "out.html")
    by_iou = texts_of(page, "Precision and recall by IoU threshold")
    assert f"IoU 0.5: AP {metrics.ap50:.3f}" in by_iou
    assert f"IoU 0.75: AP {metrics.ap75:.3f}" in by_iou
    assert len([text for text in by_iou if text.startswith("IoU")]) == 3
    assert len(list(page.drawing("Precision and recall by IoU threshold").iter("title"))) == 10
    by_class = texts_of(page, "Precision and recall of classes at IoU 0.5")
    for name, ap in metrics.per_class_ap50.items():
        assert f"{name}, AP {ap:.3f}" in by_class
    mark = f"best F1 {curves.pooled_best_f1:.3f} at {curves.pooled_best_threshold:.3f}"
    assert mark in texts_of(page, "Precision, recall and F1 by score threshold")
    assert analysis.calibration is not None
    assert f"Expected calibration error {analysis.calibration.error:.3f}: " in page.text
    counts = analysis.calibration.counts
    assert page.counts("Scores of detections") == counts[counts > 0].tolist()


def test_parts_of_the_objects_have_their_figures(tmp_path: Path) -> None:
    analysis = drawn_analysis(tmp_path / "val.json")
    page = write(analysis, tmp_path / "out.html")
    for breakdown in analysis.breakdowns:
        texts = texts_of(page, f"{breakdown.title}: ")
        for place, name in enumerate(breakdown.names):
            start = texts.index(name)
            number, ap = breakdown.num_objects[place], breakdown.ap[place]
            assert texts[start + 1].startswith(f"{number} object")
            expected = "no objects" if ap is None else f"AP {ap:.3f}"
            assert texts[start + 2] == expected


def test_classes_stand_by_falling_ap(tmp_path: Path) -> None:
    names = ["b", "a", "d", "c", "unused"]
    objects = [(1, k, [9 * k, 0, 8, 8]) for k in range(4)]
    found = [(1, k, [9 * k, 0, 8, 8 - k], 0.9) for k in (1, 2, 0)]
    page = write(analysis_of(tmp_path / "val.json", objects, found, names), tmp_path / "out.html")
    assert class_names(page) == ["b", "a", "d", "c", "unused"]
    rows = re.findall(r"<tr><td><bdi>.*?</tr>", page.raw)
    cells = [re.findall(r">([^<>]+)(?:</span>)?</td>", row) for row in rows]
    assert cells[0] == ["1.000", "1.000", "1", "0.900", "1.000"]
    assert cells[-1] == ["-", "-", "0", "-", "-"]


def test_long_tables_of_classes_are_folded(tmp_path: Path) -> None:
    names = [f"class {place:02}" for place in range(30)][::-1]
    analysis = drawn_analysis(tmp_path / "val.json", names)
    page = write(analysis, tmp_path / "out.html")
    shown = class_names(page)
    aps = analysis.evaluation.metrics.per_class
    known = sorted((name for name in names if aps[name] is not None), key=lambda n: aps[n] or 0)
    assert len(shown) == 8 + 8 + 30
    assert [aps[name] for name in shown[:8]] == [aps[name] for name in known[:8]]
    assert [aps[name] for name in shown[8:16]] == [aps[name] for name in known[::-1][:8]]
    assert shown[16:] == sorted(names)
    assert "All 30 classes by name" in page.texts


@pytest.mark.parametrize("num_names", [3, 9, 30])
def test_texts_of_the_files_are_escaped(tmp_path: Path, num_names: int) -> None:
    names = [f"{place}{NASTY}" for place in range(num_names)]
    analysis = drawn_analysis(tmp_path / "<script>alert(4).json", names)
    out = tmp_path / "out.html"
    (tmp_path / "<b>").mkdir()
    page = write(analysis, out, images=tmp_path / "<b>", title=NASTY, subtitle=NASTY)
    assert not {tag for tag, _ in page.tags} & {"script", "img", "b"}
    assert "<script>alert(1)</script>" in page.text
    assert "\x00" not in page.raw
    assert "\u202e" not in page.raw


OBJECT: Objects = [(1, 0, [2, 3, 30, 20])]
FOUND: Found = [(1, 0, [2, 3, 30, 20], 0.9), (1, 1, [40, 30, 9, 9], 0.8)]
TWO = ("cat", "dog")
COCO = ScoringOptions()
OTHERS = ScoringOptions(
    iou_thresholds=(0.3, 0.6), areas={"tiny": (0, 100)}, max_detections=(5, 300)
)


@pytest.mark.parametrize(
    ("objects", "found", "names", "options", "num_pictures"),
    [
        ([], [], ("cat",), COCO, 0),
        ([], FOUND, TWO, COCO, 2 + 2),
        (OBJECT, [], TWO, COCO, 2 + 1),
        (OBJECT, FOUND[:1], ("cat",), COCO, 0),
        (OBJECT, FOUND[1:], TWO, COCO, 2 + 1 + 1),
        (OBJECT, FOUND, TWO, ScoringOptions(class_agnostic=True), 1),
        (OBJECT, FOUND, TWO, ScoringOptions(iou_thresholds=(0.75,)), 1),
        (OBJECT, FOUND, TWO, OTHERS, 1),
        (OBJECT, [(1, 0, [0, 0, 9, 9], 17.5), (1, 0, [2, 3, 30, 20], -4)], TWO, COCO, 2 + 1),
        (OBJECT, [(1, 0, [2, 3, 30, 20], 1e306), (1, 0, [0, 0, 1, 1], -1e306)], TWO, COCO, 1),
        (
            OBJECT,
            [(1, 0, [900, 900, 5, 5], 0.5), (1, 0, [-9, -9, 4, 4], 0.5)],
            TWO,
            COCO,
            2 + 2 + 1,
        ),
    ],
)
def test_odd_evaluations(
    tmp_path: Path,
    objects: Objects,
    found: Found,
    names: tuple[str, ...],
    options: ScoringOptions,
    num_pictures: int,
) -> None:
    for id_ in (1, 2, 3):
        picture(tmp_path / "images" / f"{id_}.png")
    analysis = analysis_of(tmp_path / "val.json", objects, found, names, options=options)
    for images in (None, tmp_path / "images"):
        page = write(analysis, tmp_path / "out.html", images=images)
        assert not re.search(r"\b(nan|inf|None)\b", page.raw)
        drawn = [d for d in page.drawings() if "picture" in d.attrib["class"]]
        assert len(drawn) == (num_pictures if images else 0)


def test_without_images_there_is_a_page(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path / "val.json", [], [], num_images=0)
    page = write(analysis, tmp_path / "out.html")
    assert "images 0" in page.text
    assert "AP: no ground truth" in page.texts
    assert page.texts.count("no ground truth") == 12 + 6
    assert page.text.count("There are no objects to be found.") == 3


def test_of_a_data_set_without_objects_detections_are_shown(tmp_path: Path) -> None:
    page = write(analysis_of(tmp_path / "val.json", [], FOUND, TWO), tmp_path / "out.html")
    assert "AP: no ground truth" in page.texts
    assert "objects 0" in page.text
    assert texts_of(page, "Number of errors of each kind")[1::2] == ["0"] * 4 + ["2", "0"]
    assert "0 right, 2 wrong (2 background), 0 not found" in page.texts
    assert "no object there" in page.texts


def test_of_too_many_classes_the_confusion_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"class {place}" for place in range(30)]
    monkeypatch.setattr("detr_kit.evaluation.analysis.MOST_CONFUSED", 29)
    analysis = drawn_analysis(tmp_path / "val.json", names)
    assert analysis.confusion is None
    page = write(analysis, tmp_path / "out.html")
    assert "With more than 2,000 classes, which of them are taken for each other" in page.text
    assert not [d for d in page.drawings() if d.attrib["aria-label"].startswith("Confusion")]
    assert "Most confused pairs" not in page.text
    assert re.findall(r"<h2>(.*?)</h2>", page.raw) == SECTIONS
    assert f"score {analysis.score_threshold:.3g} or more" in page.text
    assert texts_of(page, "Precision and recall of classes at IoU 0.5")


def test_doubts_are_shown(tmp_path: Path) -> None:
    found = [(1, 0, [2, 3, 30, 20], 17.5)]
    page = write(analysis_of(tmp_path / "val.json", OBJECT, found), tmp_path / "out.html")
    assert "scores from 17.5 to 17.5, where [0, 1] is expected" in page.text
    page = write(analysis_of(tmp_path / "val.json", OBJECT, FOUND[:1] * 2), tmp_path / "out.html")
    assert "doubtful" in page.texts


def test_the_page_stays_small(tmp_path: Path) -> None:
    for id_ in range(1, 21):
        picture(tmp_path / "images" / f"{id_}.png", 640, 480)
    long = "<&>\"'é😀" * 2_000
    names = [f"{place}{long}" for place in range(1000)]
    analysis = drawn_analysis(tmp_path / "val.json", names)
    history = [{"epoch": 1 + place, "train": {"l1": place % 7}} for place in range(5000)]
    out = tmp_path / "out.html"
    page = write(analysis, out, images=tmp_path / "images", history=history, title=long)
    assert len(page.raw.encode()) <= MAX_BYTES
    assert "Shortened to keep the page small" in page.text
    assert "the first 500 of them" in page.text
    assert [d for d in page.drawings() if "picture" in d.attrib["class"]]


def test_the_same_data_give_the_same_page(tmp_path: Path) -> None:
    for id_ in range(1, 21):
        picture(tmp_path / "images" / f"{id_}.png", 640, 480)
    pages = [
        write(drawn_analysis(tmp_path / "val.json"), tmp_path / out, images=tmp_path / "images")
        for out in ("1.html", "2.html")
    ]
    assert pages[0].raw == pages[1].raw


def test_what_was_evaluated_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "val.json"
    analysis_of(path, OBJECT, FOUND)
    results = tmp_path / "results.json"
    write_results(
        results, [{"image_id": 1, "category_id": 0, "bbox": [2, 3, 30, 20], "score": 0.01}]
    )
    analysis = analyse(evaluation_of(results, path))
    (tmp_path / "link.html").symlink_to(results)
    before = path.read_bytes(), results.read_bytes()
    for out in (path, results, tmp_path / "link.html"):
        with pytest.raises(DetrKitError, match="it is a file that was evaluated"):
            write_evaluation_report(analysis, out, title="trial")
    assert (path.read_bytes(), results.read_bytes()) == before


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path / "val.json", OBJECT, FOUND)
    gone = tmp_path / "gone"
    picture(gone / "1.png")
    shutil.rmtree(gone)
    for folder in (tmp_path / "nowhere", tmp_path / "val.json", gone):
        with pytest.raises(DetrKitError, match=f"{folder}: no such image folder"):
            write_evaluation_report(analysis, tmp_path / "o.html", images=folder, title="trial")
    assert not (tmp_path / "o.html").exists()


def test_the_page_is_written_without_torch() -> None:
    code = "import detr_kit.visualization.evaluation_report, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_data(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "coco_mini" / "annotations" / "instances_val2017.json"
    columns = read_columns(path)
    objects = np.flatnonzero(columns.iscrowd != 1)
    rows = [
        {
            "image_id": int(columns.image_id_of[row]),
            "category_id": int(columns.category_id_of[row if row % 9 else objects[0]]),
            "bbox": (columns.boxes_xywh[row] * [1, 1, 1.2, 1.1]).tolist(),
            "score": 1 / (1 + place % 40),
        }
        for place, row in enumerate(objects.tolist())
        if row % 5
    ]
    analysis = analyse(evaluation_of(rows, path))
    page = write(analysis, tmp_path / "out.html", images=path.parents[1] / "val2017")
    pictures = [d for d in page.drawings() if "picture" in d.attrib["class"]]
    assert len(pictures) == 2 * 8 + 12 + 12
    assert "cannot be shown" not in page.text
    assert "Shortened" not in page.text
    assert len(page.raw.encode()) < MAX_BYTES
    assert f"objects {len(objects)}" in page.text
