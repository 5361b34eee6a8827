"""The confusion matrix of the report: its numbers, or its shares as a picture."""

from __future__ import annotations

import base64
import io
import tracemalloc
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detr_kit.evaluation.confusion import ConfusionMatrix
from detr_kit.visualization.charts import FONT_SIZE, WIDTH
from detr_kit.visualization.confusion_charts import (
    GRID_CLASSES,
    confused_pairs,
    confusion_figure,
)
from detr_kit.visualization.texts import width_of


def matrix(num_classes: int, *, name: str = "class", highest: int = 50) -> ConfusionMatrix:
    draw = np.random.default_rng(num_classes)
    counts = draw.integers(0, highest, (num_classes + 1, num_classes + 1))
    counts[-1, -1] = 0
    names = tuple(f"{name} {place}" for place in range(num_classes))
    return ConfusionMatrix(names, counts, 0.5, 0.3)


@pytest.mark.parametrize("num_classes", [1, 3, GRID_CLASSES])
def test_few_classes_have_names_and_numbers(num_classes: int) -> None:
    confusion = matrix(num_classes)
    root = ElementTree.fromstring(confusion_figure(confusion).drawings[0])
    rows = [*confusion.names, "background"]
    columns = [*(f"detected as {name}" for name in confusion.names), "not found"]
    titles = [part.text or "" for part in root.iter("title")]
    expected = [
        f"{true} {predicted}: {confusion.counts[row, column]} "
        + ("time" if confusion.counts[row, column] == 1 else "times")
        for row, true in enumerate(rows)
        for column, predicted in enumerate(columns)
        if (row, column) != (num_classes, num_classes)
    ]
    assert titles == expected
    cells = [group.findtext("text") for group in root.iter("g")]
    assert cells == [str(count) for count in confusion.counts.ravel().tolist()[:-1]]
    written = [part.text for part in root.iter("text")]
    for name in confusion.names:
        assert written.count(name) == 2
    assert written.count("background") == written.count("not found") == 1
    right = [
        place for place, part in enumerate(root.iter("rect")) if "right" in part.attrib["class"]
    ]
    assert right == [place * (num_classes + 2) for place in range(num_classes)]


def test_colours_are_shares_of_a_row() -> None:
    confusion = matrix(3)
    root = ElementTree.fromstring(confusion_figure(confusion).drawings[0])
    opacity = np.array([float(part.attrib["fill-opacity"]) for part in root.iter("rect")])
    shares = confusion.counts / confusion.counts.sum(axis=1, keepdims=True)
    assert opacity == pytest.approx(0.55 * shares.ravel()[:-1], abs=0.006)


@pytest.mark.parametrize("num_classes", [1, 3, GRID_CLASSES])
def test_texts_stay_inside_their_cells(num_classes: int) -> None:
    confusion = matrix(num_classes, name="a very long name" * 5, highest=10**9)
    root = ElementTree.fromstring(confusion_figure(confusion).drawings[0])
    for group in root.iter("g"):
        rect, text = group.find("rect"), group.find("text")
        assert rect is not None
        assert text is not None
        size = FONT_SIZE - 2 if "tiny" in text.attrib["class"] else FONT_SIZE
        left, width = float(rect.attrib["x"]), float(rect.attrib["width"])
        assert left >= 0
        assert left + width <= WIDTH
        assert width_of(text.text or "", size) <= width + 8


def test_of_many_classes_the_shares_are_a_picture() -> None:
    confusion = matrix(80)
    figure = confusion_figure(confusion)
    root = ElementTree.fromstring(figure.drawings[0])
    content = next(root.iter("image")).attrib["href"].partition(",")[2]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))
    shares = np.rint(100 * confusion.counts / confusion.counts.sum(axis=1, keepdims=True))
    assert np.array_equal(pixels[..., 3], np.rint(shares * (255 / shares.max())))


def test_cells_of_a_picture_tell_their_classes() -> None:
    confusion = matrix(30)
    counts = np.zeros_like(confusion.counts)
    counts[4, 4], counts[4, 7], counts[2, 30], counts[30, 1] = 6, 2, 1, 9
    root = ElementTree.fromstring(confusion_figure(replace(confusion, counts=counts)).drawings[0])
    cells = {path.findtext("title"): path.attrib["d"] for path in root.iter("path")}
    assert set(cells) == {
        "class 4 detected as class 4: 6 times, 75 %",
        "class 4 detected as class 7: 2 times, 25 %",
        "class 2 not found: 1 time, 100 %",
        "background detected as class 1: 9 times, 100 %",
    }
    image = next(root.iter("image")).attrib
    left, top, width, height = (float(image[key]) for key in ("x", "y", "width", "height"))
    expected = f"M{left + 7 * width / 31:.2f} {top + 4 * height / 31:.2f}h"
    assert cells["class 4 detected as class 7: 2 times, 25 %"].startswith(expected)


def test_tooltips_of_many_cells_stay_small() -> None:
    drawing = confusion_figure(matrix(300, name="a very long name" * 5)).drawings[0]
    assert drawing.count("<title>") == 600
    assert len(drawing) < 300_000


def test_a_matrix_of_many_classes_is_not_copied() -> None:
    draw = np.random.default_rng(0)
    size = 1203 + 1
    cells = draw.integers(0, size, (2, 20_000))
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, tuple(cells), 1)
    np.fill_diagonal(counts, 9)
    confusion = ConfusionMatrix(tuple(map(str, range(size - 1))), counts, 0.5, 0.3)
    tracemalloc.start()
    try:
        confused_pairs(confusion, 12)
        confusion_figure(confusion)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Bytes of a cell: 1 of its share, 1 of its opacity, and what few cells hold.
    assert peak < 0.5 * counts.nbytes


def test_pairs_stand_by_their_share_then_rare_ones() -> None:
    counts = np.zeros((5, 5), dtype=np.int64)
    counts[0] = [900, 40, 0, 0, 60]  # frequent, but a small share
    counts[1] = [2, 0, 0, 0, 0]
    counts[2] = [0, 4, 1, 0, 0]
    counts[3] = [3, 0, 1, 0, 1]
    counts[4] = [30, 30, 30, 30, 0]
    confusion = ConfusionMatrix(("a", "b", "c", "d"), counts, 0.5, 0.3)
    pairs = [
        (pair.true, pair.predicted, pair.count, pair.share) for pair in confused_pairs(confusion, 9)
    ]
    assert pairs == [
        ("c", "b", 4, "80 %"),
        ("d", "a", 3, "60 %"),
        ("a", "b", 40, "4 %"),
        ("b", "a", 2, "100 %"),
        ("d", "c", 1, "20 %"),
    ]
    assert len(confused_pairs(confusion, 2)) == 2


def test_nothing_was_found_and_nothing_is_there() -> None:
    for num_classes in (3, 30):
        empty = ConfusionMatrix(
            tuple(map(str, range(num_classes))),
            np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64),
            0.5,
            0.3,
        )
        assert confused_pairs(empty, 9) == []
        ElementTree.fromstring(confusion_figure(empty).drawings[0])
