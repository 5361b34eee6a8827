"""The pictures on the page of a data set check: which, how large, and from which files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_kit.images import read_image
from detr_kit.visualization import picture_drawings
from tests.visualization.report_pages import (
    annotation,
    coco,
    image,
    picture,
    small_split,
    write,
)


def test_special_pictures_are_shown_with_their_boxes(tmp_path: Path) -> None:
    page = write(tmp_path / "out.html", [small_split(tmp_path)])
    badges = ("most objects", "smallest object: 2 px", "no objects")
    places = [page.texts.index(badge) for badge in badges]
    assert [page.texts[place + 1] for place in places] == ["a.png", "b.png", "c.png"]
    drawing = page.drawing("a.png: 3 objects")
    paths = {next(path.iter("title")).text: path.attrib["d"] for path in drawing.iter("path")}
    # 64 pixels are drawn 320 wide.
    assert paths["cat (1)"] == "M10 15H160V115H10Z"
    assert paths["dog (2)"].count("M") == 2
    assert [text.text for text in drawing.iter("text")] == ["cat", "dog", "dog"]
    assert len(list(page.drawing("b.png: 1 object").iter("circle"))) == 1
    assert len(list(page.drawing("c.png: 0 objects").iter("path"))) == 0


def test_pictures_are_small_and_spread_over_the_file(tmp_path: Path) -> None:
    names = [f"{place:03}.jpg" for place in range(100)]
    for name in names:
        picture(tmp_path / "images" / name, 500, 200)
    images = [image(place, name, 500, 200) for place, name in enumerate(names)]
    objects = [annotation(place, 0, [3, 3, 50, 50]) for place in range(100)]
    path = coco(tmp_path / "train.json", images, objects, ["cat"])
    page = write(tmp_path / "out.html", [(path, tmp_path / "images")])
    shown = sorted(int(text[:3]) for text in page.texts if re.fullmatch(r"\d\d\d\.jpg", text))
    assert len(shown) == 12
    assert shown[0] == 0
    assert max(np.diff(shown)) < 20
    for drawing in page.drawings():
        if drawing.get("class") == "chart picture":
            assert drawing.get("viewBox") == "0 0 320 128"


def test_only_files_inside_the_folder_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "secret.png")
    picture(tmp_path / "images" / "wrong.png", 30, 20)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "images" / "folder.jpg").mkdir()
    names = [
        "../secret.png",
        str(tmp_path / "secret.png"),
        "",
        "a\0b.png",
        "b" * 5000,
        "gone.png",
        "wrong.png",
        "broken.jpg",
        "folder.jpg",
    ]
    images = [image(place, name) for place, name in enumerate(names)]
    path = coco(tmp_path / "train.json", images, [], ["cat"])
    opened = []

    def recorded(path: Path, **options: Any) -> np.ndarray:
        opened.append(path.name)
        return read_image(path, **options)

    monkeypatch.setattr(picture_drawings, "read_image", recorded)
    page = write(tmp_path / "out.html", [(path, tmp_path / "images")])
    assert sorted(opened) == ["broken.jpg", "wrong.png"]
    assert "9 of the files that were tried cannot be shown" in page.text
    assert "the annotation file says 64x48" in page.text
    assert "None of the files that were tried in" in page.text
    assert not [drawing for drawing in page.drawings() if "picture" in drawing.attrib["class"]]


def test_files_that_cannot_be_read_make_room_for_others(tmp_path: Path) -> None:
    names = [f"{place:02}.png" for place in range(24)]
    for name in names[::2]:
        picture(tmp_path / "images" / name)
    path = coco(
        tmp_path / "train.json", [image(i, name) for i, name in enumerate(names)], [], ["cat"]
    )
    page = write(tmp_path / "out.html", [(path, tmp_path / "images")])
    shown = [text for text in page.texts if re.fullmatch(r"\d\d\.png", text)]
    assert sorted(shown) == names[::2]
