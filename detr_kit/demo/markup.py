"""The parts of the page that are drawn here: the picture, its boxes, the classes, the table.

Names come from checkpoints and from users' files: every one of them is escaped.
"""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from detr_kit.demo.limits import Limits
from detr_kit.demo.view import ClassCount, Shown
from detr_kit.detections import Detections
from detr_kit.drawing import category_color, contrasting
from detr_kit.sizes import SizeHW

# Of the copy that the browser shows; boxes are drawn on top at the screen's own resolution.
LONGEST_SIDE = 1600
# A picture is shown so many times its size at most: larger, one sees nothing but blur.
LARGEST_ZOOM = 5
_UNDER_THE_TOP, _NEAR_THE_RIGHT = 0.06, 0.75


def picture_markup(pixels: np.ndarray) -> str:
    """Return an `img` that holds a copy of the picture (H, W, 3) uint8."""
    copy = Image.fromarray(pixels)
    copy.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    copy.save(file, "JPEG", quality=92, subsampling=0)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    image = f'<img alt="The picture" src="data:image/jpeg;base64,{data}">'
    return _frame((pixels.shape[0], pixels.shape[1]), image)


def boxes_markup(drawn: Detections, size_hw: SizeHW) -> str:
    """Return a frame of the picture's shape with the boxes in it, the best one on top."""
    boxes = [_box(drawn, row, size_hw) for row in reversed(range(len(drawn)))]
    return _frame(size_hw, "".join(boxes))


def _frame(size_hw: SizeHW, content: str) -> str:
    height, width = size_hw
    style = f"--width:{width};--height:{height};--zoom:{LARGEST_ZOOM}"
    return f'<div class="dk-frame" style="{style}">{content}</div>'


def _box(drawn: Detections, row: int, size_hw: SizeHW) -> str:
    """Places are percentages, so that the browser can draw the frame at any size."""
    height, width = size_hw
    x0, y0, x1, y1 = (
        drawn.boxes_xyxy[row].astype(np.float64) / (width, height, width, height)
    ).clip(0, 1)
    place = f"left:{x0:.3%};top:{y0:.3%};width:{x1 - x0:.3%};height:{y1 - y0:.3%}"
    sides = [
        side
        for side, met in (("dk-in", y0 < _UNDER_THE_TOP), ("dk-end", x0 > _NEAR_THE_RIGHT))
        if met
    ]
    text = f"{_name(drawn.names[row])}<b>{drawn.scores[row]:.2f}</b>"
    return (
        f'<div class="{" ".join(["dk-box", *sides])}" data-row="{row}" '
        f'style="{place};{_colors(int(drawn.category_ids[row]))}"><span>{text}</span></div>'
    )


def _name(name: str) -> str:
    """Return a class's name; the browser shortens a long one and shows all of it on demand."""
    return f'<em title="{escape(name)}">{escape(name)}</em>'


def _colors(category_id: int) -> str:
    """Return the colours of a class, those of drawings, for the style sheet."""
    color = category_color(category_id)
    return "".join(
        f"--{name}:rgb({red},{green},{blue});"
        for name, (red, green, blue) in (("color", color), ("ink", contrasting(color)))
    )


def caption_markup(shown: Shown, drawn: Detections, hidden: int) -> str:
    """Return the line under the picture: file, size, objects, seconds."""
    height, width = shown.size_hw
    objects = f"{len(drawn)} object{'' if len(drawn) == 1 else 's'}"
    if hidden:
        objects += f", {hidden} hidden"
    parts = [
        f'<span class="dk-name">{escape(shown.name)}</span>',
        f"{width} × {height} pixels",  # noqa: RUF001
        f'<b id="dk-count">{objects}</b>',
        f"found in {_seconds(shown.seconds)}",
    ]
    return f'<div class="dk-caption">{"".join(f"<span>{part}</span>" for part in parts)}</div>'


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def summary_markup(counts: list[ClassCount], hidden: frozenset[int]) -> str:
    """Return a badge for each class with its number of objects and the best score."""
    badges = [
        f'<span class="{"dk-off" if each.category_id in hidden else ""}" '
        f'style="{_colors(each.category_id)}"><i></i>{_name(each.name)}<b>{each.count}</b>'
        f"<small>best {each.best:.2f}</small></span>"
        for each in counts
    ]
    return f'<div class="dk-classes">{"".join(badges)}</div>' if badges else ""


def table_markup(drawn: Detections) -> str:
    """Return the detections as a table, best first: class, score, box in pixels."""
    if not len(drawn):
        return ""
    rows = []
    for row, (box, score) in enumerate(
        zip(drawn.boxes_xyxy.tolist(), drawn.scores.tolist(), strict=True)
    ):
        corners = "".join(f"<td>{corner:.1f}</td>" for corner in box)
        rows.append(
            f'<tr data-row="{row}" style="{_colors(int(drawn.category_ids[row]))}">'
            f"<th><i></i>{_name(drawn.names[row])}</th>"
            f'<td><span class="dk-bar" style="--score:{score:.1%}"></span>{score:.3f}</td>'
            f"{corners}</tr>"
        )
    heads = "".join(f"<th>{head}</th>" for head in ("class", "score", "x0", "y0", "x1", "y1"))
    return (
        '<div class="dk-table"><table><caption>Boxes in pixels of the picture, from its top left '
        f"corner</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def notice_markup(text: str, *, problem: bool = False) -> str:
    """Return a message in place of the picture."""
    kind, role = ("dk-problem", "alert") if problem else ("dk-hint", "status")
    return f'<div class="dk-notice {kind}" role="{role}">{escape(text)}</div>'


def limits_markup(limits: Limits, minutes: int) -> str:
    """Return the small print under the field for pictures."""
    return (
        f'<p class="dk-note">At most {limits.file_bytes / 2**20:g} MB and '
        f"{limits.pixels / 1e6:g} million pixels. Deleted within {minutes} minutes.</p>"
    )


def title_markup(title: str, facts: list[str]) -> str:
    """Return the page's heading: what is shown, and in small print what it runs on."""
    line = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return f'<header class="dk-title"><h1>{escape(title)}</h1><p>{line}</p></header>'
