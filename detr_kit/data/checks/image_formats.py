"""Images whose boxes are in another format than those of the rest of their file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from detr_kit.data.box_faults import are_fractions, fit_as_corners, pass_by_far
from detr_kit.data.checks.box_format import NO_BORDER, BoxFormat, borders_hw

# Areas are often rounded; so far they may differ from a product of sides.
_RELATIVE, _ABSOLUTE = 1e-3, 0.5


@dataclass(frozen=True)
class OddImages:
    """Formats by image row; of `proven` ones the areas leave no doubt."""

    formats: dict[int, BoxFormat] = field(default_factory=dict)
    proven: frozenset[int] = frozenset()

    def among(self, image_rows: np.ndarray, found: BoxFormat | None = None) -> np.ndarray:
        """Return (N,) bool: the annotations of odd images, or of those of one format."""
        odd = [row for row, kind in self.formats.items() if found in (None, kind)]
        return np.isin(image_rows, odd)


def find_odd_images(
    boxes: np.ndarray,
    areas: np.ndarray,
    sizes_hw: np.ndarray,
    image_rows: np.ndarray,
    file_format: BoxFormat,
) -> OddImages:
    """Find images whose boxes contradict the format of the file.

    `boxes` (n, 4) are finite and have positive numbers 3 and 4, `areas` (n,) may be NaN,
    `sizes_hw` (n, 2) and `image_rows` (n,) are those of their images.
    """
    if not len(boxes) or file_format in ("centres", "unclear_fractions"):
        return OddImages()
    images = _Images(boxes, areas, sizes_hw, image_rows)
    if file_format == "xywh":
        fractions, (corners, proven) = images.of_fractions(), images.of_corners()
        # Fractions are none of the pixels that corners would be.
        corners, proven = corners & ~fractions, proven & ~fractions
        return OddImages(
            {**_by_row(fractions, "fractions"), **_by_row(corners, "corners")},
            frozenset(np.flatnonzero(proven).tolist()),
        )
    odd = images.no_corners() if file_format == "corners" else images.all_of(~images.fractions)
    return OddImages(_by_row(odd, "xywh"), frozenset(np.flatnonzero(odd).tolist()))


def _by_row(odd: np.ndarray, found: BoxFormat) -> dict[int, BoxFormat]:
    return dict.fromkeys(np.flatnonzero(odd).tolist(), found)


class _Images:
    """What the boxes of each image speak for; all results are bool, one an image."""

    def __init__(
        self, boxes: np.ndarray, areas: np.ndarray, sizes_hw: np.ndarray, image_rows: np.ndarray
    ) -> None:
        self.sizes_hw = borders_hw(sizes_hw)
        self.boxes = boxes
        self.image_rows = image_rows
        self.num_boxes = np.bincount(image_rows)
        self.fractions = are_fractions(boxes)
        self.as_corners, self.far_off = fit_as_corners(boxes, self.sizes_hw)
        with np.errstate(invalid="ignore", over="ignore"):
            corner_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
            side_areas = boxes[:, 2:].prod(axis=1)
            of_corners = np.isclose(areas, corner_areas, _RELATIVE, _ABSOLUTE)
            of_sides = np.isclose(areas, side_areas, _RELATIVE, _ABSOLUTE)
        self.against_corners = ~np.isnan(areas) & ~of_corners
        self.against_sides = ~np.isnan(areas) & ~of_sides
        self.area_of_corners = of_corners & ~of_sides
        self.area_of_sides = of_sides & ~of_corners

    def number_of(self, where: np.ndarray) -> np.ndarray:
        return np.bincount(self.image_rows[where], minlength=len(self.num_boxes))

    def all_of(self, where: np.ndarray) -> np.ndarray:
        return np.asarray((self.num_boxes > 0) & (self.number_of(~where) == 0))

    def of_fractions(self) -> np.ndarray:
        """Boxes of a picture that is large enough for them to be more than dots in pixels."""
        known = (self.sizes_hw < NO_BORDER).all(axis=1) & (self.sizes_hw.max(axis=1) > 8)
        larger = (self.boxes[:, 2:] * self.sizes_hw[:, ::-1] > 1).any(axis=1)
        return self.all_of(self.fractions & known & larger)

    def of_corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Images of corners, and those of which the areas prove it."""
        valid = self.all_of(self.as_corners)
        num_far, against = self.number_of(self.far_off), self.number_of(self.against_corners)
        matching = self.number_of(self.area_of_corners)
        matched = valid & (matching > 0) & (against == 0)
        proven = matched & ((matching > 1) | (num_far > 0))
        # The one area of an image may match by chance, unless the file has such images anyway.
        proven = matched if proven.any() else proven
        likely = valid & (self.num_boxes >= 3) & (num_far >= 2)
        likely &= self.number_of(self.area_of_sides) == 0
        return likely | proven, proven

    def no_corners(self) -> np.ndarray:
        """Images of (x, y, w, h) in a file of corners."""
        matching, against = self.number_of(self.area_of_sides), self.number_of(self.against_sides)
        invalid = self.number_of(~self.as_corners)
        proven = (matching > 1) & (against == 0)
        likely = (self.num_boxes >= 3) & (2 * invalid > self.num_boxes)
        fits = self.number_of(pass_by_far(self.boxes, self.sizes_hw)) == 0
        return np.asarray(fits & (proven | likely))
