"""The charts of a data set's report: categories, sizes, shapes, numbers and positions."""

from __future__ import annotations

import math

import numpy as np

from detr_kit.data.coco_file import CocoColumns
from detr_kit.visualization.charts import (
    Band,
    Figure,
    Tick,
    bars,
    histogram,
    name_width_of,
    round_steps,
)
from detr_kit.visualization.distributions import MAP_CELLS, Distributions
from detr_kit.visualization.heat_maps import heat_map
from detr_kit.visualization.texts import counted, grouped, percent, readable

# So many categories are shown in full; of more, the first and the last by their counts.
SHOWN_CATEGORIES = 80
TOP_CATEGORIES = 40
BOTTOM_CATEGORIES = 20
# Bounds of COCO's small, medium and large objects, sides in pixels.
_SMALL, _MEDIUM = 32, 96
_SHARE_BINS = 25


def category_figure(columns: CocoColumns, numbers: Distributions) -> Figure:
    """Show the objects of each category, most first; of very many, the two ends."""
    order = np.argsort(-numbers.objects_of_category, kind="stable")
    panels = _panels(order)
    all_names = [_name(columns, numbers, place) for panel in panels for place in panel]
    name_width = name_width_of(all_names)
    top = int(numbers.objects_of_category.max(initial=0))
    drawings = []
    for panel in panels:
        names = [_name(columns, numbers, place) for place in panel]
        values = [int(numbers.objects_of_category[place]) for place in panel]
        ids = columns.category_ids[numbers.category_rows[panel]]
        tooltips = [
            f"{readable(name, 120)} (id {id_}): {counted(value, 'object')}, "
            f"{percent(value, numbers.num_objects)}"
            for name, id_, value in zip(names, ids, values, strict=True)
        ]
        label = f"Objects of {len(panel)} categories, {grouped(values[0])} to {grouped(values[-1])}"
        drawings.append(
            bars(names, values, label=label, tooltips=tooltips, top=top, name_width=name_width)
        )
    note = _category_note(numbers, len(order) - sum(map(len, panels)))
    return Figure("Objects of each category", tuple(drawings), note)


def _category_note(numbers: Distributions, num_hidden: int) -> str:
    parts = []
    if num_hidden:
        parts.append(
            f"The {TOP_CATEGORIES} most and the {BOTTOM_CATEGORIES} least frequent categories; "
            f"the {grouped(num_hidden)} between them are not shown."
        )
    num_unused = int((numbers.objects_of_category == 0).sum())
    if num_unused:
        parts.append(f"Without objects: {counted(num_unused, 'category', 'categories')}.")
    if numbers.num_unknown_category:
        parts.append(
            f"Of no category of the file: {counted(numbers.num_unknown_category, 'object')}."
        )
    return " ".join(parts) if len(numbers.objects_of_category) else "There are no categories."


def _panels(order: np.ndarray) -> list[np.ndarray]:
    """Share out the categories to columns of about equal length, three at most."""
    if len(order) > SHOWN_CATEGORIES:
        half = TOP_CATEGORIES // 2
        return [order[:half], order[half:TOP_CATEGORIES], order[-BOTTOM_CATEGORIES:]]
    if not len(order):
        return []
    return np.array_split(order, min(3, math.ceil(len(order) / 12)))


def _name(columns: CocoColumns, numbers: Distributions, place: int) -> str:
    return columns.category_names[numbers.category_rows[place]] or "(no name)"


def size_figure(numbers: Distributions) -> Figure:
    """Show the sizes of the boxes on a log scale, with the bounds of COCO."""
    title = "Box sizes"
    sides = numbers.sides
    if not len(sides):
        return Figure(title, (), "No box has a width and a height.")
    with np.errstate(divide="ignore"):
        logs = np.log2(sides)
    # Both bounds stand in the chart, whatever the data; a stray box does not make it wide.
    low, high = np.quantile(logs, (0.001, 0.999))
    first = int(np.clip(np.floor(low), -8, 4))
    last = int(np.clip(np.ceil(high), 7, 16))
    step = 0.25 if last - first <= 9 else 0.5
    edges = np.arange(first, last + step / 2, step)
    counts = counts_between(logs, edges)
    shares = (
        percent((sides < _SMALL).sum(), len(sides)),
        percent(((sides >= _SMALL) & (sides <= _MEDIUM)).sum(), len(sides)),
        percent((sides > _MEDIUM).sum(), len(sides)),
    )
    bounds = (edges[0], math.log2(_SMALL), math.log2(_MEDIUM), edges[-1])
    bands = [
        Band(start, end, (name, share))
        for start, end, name, share in zip(
            bounds[:-1], bounds[1:], ("small", "medium", "large"), shares, strict=True
        )
    ]
    drawing = histogram(
        counts,
        edges,
        label=f"Box sizes: small {shares[0]}, medium {shares[1]}, large {shares[2]}",
        ticks=[Tick(power, _power_of_two(power)) for power in range(first, last + 1)],
        tooltips=_ranges(2.0**edges, counts, "px"),
        x_label="square root of width times height, in pixels (log)",
        y_label="boxes",
        bands=bands,
    )
    note = (
        f"{shares[0]} small, {shares[1]} medium and {shares[2]} large, as COCO divides them at "
        f"{_SMALL} and {_MEDIUM} pixels."
    )
    return Figure(title, (drawing,), note + _left_out(len(sides), numbers.num_objects))


def share_figure(numbers: Distributions) -> Figure:
    """Show the sizes of the boxes as a part of their image."""
    title = "Box sizes in the image"
    if not len(numbers.shares):
        return Figure(title, (), "No box lies in an image of known size.")
    edges = np.linspace(0, 1, _SHARE_BINS + 1)
    counts = counts_between(numbers.shares, edges)
    drawing = histogram(
        counts,
        edges,
        label=f"Box sizes in the image: median {100 * np.median(numbers.shares):.0f} %",
        ticks=[Tick(part / 5, f"{20 * part} %") for part in range(6)],
        tooltips=_ranges(100 * edges, counts, "%"),
        x_label="square root of box area / image area",
        y_label="boxes",
    )
    note = "At 10 %, a box is a tenth as wide and high as its image."
    return Figure(title, (drawing,), note + _left_out(len(numbers.shares), numbers.num_objects))


def aspect_figure(numbers: Distributions) -> Figure:
    """Show width over height on a log scale."""
    title = "Aspect ratios"
    if not len(numbers.log_aspects):
        return Figure(title, (), "No box has a width and a height.")
    edges = np.arange(-4, 4.125, 0.25)
    counts = counts_between(numbers.log_aspects, edges)
    ticks = [
        Tick(power, f"1:{2**-power}" if power < 0 else f"{2**power}:1") for power in range(-4, 5)
    ]
    drawing = histogram(
        counts,
        edges,
        label=f"Aspect ratios: median width / height {2 ** np.median(numbers.log_aspects):.2f}",
        ticks=ticks,
        tooltips=_ranges(2.0**edges, counts, "width / height"),
        x_label="width : height (log scale)",
        y_label="boxes",
    )
    tall = percent((numbers.log_aspects < 0).sum(), len(numbers.log_aspects))
    note = f"{tall} of the boxes are higher than wide. The outermost bars hold all beyond them."
    return Figure(title, (drawing,), note)


def number_figure(numbers: Distributions) -> Figure:
    """Show how many objects the images have; a long tail is gathered in the last bar."""
    title = "Objects in an image"
    of_image = numbers.objects_of_image[numbers.is_first]
    if not len(of_image):
        return Figure(title, (), "There are no images.")
    most = int(of_image.max())
    starts = number_bins(of_image)
    counts = np.histogram(of_image, [*starts, np.inf])[0]
    ends = [*(start - 1 for start in starts[1:]), max(most, starts[-1])]
    names = [
        f"{start}" if start == end else f"{start}-{end}"
        for start, end in zip(starts, ends, strict=True)
    ]
    drawing = histogram(
        counts,
        np.arange(len(starts) + 1),
        label=f"Objects in an image: median {np.median(of_image):g}, at most {most}",
        ticks=[Tick(place + 0.5, name) for place, name in enumerate(names)],
        tooltips=[
            f"{name} objects: {counted(count, 'image')}"
            for name, count in zip(names, counts, strict=True)
        ],
        x_label="objects",
        y_label="images",
    )
    median = np.median(of_image)
    note = f"Half of the images have {median:g} objects or fewer." if median else ""
    if len(starts) > 2 and most - starts[-1] > starts[-1] - starts[-2]:
        note += f" The last bar holds all that have {starts[-1]} to {most}."
    return Figure(title, (drawing,), note)


def number_bins(of_image: np.ndarray) -> list[int]:
    """Return the first number of objects of each bar; the last bar has no end.

    Images without objects are a bar of their own, and the fullest hundredth does not make the
    others' bars narrow.
    """
    most, usual = int(of_image.max()), int(np.quantile(of_image, 0.99))
    top = most if most <= 2 * usual else usual + 1
    step = round_steps(top, most=32)[1]
    return [0, *range(1, max(top, 4) + 1, step)]


def position_figure(numbers: Distributions) -> Figure:
    """Show how many boxes lie over each part of the images."""
    title = "Positions"
    if not len(numbers.shares):
        return Figure(title, (), "No box lies in an image of known size.")
    drawing = heat_map(
        numbers.coverage,
        label=f"Where boxes lie: at most {grouped(numbers.coverage.max())} boxes over one place",
        x_label="left to right",
        y_label="top to bottom",
        unit="boxes",
    )
    note = (
        f"How many boxes lie over each of {MAP_CELLS} by {MAP_CELLS} places; all images are "
        "stretched to one shape."
    )
    return Figure(title, (drawing,), note + _left_out(len(numbers.shares), numbers.num_objects))


def counts_between(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Count values (N,) between the edges; those beyond are counted in the outermost bins."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]


def _power_of_two(power: int) -> str:
    return str(2**power) if power >= 0 else f"1/{2**-power}"


def _ranges(edges: np.ndarray, counts: np.ndarray, unit: str) -> list[str]:
    """Return what the tooltips of a histogram say."""
    return [
        f"{start:.3g} to {end:.3g} {unit}: {counted(count, 'box', 'boxes')}"
        for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _left_out(shown: int, whole: int) -> str:
    if shown == whole:
        return ""
    return f" Left out for want of a usable box: {counted(whole - shown, 'object')}."
