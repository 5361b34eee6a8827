"""The pictures on the page of an evaluation: whose they are, and what is drawn on them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detr_kit.evaluation.options import ScoringOptions
from detr_kit.images import read_image
from detr_kit.visualization import picture_drawings
from tests.visualization.evaluation_pages import (
    Found,
    Objects,
    analysis_of,
    analysis_of_file,
    write,
)
from tests.visualization.report_pages import Page, picture

# In pictures of 64x48, which are drawn five times as large: found, missed, taken for a dog.
OBJECTS: Objects = [(1, 0, [2, 2, 10, 10]), (1, 0, [40, 4, 20, 10]), (1, 2, [20, 20, 10, 20])]
FOUND: Found = [(1, 0, [2, 2, 10, 10], 0.9), (1, 1, [20, 20, 10, 20], 0.95)]


def boxes(drawing: ElementTree.Element) -> dict[str, tuple[str, str]]:
    """Return the look and the outline of each box by its tooltip."""
    return {
        path.findtext("title", ""): (path.attrib["class"], path.attrib["d"])
        for path in drawing.iter("path")
    }


def shown(page: Page) -> list[str]:
    """Return the names of all pictures, as often as they are shown."""
    return [text for text in page.texts if re.fullmatch(r"\d+\.png", text)]


def test_objects_and_detections_are_drawn_side_by_side(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    page = write(
        analysis_of(tmp_path / "val.json", OBJECTS, FOUND), tmp_path / "o.html", images=tmp_path
    )
    labelled = page.drawing("1.png: labelled objects")
    assert boxes(labelled) == {
        "cat found": ("box", "M10 10H60V60H10Z"),
        "cat not found": ("box wrong", "M200 20H300V70H200Z"),
        "cow not found": ("box wrong", "M100 100H150V200H100Z"),
    }
    # Few boxes are all named, mistakes first.
    assert [text.text for text in labelled.iter("text")] == ["cat", "cow", "cat"]
    detected = page.drawing("1.png: detections")
    assert boxes(detected) == {
        "cat 0.90: right": ("box", "M10 10H60V60H10Z"),
        "dog 0.95: classification": ("box wrong", "M100 100H150V200H100Z"),
    }
    assert [text.text for text in detected.iter("text")] == ["dog 0.95", "cat 0.90"]
    assert "1 right, 1 wrong (1 classification), 2 not found" in page.texts


def test_of_many_boxes_only_mistakes_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 640, 480)
    objects = [(1, 0, [60 * k, 40, 50, 50]) for k in range(7)]
    found = [(1, 0, [60 * k, 40, 50, 50], 0.9) for k in range(7)] + [(1, 1, [9, 300, 50, 50], 0.95)]
    analysis = analysis_of(tmp_path / "val.json", objects, found, size_wh=(640, 480))
    page = write(analysis, tmp_path / "o.html", images=tmp_path)
    assert [text.text for text in page.drawing("1.png: detections").iter("text")] == ["dog 0.95"]
    assert not list(page.drawing("1.png: labelled objects").iter("text"))


def test_colours_of_the_classes_are_explained(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    page = write(
        analysis_of(tmp_path / "val.json", OBJECTS, FOUND), tmp_path / "o.html", images=tmp_path
    )
    keys = re.findall(r'class="key" style="--key:(#\w+)"><bdi>([\w .]+)</bdi>', page.raw)
    colors = {name: color for color, name in keys}
    assert [name for _, name in keys[:3]] == ["cat", "cow", "dog"]
    for name, tooltip in (("cat", "cat found"), ("cow", "cow not found")):
        labelled = page.drawing("1.png: labelled objects")
        (path,) = [p for p in labelled.iter("path") if p.findtext("title") == tooltip]
        assert path.attrib["stroke"] == colors[name]
    # Under a part of a picture the class of its own box.
    assert colors["dog 0.95"] == colors["dog"]
    page = write(analysis_of(tmp_path / "val.json", OBJECTS, FOUND), tmp_path / "o.html")
    assert 'class="key"' not in page.raw


def test_detections_of_too_low_a_score_are_not_drawn(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    found = [*FOUND, (1, 2, [50, 40, 4, 4], 0.1)]
    page = write(
        analysis_of(tmp_path / "val.json", OBJECTS, found), tmp_path / "o.html", images=tmp_path
    )
    assert "detections of score 0.9 or more are shown" in page.text
    assert len(boxes(page.drawing("1.png: detections"))) == 2


def test_a_picture_is_held_once(tmp_path: Path) -> None:
    for id_ in (1, 2):
        picture(tmp_path / f"{id_}.png")
    objects = [*OBJECTS, (2, 0, [2, 2, 10, 10])]
    page = write(
        analysis_of(tmp_path / "val.json", objects, FOUND), tmp_path / "o.html", images=tmp_path
    )
    ids = [
        attributes["id"] for tag, attributes in page.tags if tag == "image" and "id" in attributes
    ]
    used = [attributes["href"] for tag, attributes in page.tags if tag == "use"]
    assert ids == ["picture-1", "picture-2"]
    assert used == ["#picture-1", "#picture-2"]


def test_crops_show_what_is_around_a_mistake(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 640, 480)
    objects = [(1, 0, [300, 200, 60, 40]), (1, 0, [600, 440, 80, 60])]
    found = [(1, 1, [300, 200, 60, 80], 0.75)]
    analysis = analysis_of(tmp_path / "val.json", objects, found, size_wh=(640, 480))
    page = write(analysis, tmp_path / "o.html", images=tmp_path)
    wrong = page.drawing("1.png: classification, dog 0.75, labelled cat, IoU 0.50")
    # Around 330, 240, twice 80 pixels wide and high, of which each is drawn once.
    assert wrong.attrib["viewBox"] == "0 0 160 160"
    assert boxes(wrong) == {
        "dog 0.75": ("box wrong", "M50 40H110V120H50Z"),
        "labelled cat, IoU 0.50": ("box", "M50 40H110V80H50Z"),
    }
    kind, _, content = next(wrong.iter("image")).attrib["href"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (160, 160)
    # At the border, the part that lies in the picture.
    missed = page.drawing("1.png: not found, cat, 80 x 60 px")
    assert missed.attrib["viewBox"] == "0 0 160 160"
    assert boxes(missed)["cat"] == ("box wrong", "M80 80H160V160H80Z")


def test_a_missed_object_with_a_low_score_is_named_so(tmp_path: Path) -> None:
    found = [(1, 0, [2, 2, 10, 10], 0.9), (1, 0, [30, 30, 5, 5], 0.8), (1, 0, [40, 4, 20, 10], 0.1)]
    wrong = [(2, 1, [4 * k, 4, 3, 3], 0.5) for k in range(9)]
    analysis = analysis_of(tmp_path / "val.json", OBJECTS[:2], [*found, *wrong])
    page = write(analysis, tmp_path / "o.html")
    assert "score too low: 0.10" in page.texts


def test_crowds_are_dotted_and_not_missed(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    path = tmp_path / "val.json"
    analysis_of(path, OBJECTS, FOUND)
    content = path.read_text().replace(
        '"bbox": [40, 4, 20, 10]', '"iscrowd": 1, "bbox": [40, 4, 20, 10]'
    )
    path.write_text(content)
    page = write(analysis_of_file(path, FOUND), tmp_path / "o.html", images=tmp_path)
    assert boxes(page.drawing("1.png: labelled objects"))["cat not counted"][0] == "box ignored"
    assert "crowd regions not looked for 1" in page.text
    assert "1 right, 1 wrong (1 classification), 1 not found" in page.texts


def test_where_classes_do_not_matter_they_are_not_named(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    options = ScoringOptions(class_agnostic=True)
    analysis = analysis_of(
        tmp_path / "val.json", OBJECTS, [*FOUND, (1, 1, [0, 30, 9, 9], 0.97)], options=options
    )
    page = write(analysis, tmp_path / "o.html", images=tmp_path)
    assert set(boxes(page.drawing("1.png: detections"))) >= {
        "0.90: right",
        "0.95: right",
        "0.97: background",
    }
    assert not re.search(r"\b(cat|dog|cow)\b", page.text)


def test_without_a_folder_examples_are_told_in_words(tmp_path: Path) -> None:
    page = write(analysis_of(tmp_path / "val.json", OBJECTS, FOUND), tmp_path / "o.html")
    assert "No image folder was given, so no pictures can be shown." in page.texts
    assert not [drawing for drawing in page.drawings() if "picture" in drawing.attrib["class"]]
    assert shown(page) == ["1.png"] * 4
    for text in ("dog 0.95", "labelled cow, IoU 1.00", "20 x 10 px", "not found"):
        assert text in page.texts


def test_files_that_cannot_be_read_make_room_for_others(tmp_path: Path) -> None:
    for id_ in range(1, 25, 2):
        picture(tmp_path / f"{id_}.png")
    objects = [(id_, 0, [2, 2, 10, 10]) for id_ in range(1, 25) for _ in range(25 - id_)]
    analysis = analysis_of(tmp_path / "val.json", objects, [], num_images=24)
    page = write(analysis, tmp_path / "o.html", images=tmp_path)
    worst = [
        d.attrib["aria-label"] for d in page.drawings() if "labelled" in d.attrib["aria-label"]
    ]
    assert worst == [f"{id_}.png: labelled objects" for id_ in range(1, 16, 2)]
    assert len(shown(page)) == 8 + 12
    assert re.search(r"\d+ of the files that were tried in .* cannot be shown", page.text)
    assert "2.png: no such image file" in page.texts
    assert "1.png: no such image file" not in page.texts


def test_only_files_inside_the_folder_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    picture(tmp_path / "secret.png")
    picture(folder / "2.png", 30, 20)
    (folder / "3.png").write_bytes(b"\xff\xd8\xff")
    path = tmp_path / "val.json"
    objects = [(id_, 0, [2, 2, 10, 10]) for id_ in range(1, 7)]
    analysis_of(path, objects, [], num_images=6)
    content = path.read_text().replace('"1.png"', '"../secret.png"').replace('"4.png"', '""')
    path.write_text(content.replace('"5.png"', '"a\\u0000b.png"'))
    opened = []

    def recorded(path: Path, **options: Any) -> np.ndarray:
        opened.append(path.name)
        return read_image(path, **options)

    monkeypatch.setattr(picture_drawings, "read_image", recorded)
    page = write(analysis_of_file(path, []), tmp_path / "o.html", images=folder)
    assert sorted(opened) == ["2.png", "3.png"]
    assert "../secret.png: not a name inside the image folder" in page.texts
    assert "the annotation file says 64x48" in page.text
    assert "image 4: it has no file_name" in page.texts
    assert "No file that was tried in" in page.text
    assert "There are none" in page.text


def test_mistakes_are_told_where_no_picture_can_be_read(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path / "val.json", OBJECTS, FOUND)
    empty = tmp_path / "images"
    empty.mkdir()
    page = write(analysis, tmp_path / "o.html", images=empty)
    assert f"No file that was tried in {empty} can be shown" in page.text
    assert "The first: 1.png: no such image file" in page.text
    assert "There are none" not in page.text
    assert shown(page) == ["1.png"] * 4
    for text in ("dog 0.95", "1 right, 1 wrong (1 classification), 2 not found", "not found"):
        assert text in page.texts
    assert not [drawing for drawing in page.drawings() if "picture" in drawing.attrib["class"]]
    # Only where there is nothing to tell it says so.
    perfect = [(image, class_, box, 0.9) for image, class_, box in OBJECTS]
    page = write(
        analysis_of(tmp_path / "val.json", OBJECTS, perfect), tmp_path / "o.html", images=empty
    )
    assert page.text.count("There are none") == 3
    assert "No file that was tried" not in page.text
