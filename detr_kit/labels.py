"""Labels of boxes: how large they are, and where they hide least.

A label must not hide another one. How much of the boxes it hides, of their insides and of their
outlines, is known for every place from sums over the picture, taken once for all labels. Where no
place is good, a label shrinks to its detail, such as a score, or is left out.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ImageFont

from detr_kit.errors import DetrKitError

# The share of the picture that labels cover at most.
_LABELS = 0.25
# What a label may hide: the shares of the boxes under it, added up.
_HIDDEN = 0.4
# Smaller letters cannot be read.
_SMALLEST_FONT = 9
_LONGEST_NAME = 200
# A name that is cut to fewer tells nothing.
_FEWEST_LETTERS = 4
_MOST_CELLS = 1_000_000


class Text(NamedTuple):
    """What a box is, and what stays where there is no room for that."""

    name: str
    detail: str

    @classmethod
    def of(cls, name: str, detail: str) -> Text:
        """Make each one line, without what has no sign, and not too long to measure."""
        lines = (" ".join(text[:_LONGEST_NAME].split()) for text in (name, detail))
        return cls(*("".join(sign for sign in line if sign.isprintable()) for line in lines))

    def cut(self, length: int) -> str:
        return f"{self.name[:length].rstrip()}… {self.detail}".rstrip()


class Lettering:
    """The font of a picture's labels, and what it measures.

    All labels have one `height`, margins included; `ascent` is what letters take above their line.
    Raises DetrKitError where the file of a font cannot be read.
    """

    def __init__(
        self, texts: list[Text], picture_wh: tuple[int, int], font: str | Path | None = None
    ) -> None:
        size = min(picture_wh) / 42
        # Labels of ten letters shall not cover more than half of what they may.
        room = _LABELS / 2 * math.prod(picture_wh) / (10 * size**2 * max(1, len(texts)))
        self.size = max(_SMALLEST_FONT, round(size * min(1.0, math.sqrt(room))))
        self.font = _font(self.size, font)
        self.margin = max(1, round(self.size / 6))
        # As high as the highest letter of all, and at least as these.
        letters = set().union(*(text.name + text.detail for text in texts))
        _, top, _, bottom = self.font.getbbox("hjg" + "".join(sorted(letters)), anchor="ls")
        self.ascent = math.ceil(-top)
        self.height = self.ascent + math.ceil(bottom) + 2 * self.margin
        self._widths: dict[str, int] = {"": 0}

    def width_of(self, label: str) -> int:
        """Return the width of a label, margins included; 0 if it is empty."""
        if label not in self._widths:
            self._widths[label] = math.ceil(self.font.getlength(label)) + 2 * self.margin + 1
        return self._widths[label]

    def fitted(self, text: Text, width: float) -> str:
        """Return name and detail, or what fits: the name cut with an ellipsis, or the detail."""
        whole = f"{text.name} {text.detail}".strip()
        if self.width_of(whole) <= width:
            return whole
        fits, too_long = 0, len(text.name)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self.width_of(text.cut(middle)) <= width:
                fits = middle
            else:
                too_long = middle
        return text.cut(fits) if fits >= _FEWEST_LETTERS else text.detail


class Places:
    """Where labels of boxes (n, 4) can be, whose corners are whole pixels, ends included.

    All is reckoned on a grid of cells, so that large pictures cost no more than small ones.
    `num_left_out` is how many texts got no label.
    """

    def __init__(
        self, boxes_xyxy: np.ndarray, lettering: Lettering, picture_wh: tuple[int, int]
    ) -> None:
        self._boxes, self._lettering, self._picture_wh = boxes_xyxy, lettering, picture_wh
        area = math.prod(picture_wh)
        self._cell = max(1, lettering.height // 6, math.ceil(math.sqrt(area / _MOST_CELLS)))
        columns, rows = (math.ceil(side / self._cell) for side in picture_wh)
        self._taken = np.zeros((rows, columns), dtype=np.bool_)
        cells_xyxy = self._nearest(boxes_xyxy + np.array([0, 0, 1, 1])).clip(0, (columns, rows) * 2)
        cells_xyxy[:, :2] = np.minimum(cells_xyxy[:, :2], (columns - 1, rows - 1))
        cells_xyxy[:, 2:] = np.maximum(cells_xyxy[:, 2:], cells_xyxy[:, :2] + 1)
        self._depth = _depth(cells_xyxy, (rows, columns))
        self._shares = _summed_shares(cells_xyxy, (rows, columns)) / self._depth
        self._room = _LABELS * area  # in pixels
        self.num_left_out = 0

    def of(self, texts: list[Text]) -> list[tuple[int, str, tuple[int, int]]]:
        """Return (row, label, its left upper corner) of the labels, from the last row on."""
        width = self._picture_wh[0]
        widest = min(width, max(0.4 * width, 12 * self._lettering.size))
        whole = [self._lettering.fitted(text, widest) for text in texts]
        variants = [whole, [text.detail for text in texts]]
        corners = [self._corners(labels) for labels in variants]
        placed = []
        for row in range(len(texts) - 1, -1, -1):
            for labels, (corners_xy, num_good) in zip(variants, corners, strict=True):
                corner_xy = self._first_free(corners_xy[row, : num_good[row]], labels[row])
                if corner_xy is not None:
                    placed.append((row, labels[row], corner_xy))
                    break
            else:
                self.num_left_out += any(texts[row])
        return placed

    def of_note(self, note: str) -> tuple[int, int] | None:
        """Return where in a corner of the picture a note covers the fewest labels.

        None where it would not fit in, or cover as much of the picture as all labels may.
        """
        width = self._lettering.width_of(note)
        right, bottom = self._picture_wh[0] - width, self._picture_wh[1] - self._lettering.height
        share = width * self._lettering.height / math.prod(self._picture_wh)
        if min(right, bottom) < 0 or share > _LABELS:
            return None
        corners = [(0, bottom), (right, bottom), (right, 0), (0, 0)]
        covered = [self._taken[self._cells(*corner, width)].sum() for corner in corners]
        return corners[int(np.argmin(covered))]

    def _corners(self, labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return left upper corners (n, 8, 2), best first, and how many of them are good (n,).

        Good is what is inside the picture and hides little.
        """
        width = np.array([self._lettering.width_of(label) for label in labels], dtype=np.int64)
        height = self._lettering.height
        left, top, right, bottom = self._boxes.T
        above, lowest, end = top - height, bottom + 1 - height, right + 1 - width
        # In order of preference: on top of the box, inside, below, beside.
        x = [left, left, end, end, left, left, right + 1, left - width]
        y = [above, top, above, top, lowest, bottom + 1, top, top]
        is_inside = np.array([0, 1, 0, 1, 1, 0, 0, 0], dtype=np.bool_)
        may_move = np.array([1, 1, 1, 1, 1, 1, 0, 0], dtype=np.bool_)
        corner_x, corner_y = np.stack(x, axis=1), np.stack(y, axis=1)
        picture_w, picture_h = self._picture_wh
        moved = corner_x.clip(0, np.maximum(picture_w - width, 0)[:, None])
        fits = may_move | (moved == corner_x)
        fits &= ((width > 0) & (width <= picture_w))[:, None]
        fits &= (corner_y >= 0) & (corner_y + height <= picture_h)
        corners_xy = np.stack([moved, corner_y], axis=2)
        hidden = self._hidden(corners_xy, width)
        # Inside its own box a label is clearly that box's: what it hides there counts half.
        wide, high = right + 1 - left, bottom + 1 - top
        own = np.minimum(width / wide, 1) * np.minimum(height / high, 1) / self._depth
        hidden -= 0.5 * np.outer(own, is_inside)
        good = fits & (hidden <= _HIDDEN)
        cost = np.where(good, hidden + 0.03 * np.arange(8), np.inf)
        order = np.argsort(cost, axis=1, kind="stable")
        return np.take_along_axis(corners_xy, order[..., None], axis=1), good.sum(axis=1)

    def _hidden(self, corners_xy: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return the added shares of boxes (n, 8) that labels at corners (n, 8, 2) would hide."""
        sizes_wh = np.stack([widths, np.full_like(widths, self._lettering.height)], axis=1)
        grid_wh = self._taken.shape[::-1]
        x0, y0 = self._nearest(corners_xy).clip(0, grid_wh).transpose(2, 0, 1)
        x1, y1 = self._nearest(corners_xy + sizes_wh[:, None]).clip(0, grid_wh).transpose(2, 0, 1)
        summed = self._shares
        return summed[y1, x1] - summed[y0, x1] - summed[y1, x0] + summed[y0, x0]

    def _nearest(self, pixels: np.ndarray) -> np.ndarray:
        """Return the cells' edges nearest to pixels: what abuts on a box hides none of it."""
        return (pixels + self._cell // 2) // self._cell

    def _first_free(self, corners_xy: np.ndarray, label: str) -> tuple[int, int] | None:
        """Take the first corner (m, 2) where a label hides no other."""
        width = self._lettering.width_of(label)
        if width * self._lettering.height > self._room:
            return None
        for x, y in corners_xy.tolist():
            cells = self._cells(x, y, width)
            if not self._taken[cells].any():
                self._taken[cells] = True
                self._room -= width * self._lettering.height
                return x, y
        return None

    def _cells(self, x: int, y: int, width: int) -> tuple[slice, slice]:
        cell, end_x, end_y = self._cell, x + width, y + self._lettering.height
        return slice(y // cell, -(-end_y // cell)), slice(x // cell, -(-end_x // cell))


def _depth(cells_xyxy: np.ndarray, grid_hw: tuple[int, int]) -> float:
    """Return how many boxes lie upon each other, on average where there are any.

    Hidden shares are divided by it: else there would be no place for any label among boxes that
    cover each other throughout.
    """
    layers = _spread(cells_xyxy, np.ones(len(cells_xyxy)), grid_hw)
    return max(1.0, float(layers.sum()) / max(1, int(np.count_nonzero(layers > 0.5))))


def _summed_shares(cells_xyxy: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    """Return (rows + 1, columns + 1): sums from the left upper corner on of the cells' shares.

    A cell has its part of each box's area, and half of its part of each box's outline.
    """
    x0, y0, x1, y1 = cells_xyxy.T
    wide, high = x1 - x0, y1 - y0
    of_outline = 0.25 / (wide + high)
    parts = [
        (cells_xyxy.T, 1 / (wide * high)),
        ((x0, y0, x1, y0 + 1), of_outline),
        ((x0, y1 - 1, x1, y1), of_outline),
        ((x0, y0, x0 + 1, y1), of_outline),
        ((x1 - 1, y0, x1, y1), of_outline),
    ]
    strips = np.concatenate([np.stack(strip, axis=1) for strip, _ in parts])
    shares = _spread(strips, np.concatenate([values for _, values in parts]), grid_hw)
    return np.pad(shares.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _spread(cells_xyxy: np.ndarray, values: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    """Return the grid with each value added in all cells of its box, whatever its size."""
    x0, y0, x1, y1 = cells_xyxy.T
    changes = np.zeros((grid_hw[0] + 1, grid_hw[1] + 1))
    for y, x, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        np.add.at(changes, (y, x), sign * values)
    return changes.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]


def _font(size: int, path: str | Path | None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of a file, or DejaVu Sans, which matplotlib brings; else Pillow's own.

    Pillow's has 113 signs, which are those of English.
    """
    if path is not None:
        try:
            return ImageFont.truetype(str(path), size)
        except (OSError, ValueError) as error:
            raise DetrKitError(f"{path}: cannot be read as a font: {error}") from error
    found = find_spec("matplotlib")  # importing it would take long
    for folder in (found.submodule_search_locations or ()) if found else ():
        usual = Path(folder, "mpl-data/fonts/ttf/DejaVuSans.ttf")
        if usual.is_file():
            return ImageFont.truetype(str(usual), size)
    return ImageFont.load_default(size)
