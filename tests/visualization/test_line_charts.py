"""Charts of lines as SVG: they run where the numbers say, and everything stays in the drawing."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from detr_kit.visualization.charts import FONT_SIZE, WIDTH
from detr_kit.visualization.line_charts import (
    LOOKS,
    Axis,
    Line,
    Mark,
    axis_over,
    line_chart,
    share_axis,
    whole_axis,
)
from detr_kit.visualization.texts import width_of

NASTY = "<script>alert(1)</script>\x00\n\u202e\ud800 ]]> &amp; \"'"


def line(ys: list[float], name: str = "line", **options: bool) -> Line:
    return Line(name, np.linspace(0, 1, len(ys)), np.array(ys), **options)


def some_chart(*lines: Line, mark: Mark | None = None, label: str = "chart") -> str:
    x_axis, y_axis = share_axis("x"), share_axis("y")
    return line_chart(lines, label=label, x_axis=x_axis, y_axis=y_axis, mark=mark)


def group(drawing: str, name: str) -> ElementTree.Element:
    groups = ElementTree.fromstring(drawing).iter("g")
    return next(part for part in groups if part.findtext("title") == name)


def points(drawing: str, name: str = "line") -> list[list[tuple[float, float]]]:
    """Return the points of each unbroken part of a line."""
    path = group(drawing, name).find("path")
    assert path is not None
    parts = path.attrib["d"].split("M")[1:]
    return [[tuple(map(float, pair.split())) for pair in part.split("L")] for part in parts]  # type: ignore[misc]


def plot_of(drawing: str) -> tuple[float, float, float, float]:
    """Return left, right, top and bottom of the plot, from its grid."""
    grid = [p for p in ElementTree.fromstring(drawing).iter("line") if p.get("class") == "grid"]
    heights = [float(part.attrib["y1"]) for part in grid]
    return (
        float(grid[0].attrib["x1"]),
        float(grid[0].attrib["x2"]),
        min(heights),
        max(heights),
    )


def test_a_line_runs_through_its_points() -> None:
    drawing = some_chart(line([0, 0.5, 1, 0.25]))
    left, right, top, bottom = plot_of(drawing)
    xs = [left + (right - left) * place / 3 for place in range(4)]
    ys = [bottom - (bottom - top) * value for value in (0, 0.5, 1, 0.25)]
    drawn = points(drawing)
    assert len(drawn) == 1
    assert np.array(drawn[0]) == pytest.approx(np.stack([xs, ys], axis=1), abs=0.11)


def test_a_line_is_broken_where_nothing_is_known() -> None:
    drawing = some_chart(line([0.1, 0.2, math.nan, 0.4, math.inf, 0.6]))
    assert [len(part) for part in points(drawing)] == [2, 1, 1]
    assert "nan" not in drawing
    assert "inf" not in drawing


def test_a_line_of_nothing_is_no_path() -> None:
    for ys in ([], [math.nan, math.nan]):
        assert group(some_chart(line(ys)), "line").find("path") is None


def test_level_stretches_are_drawn_by_their_ends() -> None:
    steps = np.repeat([1.0, 0.5, 0.0], 50).tolist()
    drawing = some_chart(line(steps))
    (drawn,) = points(drawing)
    assert len(drawn) == 6
    _, _, top, bottom = plot_of(drawing)
    levels = [y for _, y in drawn]
    assert levels == pytest.approx(
        [top, top, (top + bottom) / 2] + [(top + bottom) / 2] + [bottom] * 2
    )


def test_many_points_are_thinned_and_the_ends_stay() -> None:
    values = np.random.default_rng(0).random(100_000).tolist()
    drawing = some_chart(line(values))
    (drawn,) = points(drawing)
    left, right, _, _ = plot_of(drawing)
    assert len(drawn) <= 400
    assert (drawn[0][0], drawn[-1][0]) == pytest.approx((left, right), abs=0.06)


def test_lines_stay_inside_the_plot() -> None:
    outside = Line("line", np.array([-1.0, 0.5, 3.0]), np.array([-9.0, 0.5, 1e300]))
    drawing = some_chart(outside)
    left, right, top, bottom = plot_of(drawing)
    for x, y in points(drawing)[0]:
        assert left - 0.06 <= x <= right + 0.06
        assert top - 0.06 <= y <= bottom + 0.06


def test_few_points_have_dots() -> None:
    one = some_chart(line([0.5]))
    assert len(list(group(one, "line").iter("circle"))) == 1
    assert not list(group(some_chart(line([0.5] * 40)), "line").iter("circle"))


def test_lines_differ_in_more_than_colour_and_are_named_in_the_key() -> None:
    lines = [line([0.1, place / 9], f"line {place}") for place in range(4)]
    drawing = some_chart(*lines, line([0, 1], "background", is_thin=True))
    looks = [group(drawing, one.name).attrib["class"] for one in lines]
    assert looks == [f"look-{place + 1}" for place in range(LOOKS)]
    assert group(drawing, "background").attrib["class"] == "thin"
    texts = [part.text for part in ElementTree.fromstring(drawing).iter("text")]
    assert [text for text in texts if text and text.startswith("line")] == [x.name for x in lines]
    assert "background" not in texts
    # The samples of the key have the looks of the lines, in their order.
    samples = [
        part.attrib["class"]
        for part in ElementTree.fromstring(drawing).iter("g")
        if part.find("title") is None
    ]
    assert samples == looks


@pytest.mark.parametrize("length", [3, 30, 300])
def test_the_key_stays_inside_the_drawing(length: int) -> None:
    names = [f"{place}{'W' * length}" for place in range(4)]
    root = ElementTree.fromstring(some_chart(*(line([0, 1], name) for name in names)))
    height = float(root.attrib["viewBox"].split()[3])
    keys = [part for part in root.iter("text") if re.match(r"\dW", part.text or "")]
    assert len(keys) == 4
    spans = []
    for part in keys:
        x, y = float(part.attrib["x"]), float(part.attrib["y"])
        assert x + width_of(part.text or "", FONT_SIZE) <= WIDTH + 0.1
        assert y < height
        spans.append((y, x, x + width_of(part.text or "", FONT_SIZE)))
    for (row, _, end), (other_row, start, _) in itertools.pairwise(sorted(spans)):
        assert row < other_row or end < start


@pytest.mark.parametrize("position", [-5.0, 0.0, 0.5, 1.0, 7.0])
def test_a_mark_is_written_beside_the_name_of_the_axis(position: float) -> None:
    text = "best F1 0.123 at 0.456"
    root = ElementTree.fromstring(some_chart(line([0, 1]), mark=Mark(position, text)))
    written = next(part for part in root.iter("text") if part.text == text)
    middle, half = float(written.attrib["x"]), width_of(text, FONT_SIZE) / 2
    assert middle - half >= width_of("y", FONT_SIZE)
    assert middle + half <= WIDTH + 0.1
    stroke = next(part for part in root.iter("line") if part.get("class") == "mark")
    left, right, _, _ = plot_of(some_chart(line([0, 1])))
    expected = left + (right - left) * min(max(position, 0), 1)
    assert float(stroke.attrib["x1"]) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("values", "from_zero", "ticks"),
    [
        ([0.0, 1.0], False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([3.0, 7.4], False, ["3", "4", "5", "6", "7", "8"]),
        ([3.0, 7.4], True, ["0", "2", "4", "6", "8"]),
        ([1e-4, 1e-5], True, ["0", "2e-05", "4e-05", "6e-05", "8e-05", "0.0001"]),
        ([-2.0, 12.0], False, ["-5", "0", "5", "10", "15"]),
        ([4000.0, 5200.0], False, ["4k", "4.5k", "5k", "5.5k"]),
        ([], False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([math.nan, math.inf], False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(
    values: list[float], from_zero: bool, ticks: list[str]
) -> None:
    axis = axis_over(np.array(values), "x", from_zero=from_zero)
    assert [tick.text for tick in axis.ticks] == ticks
    for value in filter(math.isfinite, values):
        assert axis.low <= value <= axis.high


@pytest.mark.parametrize(
    "values", [[0.0], [5.0, 5.0], [-3.0], [1e300, -1e300], [1e-300], [1.7e308]]
)
def test_an_axis_has_a_length(values: list[float]) -> None:
    axis = axis_over(np.array(values), "x")
    assert math.isfinite(axis.high - axis.low)
    assert axis.low < axis.high
    assert len(axis.ticks) >= 2


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 1, ["1"]),
        (1, 3, ["1", "2", "3"]),
        (1, 60, ["10", "20", "30", "40", "50", "60"]),
        (0, 6, ["0", "1", "2", "3", "4", "5", "6"]),
        (37, 300, ["50", "100", "150", "200", "250", "300"]),
    ],
)
def test_epochs_are_integers(low: int, high: int, ticks: list[str]) -> None:
    axis = whole_axis(low, high, "epoch")
    assert [tick.text for tick in axis.ticks] == ticks
    assert axis.low <= low <= high <= axis.high
    assert axis.low < axis.high


def test_texts_are_escaped_and_drawings_are_well_formed() -> None:
    axis = Axis(0, 1, share_axis("").ticks, NASTY)
    drawing = line_chart(
        [line([0, 1], NASTY)], label=NASTY, x_axis=axis, y_axis=axis, mark=Mark(0.5, NASTY)
    )
    ElementTree.fromstring(drawing)
    assert "<script" not in drawing
    drawing.encode()
