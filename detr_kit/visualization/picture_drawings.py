"""Small pictures with boxes on them, as drawings that hold a JPEG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from detr_kit.data.names import stays_inside
from detr_kit.drawing import category_color
from detr_kit.errors import DetrKitError
from detr_kit.images import read_image
from detr_kit.visualization.charts import FONT_SIZE, child, data_uri, svg, written
from detr_kit.visualization.texts import fitted, width_of

# Longer side of a drawing, in pixels of its JPEG.
LONG_SIDE = 320
# Names that are written on one picture; more would hide it.
MAX_LABELS = 12
# How much wider bold letters are.
_BOLD = 1.15
_QUALITIES = (80, 65, 50, 35, 20)


def read_picture(folder: Path, name: str, size_hw: Sequence[int]) -> np.ndarray:
    """Return the RGB (H, W, 3) pixels of a file of an image folder.

    Raises DetrKitError that says why there are none: no name, or none inside the folder, no such
    file, not readable, not of `size_hw` where that is known.
    """
    if not name:
        raise DetrKitError("it has no file_name")
    if not stays_inside(name):
        raise DetrKitError("not a name inside the image folder")
    path = folder / name
    try:
        # Also keeps from waiting for what a pipe or a device has to say.
        if not path.is_file():
            raise DetrKitError("no such image file")
    except (OSError, ValueError) as error:
        raise DetrKitError("not a name that a file can have") from error
    height, width = map(int, size_hw)
    expected_hw = (height, width) if height > 0 and width > 0 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return read_image(path, expected_size_hw=expected_hw)
        except DetrKitError as error:
            raise DetrKitError(str(error).removeprefix(f"{path}: ")) from error


def small_jpeg(picture: np.ndarray, max_bytes: int, long_side: int = LONG_SIDE) -> str:
    """Return a small JPEG as a data URI; of pictures that are hard to compress, a coarser one."""
    small = Image.fromarray(picture)
    small.thumbnail((long_side, long_side), Image.Resampling.BILINEAR)
    content = b""
    for quality in _QUALITIES:
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True)
        content = file.getvalue()
        if len(content) <= max_bytes:
            break
    return data_uri("image/jpeg", content)


def picture_drawing(label: str, size_wh: tuple[float, float]) -> ElementTree.Element:
    """Return an empty drawing for a picture, `size_wh` wide and high."""
    drawing = svg(label, *size_wh)
    drawing.set("class", "chart picture")
    return drawing


def draw_picture(
    drawing: ElementTree.Element, jpeg: str, size_wh: tuple[float, float], **attributes: str
) -> None:
    """Fill a drawing with a JPEG, a data URI."""
    place = {"x": "0", "y": "0", "width": written(size_wh[0]), "height": written(size_wh[1])}
    child(drawing, "image", None, preserveAspectRatio="none", href=jpeg, **place, **attributes)


def color_of(category_id: int) -> str:
    """Return the category's colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*category_color(category_id))


def draw_outlines(
    drawing: ElementTree.Element, boxes_xyxy: np.ndarray, *, color: str, look: str, tooltip: str
) -> None:
    """Draw boxes_xyxy (n, 4) as one path; `look` are classes of `templates/page.html`."""
    outline = "".join(
        f"M{written(x0)} {written(y0)}H{written(x1)}V{written(y1)}H{written(x0)}Z"
        for x0, y0, x1, y1 in boxes_xyxy.tolist()
    )
    path = child(drawing, "path", class_=look, stroke=color, d=outline)
    child(path, "title", tooltip)


def draw_names(
    drawing: ElementTree.Element,
    boxes_xyxy: np.ndarray,
    names: Sequence[str],
    size_wh: tuple[float, float],
) -> None:
    """Write the names of the first boxes (n, 4) into their corners, where they do not overlap."""
    taken: list[tuple[float, float, float, float]] = []
    for box_xyxy, full_name in zip(boxes_xyxy[: 4 * MAX_LABELS], names, strict=False):
        name = fitted(full_name, size_wh[0] / 2, FONT_SIZE)
        width = _BOLD * width_of(name, FONT_SIZE)
        x = float(max(0, min(box_xyxy[0] + 3, size_wh[0] - width)))
        y = float(min(box_xyxy[1] + FONT_SIZE + 1, size_wh[1] - 2))
        place = (x, y - FONT_SIZE, x + width, y)
        if len(taken) == MAX_LABELS or any(_overlap(place, other) for other in taken):
            continue
        taken.append(place)
        child(drawing, "text", name, class_="name", x=x, y=y)


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
