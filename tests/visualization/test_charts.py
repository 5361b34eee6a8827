"""Charts as SVG: what they draw is what they were given."""

from __future__ import annotations

import base64
import io
import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detr_kit.visualization.charts import (
    FONT_SIZE,
    WIDTH,
    Band,
    Tick,
    bars,
    histogram,
    name_width_of,
    round_steps,
)
from detr_kit.visualization.heat_maps import HEAT_RGB, heat_map
from detr_kit.visualization.texts import compact, counted, fitted, percent, readable, width_of

NASTY = "<script>alert(1)</script>\x00\n\u202e\ud800 ]]> &amp; \"'"


def parts(drawing: str, tag: str, class_: str) -> list[ElementTree.Element]:
    found = ElementTree.fromstring(drawing).iter(tag)
    return [part for part in found if class_ in part.get("class", "").split()]


def numbers(drawing: str, tag: str, class_: str, attribute: str) -> list[float]:
    return [float(part.attrib[attribute]) for part in parts(drawing, tag, class_)]


def some_bars(names: list[str], values: list[int], **options: float) -> str:
    tooltips = [f"{name}: {value}" for name, value in zip(names, values, strict=True)]
    return bars(names, values, label="bars", tooltips=tooltips, **options)  # type: ignore[arg-type]


def some_histogram(counts: list[int], edges: list[float], **options) -> str:  # type: ignore[no-untyped-def]
    given = {
        "label": "histogram",
        "ticks": [Tick(edge, f"{edge:g}") for edge in edges],
        "tooltips": [f"{count} things" for count in counts],
        "x_label": "x",
        "y_label": "y",
    }
    return histogram(np.array(counts), np.array(edges), **(given | options))  # type: ignore[arg-type]


def test_bars_are_as_long_as_their_values() -> None:
    drawing = some_bars(["cat", "dog", "cow"], [1000, 250, 0])
    lengths = numbers(drawing, "rect", "bar", "width")
    assert lengths[1] == pytest.approx(lengths[0] / 4, abs=0.1)
    # Nothing is not drawn, but written.
    assert len(lengths) == 2
    assert [part.text for part in parts(drawing, "text", "zero")] == ["0"]
    written = [part.text for part in parts(drawing, "text", "soft")]
    assert written == ["1,000", "250"]
    titles = [part.text for part in ElementTree.fromstring(drawing).iter("title")]
    assert titles == ["cat: 1000", "dog: 250", "cow: 0"]


def test_bars_stay_inside_the_drawing() -> None:
    drawing = some_bars(["a name that is far too long for the room there is " * 9], [123_456_789])
    bar, value = parts(drawing, "rect", "bar")[0], parts(drawing, "text", "soft")[0]
    assert float(bar.attrib["x"]) + float(bar.attrib["width"]) < float(value.attrib["x"])
    assert float(value.attrib["x"]) + width_of("123,456,789", FONT_SIZE) <= WIDTH + 1
    name = parts(drawing, "text", "end")[0]
    assert name.text is not None
    assert name.text.endswith("…")
    assert width_of(name.text, FONT_SIZE) <= 0.4 * WIDTH


def test_bars_of_several_charts_can_be_compared() -> None:
    names, other = ["a long name", "b"], ["c"]
    width = name_width_of([*names, *other])
    one = some_bars(names, [80, 40], top=80, name_width=width)
    two = some_bars(other, [20], top=80, name_width=width)
    assert numbers(two, "rect", "bar", "width")[0] == pytest.approx(
        numbers(one, "rect", "bar", "width")[0] / 4, abs=0.1
    )


def test_a_small_value_can_be_seen() -> None:
    assert numbers(some_bars(["a", "b"], [10**6, 1]), "rect", "bar", "width")[1] == 1
    heights = numbers(some_histogram([10**6, 1, 0], [0, 1, 2, 3]), "rect", "bar", "height")
    assert heights[1:] == [1]


def test_bars_of_a_histogram_are_as_high_as_their_counts() -> None:
    counts = [3, 0, 10, 5]
    drawing = some_histogram(counts, [0, 1, 2, 4, 5])
    heights = numbers(drawing, "rect", "bar", "height")
    assert heights == pytest.approx([heights[1] * part for part in (0.3, 1, 0.5)], abs=0.1)
    widths = numbers(drawing, "rect", "hit", "width")
    assert widths == pytest.approx([widths[0] * part for part in (1, 1, 2, 1)], abs=0.1)
    titles = [part.text for part in ElementTree.fromstring(drawing).iter("title")]
    assert titles == [f"{count} things" for count in counts]


@pytest.mark.parametrize("counts", [[0], [0, 0], [7]])
def test_a_histogram_of_next_to_nothing(counts: list[int]) -> None:
    drawing = some_histogram(counts, list(range(len(counts) + 1)))
    assert len(parts(drawing, "rect", "bar")) == np.count_nonzero(counts)


def test_ticks_do_not_overlap() -> None:
    ticks = [Tick(place, f"{10_000 + place}") for place in range(101)]
    drawing = some_histogram([1] * 100, list(range(101)), ticks=ticks)
    texts = [part for part in parts(drawing, "text", "middle") if part.text != "x"]
    spans = [(float(part.attrib["x"]), width_of(part.text or "", FONT_SIZE) / 2) for part in texts]
    assert len(spans) > 3
    for (left, left_half), (right, right_half) in itertools.pairwise(spans):
        assert left + left_half <= right - right_half + 0.2
    # Evenly spaced, the first one is always there.
    assert texts[0].text == "10000"
    written = [int(part.text or 0) for part in texts]
    assert len(set(np.diff(written).tolist())) == 1


def test_bands_are_divided_and_named_where_there_is_room() -> None:
    bands = [Band(0, 50, ("left", "50 %")), Band(50, 51, ("narrow",)), Band(51, 100, ("right",))]
    drawing = some_histogram([1], [0, 100], bands=bands, ticks=[])
    assert len(parts(drawing, "line", "mark")) == 2
    texts = [part.text for part in parts(drawing, "text", "middle")]
    assert texts == ["left", "50 %", "right", "x"]


def test_a_heat_map_holds_its_values() -> None:
    values = np.random.default_rng(0).integers(0, 1000, (5, 7))
    drawing = heat_map(values, label="map", x_label="x", y_label="y", unit="boxes")
    address = next(ElementTree.fromstring(drawing).iter("image")).attrib["href"]
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    pixels = np.asarray(image.convert("RGBA"))
    assert pixels.shape == (5, 7, 4)
    assert (pixels[..., :3] == HEAT_RGB).all()
    assert np.array_equal(pixels[..., 3], np.rint(values * (255 / values.max())))
    texts = [part.text for part in parts(drawing, "text", "soft")]
    assert compact(values.max()) in texts
    empty = heat_map(np.zeros((2, 2), int), label="map", x_label="", y_label="", unit="")
    assert ElementTree.fromstring(empty).get("aria-label") == "map"


@pytest.mark.parametrize(
    "drawing",
    [
        bars([NASTY], [1], label=NASTY, tooltips=[NASTY]),
        histogram(
            np.array([1]),
            np.array([0.0, 1.0]),
            label=NASTY,
            ticks=[Tick(0, NASTY)],
            tooltips=[NASTY],
            x_label=NASTY,
            y_label=NASTY,
            bands=[Band(0, 1, (NASTY,))],
        ),
        heat_map(np.ones((2, 2), int), label=NASTY, x_label=NASTY, y_label=NASTY, unit=NASTY),
    ],
)
def test_texts_are_escaped_and_drawings_are_well_formed(drawing: str) -> None:
    root = ElementTree.fromstring(drawing)
    assert "<script" not in drawing
    assert root.get("role") == "img"
    label = root.get("aria-label") or ""
    assert label.startswith("<script>alert(1)</script>\N{REPLACEMENT CHARACTER} ")
    drawing.encode()


@pytest.mark.parametrize(
    ("highest", "steps"),
    [
        (0, [0, 1]),
        (1, [0, 1]),
        (5, [0, 1, 2, 3, 4, 5]),
        (6, [0, 2, 4, 6]),
        (99, [0, 20, 40, 60, 80, 100]),
        (101, [0, 50, 100, 150]),
        (860_001, [0, 200_000, 400_000, 600_000, 800_000, 1_000_000]),
    ],
)
def test_round_steps(highest: int, steps: list[int]) -> None:
    assert round_steps(highest) == steps


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("plain", 5, "plain"),
        ("a\tb\r\nc", 9, "a b  c"),
        ("longer than that", 7, "longer…"),
        ("\x07\x7f\ufffe\udc80\u2066", 9, "\N{REPLACEMENT CHARACTER}" * 5),
        ("x" * 10**6, 4, "xxx…"),
    ],
)
def test_readable(text: str, limit: int, shown: str) -> None:
    assert readable(text, limit) == shown


def test_fitted_texts_fit() -> None:
    for text in ("short", "W" * 20, "コンビニエンスストアの冷蔵庫", "i" * 150):
        shown = fitted(text, 100, 12)
        assert width_of(shown, 12) <= 100
        assert shown == text or shown.endswith("…")
    assert fitted("short", 100, 12) == "short"


def test_numbers_as_texts() -> None:
    values = (0, 950, 1000, 1234, 86_000, 1_200_000)
    assert [compact(value) for value in values] == ["0", "950", "1k", "1.23k", "86k", "1.2M"]
    shares = ((0, 5), (1, 1000), (1, 3), (999, 1000), (5, 5), (0, 0))
    assert [percent(*share) for share in shares] == [
        "0 %",
        "< 1 %",
        "33 %",
        "> 99 %",
        "100 %",
        "0 %",
    ]
    assert [counted(value, "box", "boxes") for value in (0, 1, 1234)] == [
        "0 boxes",
        "1 box",
        "1,234 boxes",
    ]
    assert counted(2, "object") == "2 objects"
