"""Heat maps as inline SVG for the reports: a picture of cells, with a scale beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from detr_kit.visualization.charts import WIDTH, child, data_uri, markup, svg, written
from detr_kit.visualization.texts import compact

# Tells enough on white and on a dark ground; a picture knows neither.
HEAT_RGB = (47, 118, 232)


def heat_map(
    values: np.ndarray,
    *,
    label: str,
    x_label: str,
    y_label: str,
    unit: str,
    tooltips: Mapping[tuple[int, int], str] = MappingProxyType({}),
    height: float = 200,
) -> str:
    """Return counts (R, C) as a picture, row 0 at the top, with a scale from 0 to the highest.

    `tooltips` of cells, by row and column.
    """
    left, top, width = 20, 4, WIDTH - 70
    drawing = svg(label, WIDTH, top + height + 22)
    child(drawing, "rect", class_="frame", x=left, y=top, width=width, height=height)
    child(
        drawing,
        "image",
        x=left,
        y=top,
        width=width,
        height=height,
        preserveAspectRatio="none",
        style="image-rendering:pixelated",
        href=_heat_png(values),
    )
    cell_wh = width / values.shape[1], height / values.shape[0]
    for (row, column), tooltip in tooltips.items():
        # Two decimals: cells of many classes are only a few units wide.
        x, y = left + column * cell_wh[0], top + row * cell_wh[1]
        path = f"M{x:.2f} {y:.2f}h{cell_wh[0]:.2f}v{cell_wh[1]:.2f}h-{cell_wh[0]:.2f}z"
        child(child(drawing, "path", class_="hit", d=path), "title", tooltip)
    child(drawing, "text", x_label, class_="middle soft", x=left + width / 2, y=top + height + 16)
    middle = top + height / 2
    turned = f"rotate(-90 11 {written(middle)})"
    child(drawing, "text", y_label, class_="middle soft", x=11, y=middle, transform=turned)
    _draw_scale(drawing, int(values.max(initial=0)), unit, left + width + 10, top, height)
    return markup(drawing)


def _heat_png(values: np.ndarray) -> str:
    """Return a PNG of one colour whose opacity tells the value, as a data URI.

    Its 256 colours are the opacities, so that a cell takes one byte; row by row, since a matrix of
    a thousand classes is large in any other type.
    """
    highest = max(1, int(values.max(initial=0)))
    opacities = np.empty(values.shape, dtype=np.uint8)
    for row, cells in enumerate(values):
        opacities[row] = np.rint(cells * (255 / highest))
    image = Image.fromarray(opacities)
    image.putpalette(HEAT_RGB * 256)
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True, transparency=bytes(range(256)))
    return data_uri("image/png", content.getvalue())


def _draw_scale(
    drawing: ElementTree.Element, highest: int, unit: str, x: float, top: float, height: float
) -> None:
    parts = 16
    fill = f"rgb{HEAT_RGB}"
    scale_top, scale_height = top + 32, height - 50
    for part in range(parts):
        y = scale_top + scale_height * part / parts
        opacity = f"{1 - part / (parts - 1):.2f}"
        child(
            drawing,
            "rect",
            x=x,
            y=y,
            width=10,
            height=scale_height / parts,
            fill=fill,
            fill_opacity=opacity,
        )
    child(drawing, "text", compact(highest), class_="soft", x=x, y=top + 24)
    child(drawing, "text", unit, class_="soft", x=x, y=top + 10)
    child(drawing, "text", "0", class_="soft", x=x, y=top + height - 3)
