"""How much is drawn on the pictures of an evaluation, and how much around a small object."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from tests.visualization.evaluation_pages import Found, Objects, analysis_of, write
from tests.visualization.report_pages import picture


def looks(drawing: ElementTree.Element) -> list[str]:
    return [path.attrib["class"] for path in drawing.iter("path")]


def grid(count: int, size: int = 8, pitch: int = 20) -> list[list[int]]:
    """Return boxes_xywh that do not overlap, in a picture of 640x480."""
    columns = 640 // pitch
    return [[pitch * (k % columns), pitch * (k // columns), size, size] for k in range(count)]


def test_of_too_many_boxes_mistakes_are_drawn_first(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 640, 480)
    boxes = grid(500)
    objects: Objects = [(1, k % 3, box) for k, box in enumerate(boxes)]
    found: Found = [(1, k % 3, boxes[k], 0.9) for k in range(210)]
    found += [(1, (k + 1) % 3, boxes[k], 0.8) for k in range(210, 220)]
    found += [(1, k % 3, boxes[k], 0.5) for k in range(220, 240)]
    analysis = analysis_of(tmp_path / "val.json", objects, found, size_wh=(640, 480))
    page = write(analysis, tmp_path / "o.html", images=tmp_path)
    assert "230 right, 10 wrong (10 classification), 270 not found" in page.texts
    assert "labelled: 200 of 500 boxes drawn" in page.texts
    assert looks(page.drawing("1.png: labelled objects")) == ["box wrong"] * 200
    # All mistakes, and of the others as many as there is room for.
    assert "detected: 200 of 240 boxes drawn" in page.texts
    drawn = looks(page.drawing("1.png: detections"))
    assert (drawn.count("box wrong"), drawn.count("box")) == (10, 190)


def test_where_all_boxes_are_drawn_nothing_is_said_of_it(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 640, 480)
    objects: Objects = [(1, 0, box) for box in grid(200)]
    analysis = analysis_of(tmp_path / "val.json", objects, [], size_wh=(640, 480))
    page = write(analysis, tmp_path / "o.html", images=tmp_path)
    assert len(looks(page.drawing("1.png: labelled objects"))) == 200
    assert "labelled" in page.texts
    assert "drawn" not in page.text


def test_boxes_beside_the_picture_are_said_not_to_be_drawn(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    found: Found = [(1, 0, [2, 2, 9, 9], 0.9), (1, 0, [900, 900, 9, 9], 0.9)]
    analysis = analysis_of(tmp_path / "val.json", [(1, 0, [2, 2, 9, 9])], found)
    page = write(analysis, tmp_path / "o.html", images=tmp_path)
    assert "detected: 1 of 2 boxes drawn" in page.texts
    assert looks(page.drawing("1.png: detections")) == ["box"]


def test_no_more_names_than_leave_the_picture_visible(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 640, 480)
    objects: Objects = [(1, 0, box) for box in grid(24, 50, 100)]
    analysis = analysis_of(tmp_path / "val.json", objects, [], size_wh=(640, 480))
    page = write(analysis, tmp_path / "o.html", images=tmp_path)
    drawing = page.drawing("1.png: labelled objects")
    assert len(looks(drawing)) == 24
    assert [text.text for text in drawing.iter("text")] == ["cat"] * 12


def test_around_a_small_object_there_is_enough_to_recognise_it(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 640, 480)
    analysis = analysis_of(
        tmp_path / "val.json", [(1, 0, [300, 200, 2, 2])], [], size_wh=(640, 480)
    )
    page = write(analysis, tmp_path / "o.html", images=tmp_path)
    crop = page.drawing("1.png: not found, cat, 2 x 2 px")
    # 48 pixels of the picture, 160 units wide, with the object in the middle.
    assert crop.attrib["viewBox"] == "0 0 160 160"
    (box,) = crop.iter("path")
    assert box.attrib["d"] == "M76.7 76.7H83.3V83.3H76.7Z"
