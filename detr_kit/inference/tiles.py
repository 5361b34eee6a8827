"""Detection in pictures much larger than those of training: tile by tile, and as a whole.

Tiles of one size overlap; an object that is nowhere longer than the overlap is whole in at least
one of them. The whole picture, shrunk, gives what no tile holds. How detections of the views become
one list is told in `detr_kit.inference.merging`.

Source: Akyon et al. 2022, "Slicing Aided Hyper Inference and Fine-tuning for Small Object
Detection", section 3, for tiles with a full view.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitWarning, require
from detr_kit.images import ImageInput, read_image
from detr_kit.inference.merging import merge_views
from detr_kit.inference.overlaps import suppress
from detr_kit.inference.predictor import Predictor
from detr_kit.inference.thresholds import Threshold, above, resolve_thresholds
from detr_kit.preprocess import resize_window
from detr_kit.sizes import SizeHW

# A tile that uses this share of the model's queries may hold more objects than that. A query counts
# as used from the threshold on, but not below this score.
NEARLY_ALL = 0.9
USED_SCORE = 0.3

Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in whole pixels


def predict_tiled(
    predictor: Predictor,
    image: ImageInput,
    threshold: Threshold = 0.5,
    *,
    tile: int = 800,
    overlap: float = 0.2,
    full_view: bool = True,
    batch_size: int = 4,
    nms: float | None = None,
) -> Detections:
    """Detect in one large picture; boxes are in its pixels, best score first.

    `tile` is the side of the tiles in pixels of the picture, `overlap` the share of it that
    neighbours have in common, `full_view` whether the whole picture is looked at too. Every view
    is resized by the detector's size rule, so that `tile` sets the size in which objects are seen:
    see docs/tiles.md. A picture that is no larger than a tile is looked at once, as by `predict`.

    Each tile has the model's full number of queries, so there may be more objects than queries; a
    DetrKitWarning tells if a tile uses nearly all of them.

    An array (an `np.memmap` too) is cut before anything is converted or copied, and `batch_size`
    tiles are in work at once, so memory depends on them alone. Of a file or a PIL image all pixels
    are held, 3 bytes each, and some 10 while it is decoded.

    A view's detections count from half of the threshold on, as a cut part may be surer than the
    whole; what is returned meets the threshold. `nms` as in `predict`, within each view.

    Raises DetrKitError as `predict`, and for a tile below 1 or an overlap outside [0, 1).
    """
    require(tile >= 1, f"tile: expected at least 1 pixel, got {tile}")
    require(0 <= overlap < 1, f"overlap: expected a share from 0 to below 1, got {overlap}")
    require(batch_size >= 1, f"batch_size: expected at least 1, got {batch_size}")
    require(nms is None or 0 <= nms <= 1, f"nms: expected an IoU of 0 to 1, got {nms}")
    least = resolve_thresholds(threshold, predictor.categories)
    pixels = image if isinstance(image, np.ndarray) else read_image(image)
    if pixels.ndim < 2 or pixels.size == 0:
        read_image(pixels)  # raises what is wrong
    size_hw = (pixels.shape[0], pixels.shape[1])
    windows = tile_windows(size_hw, tile, overlap)
    found = list(_in_tiles(predictor, pixels, windows, batch_size))
    _warn_of_full_tiles(found, least, tile)
    if full_view and len(windows) > 1:
        windows.append((0, 0, size_hw[1], size_hw[0]))
        found.append(_in_full_view(predictor, pixels, tile))
    candidates = {category_id: score / 2 for category_id, score in least.items()}
    found = [above(one, candidates) for one in found]
    if nms is not None:
        found = [suppress(one, nms) for one in found]
    return above(merge_views(found, np.array(windows), size_hw), least)


def tile_windows(size_hw: SizeHW, tile: int, overlap: float) -> list[Window]:
    """Return the (x0, y0, x1, y1) of overlapping tiles of one size, row by row.

    Neighbours share `overlap` of a tile, rounded up to pixels; the last tile of a row or a column
    is shifted back into the picture, and shares more. A side shorter than a tile is covered by
    one tile of its length.
    """
    height, width = size_hw
    tile_height, tile_width = min(tile, height), min(tile, width)
    return [
        (x, y, x + tile_width, y + tile_height)
        for y in _starts(height, tile_height, overlap)
        for x in _starts(width, tile_width, overlap)
    ]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    stride = max(tile - math.ceil(overlap * tile), 1)
    last = length - tile
    return [*range(0, last, stride), last]


def _in_tiles(
    predictor: Predictor, pixels: np.ndarray, windows: list[Window], batch_size: int
) -> Iterator[Detections]:
    """Yield everything found in each tile, in pixels of the picture."""
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        found = predictor.detect(
            [predictor.prepare(_pixels_of(pixels, window)) for window in batch],
            [(y1 - y0, x1 - x0) for x0, y0, x1, y1 in batch],
            [f"tile at {x0}, {y0}" for x0, y0, *_ in batch],
        )
        for (x0, y0, *_), one in zip(batch, found, strict=True):
            corners = one.boxes_xyxy + np.array([x0, y0, x0, y0], dtype=np.float32)
            yield Detections(corners, one.scores, one.category_ids, one.names)


def _in_full_view(predictor: Predictor, pixels: np.ndarray, tile: int) -> Detections:
    size_hw = (pixels.shape[0], pixels.shape[1])
    target_hw = predictor.preprocessing.size_rule.target_hw(size_hw)
    if math.prod(target_hw) < math.prod(size_hw):
        # Not prepared again: a size rule may give its own result another size.
        shown = shrink(pixels, target_hw, tile)
    else:
        shown = predictor.prepare(_pixels_of(pixels, (0, 0, size_hw[1], size_hw[0])))
    (found,) = predictor.detect([shown], [size_hw], ["full view"])
    return found


def shrink(pixels: np.ndarray, size_hw: SizeHW, side: int) -> np.ndarray:
    """Resize a picture of any kind as `detr_kit.preprocess.resize`, holding a part of it at a time.

    A part is about `side` pixels wide and high. Returns RGB (H, W, 3) uint8.
    """
    resized = np.empty((*size_hw, 3), dtype=np.uint8)
    ratio_y, ratio_x = pixels.shape[0] / size_hw[0], pixels.shape[1] / size_hw[1]
    for rows, top, bottom in _spans(size_hw[0], ratio_y, pixels.shape[0], side):
        for columns, left, right in _spans(size_hw[1], ratio_x, pixels.shape[1], side):
            part = _pixels_of(pixels, (left, top, right, bottom))
            window = (
                columns.start * ratio_x - left,
                rows.start * ratio_y - top,
                min(columns.stop * ratio_x - left, part.shape[1]),
                min(rows.stop * ratio_y - top, part.shape[0]),
            )
            part_hw = (rows.stop - rows.start, columns.stop - columns.start)
            resized[rows, columns] = resize_window(part, window, part_hw)
    return resized


def _spans(length: int, ratio: float, original: int, side: int) -> Iterator[tuple[slice, int, int]]:
    """Yield parts of a resized side, each with the first and last pixel that it is made of."""
    step = max(int(side / ratio), 1)
    margin = max(ratio, 1.0) + 1  # what the filter looks at beyond a window
    for start in range(0, length, step):
        stop = min(start + step, length)
        low = max(math.floor(start * ratio - margin), 0)
        yield slice(start, stop), low, min(math.ceil(stop * ratio + margin), original)


def _pixels_of(pixels: np.ndarray, window: Window) -> np.ndarray:
    x0, y0, x1, y1 = window
    return read_image(pixels[y0:y1, x0:x1])


def _warn_of_full_tiles(found: list[Detections], least: dict[int, float], tile: int) -> None:
    used = [above(one, least).above(USED_SCORE) for one in found]
    full = sum(
        len(some) >= NEARLY_ALL * len(one) > 0 for some, one in zip(used, found, strict=True)
    )
    if full:
        warnings.warn(
            f"{full} of {len(found)} tiles use nearly all of the model's {len(found[0])} queries, "
            f"so objects may be missing; take a smaller tile than {tile}",
            DetrKitWarning,
            stacklevel=3,
        )
