from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from detr_kit.demo.limits import Limits
from detr_kit.demo.markup import (
    LONGEST_SIDE,
    boxes_markup,
    caption_markup,
    limits_markup,
    notice_markup,
    picture_markup,
    summary_markup,
    table_markup,
    title_markup,
)
from detr_kit.demo.view import ClassCount, Shown
from detr_kit.detections import Detections
from detr_kit.drawing import category_color
from tests.demo.known_objects import MARKUP_NAME, found

NOTHING = Detections(np.empty((0, 4)), np.empty(0), np.empty(0), [])


def test_boxes_lie_at_percentages_of_the_picture() -> None:
    markup = boxes_markup(found((20, 40)), (20, 40))
    assert "left:50.000%;top:50.000%;width:50.000%;height:50.000%" in markup
    assert "--width:40;--height:20" in markup


def test_boxes_that_leave_the_picture_end_at_its_border() -> None:
    markup = boxes_markup(Detections(np.array([[-5, -5, 50, 10]]), [0.9], [1], ["cat"]), (20, 40))
    assert "left:0.000%;top:0.000%;width:100.000%;height:50.000%" in markup


def test_the_best_box_is_the_last_one_and_thus_on_top() -> None:
    assert re.findall(r'data-row="(\d)"', boxes_markup(found((20, 40)), (20, 40))) == list("3210")


def test_a_label_goes_where_there_is_room_for_it() -> None:
    boxes = np.array([[0, 0, 50, 50], [80, 40, 99, 60], [30, 30, 40, 40]])
    markup = boxes_markup(Detections(boxes, [0.9, 0.8, 0.7], [1, 1, 1], ["cat"] * 3), (100, 100))
    assert re.findall(r'class="(dk-box[^"]*)"', markup) == [
        "dk-box",
        "dk-box dk-end",
        "dk-box dk-in",
    ]


def test_classes_have_the_colours_that_they_have_in_drawings() -> None:
    red, green, blue = category_color(7)
    for markup in (
        boxes_markup(found((20, 40)), (20, 40)),
        table_markup(found((20, 40))),
        summary_markup([ClassCount(7, "any", 1, 0.3)], frozenset()),
    ):
        assert f"--color:rgb({red},{green},{blue})" in markup


def test_names_of_classes_and_files_are_text_and_nothing_else() -> None:
    detections = found((20, 40))
    shown = Shown(f"{MARKUP_NAME}.png", (20, 40), detections, 0.1)
    for markup in (
        boxes_markup(detections, (20, 40)),
        table_markup(detections),
        summary_markup([ClassCount(7, MARKUP_NAME, 1, 0.3)], frozenset()),
        caption_markup(shown, detections, 0),
        notice_markup(MARKUP_NAME, problem=True),
        title_markup(MARKUP_NAME, [MARKUP_NAME]),
    ):
        assert "<b onclick" not in markup
        assert "alert('x')" not in markup
        assert "&lt;b onclick=&quot;alert(&#x27;x&#x27;)&quot;&gt;&amp;" in markup


def test_the_browser_gets_a_small_copy_of_a_large_picture() -> None:
    markup = picture_markup(np.zeros((1000, 4000, 3), dtype=np.uint8))
    assert "--width:4000;--height:1000" in markup
    data = re.search(r"data:image/jpeg;base64,([^\"]+)", markup)
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as copy:
        assert copy.size == (LONGEST_SIDE, LONGEST_SIDE // 4)


def test_the_table_has_the_class_the_score_and_the_box_in_pixels() -> None:
    [head, first, *others] = re.findall(r"<tr.*?</tr>", table_markup(found((20, 40))))
    assert len(others) == 3
    assert re.sub(r"<[^>]+>", " ", head).split() == ["class", "score", "x0", "y0", "x1", "y1"]
    assert re.sub(r"<[^>]+>", " ", first).split() == ["cat", "0.900", "4.0", "2.0", "20.0", "10.0"]


def test_without_detections_there_is_neither_table_nor_summary() -> None:
    assert table_markup(NOTHING) == ""
    assert summary_markup([], frozenset()) == ""


@pytest.mark.parametrize(
    ("count", "hidden", "seconds", "texts"),
    [
        (1, 0, 0.0421, ["40 × 20 pixels", ">1 object<", "42 ms"]),  # noqa: RUF001
        (2, 3, 2.345, [">2 objects, 3 hidden<", "2.35 s"]),
        (0, 0, 1.0, [">0 objects<", "1.00 s"]),
    ],
)
def test_the_caption_tells_size_objects_and_seconds(
    count: int, hidden: int, seconds: float, texts: list[str]
) -> None:
    shown = Shown("street.png", (20, 40), found((20, 40)), seconds)
    markup = caption_markup(shown, shown.detections.select(range(count)), hidden)
    assert all(text in markup for text in ["street.png", *texts])


def test_the_summary_marks_hidden_classes() -> None:
    counts = [ClassCount(1, "cat", 2, 0.9), ClassCount(2, "dog", 1, 0.6)]
    markup = summary_markup(counts, frozenset({2}))
    assert markup.count("dk-off") == 1
    assert markup.index("cat") < markup.index("dk-off") < markup.index("dog")


def test_the_limits_are_told() -> None:
    markup = limits_markup(Limits(file_bytes=5 * 2**20, pixels=2_500_000), 6)
    assert "5 MB and 2.5 million pixels. Deleted within 6 minutes" in markup
