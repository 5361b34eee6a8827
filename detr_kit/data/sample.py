"""Generated sample data: coloured shapes on textured grounds, written as a COCO-format data set.

It needs no download, so that a first training run works anywhere. Every picture is drawn from a
random generator of its own, keyed by (seed, preset, split, index): a larger set begins with the
pictures of a smaller one, and the same seed gives the same files with the same library versions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detr_kit.data.shapes import SHAPES
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_folder

SPLITS = ("train", "val")
JPEG_QUALITY = 92
# Sparse on purpose: nothing may take a category id for a column of the class head.
CATEGORY_IDS = (3, 7, 12, 40, 41, 58, 77, 90)
SUBPIXEL_BITS = 4
VISIBLE = 64  # of 255: a pixel counts as an object's where it covers a quarter of it


@dataclass(frozen=True)
class Preset:
    """What is drawn; lengths are fractions of the picture's side."""

    key: int  # part of the seed of every picture
    side: int
    categories: tuple[str, ...]
    objects: tuple[int, int]
    empty_fraction: float  # pictures without objects, beside those that draw 0 from `objects`
    extent: tuple[float, float]  # the longer side of an object's box
    rotation_degrees: float
    stretch: float  # largest ratio of the two scales of a shape
    min_visible: float  # of an object's own pixels; less is never drawn
    max_overlap: float  # of the smaller of two boxes
    colour_distance: float  # between an object and the mean of its ground, of at most 441
    texture: float  # strength of the ground's texture, in grey levels
    distractors: tuple[int, int]


PRESETS = {
    "easy": Preset(
        key=0,
        side=128,
        categories=("circle", "square", "triangle", "star"),
        objects=(1, 3),
        empty_fraction=0.03,
        extent=(0.2, 0.6),
        rotation_degrees=10.0,
        stretch=1.15,
        min_visible=0.95,
        max_overlap=0.05,
        colour_distance=120.0,
        texture=18.0,
        distractors=(0, 0),
    ),
    "hard": Preset(
        key=1,
        side=256,
        categories=("circle", "square", "triangle", "star", "cross", "ring", "crescent", "arrow"),
        objects=(0, 10),
        empty_fraction=0.0,
        extent=(0.05, 0.8),
        rotation_degrees=180.0,
        stretch=1.4,
        min_visible=0.4,
        max_overlap=1.0,
        colour_distance=80.0,
        texture=30.0,
        distractors=(2, 8),
    ),
}


@dataclass(frozen=True)
class SampleReport:
    """What `write_sample` wrote; the figures are by split name."""

    folder: Path
    images: dict[str, int]
    objects: dict[str, int]


@dataclass(frozen=True)
class DrawnObject:
    """One object as it is visible: box in pixels, area in pixels."""

    category: int  # position in the preset's categories
    box_xywh: tuple[int, int, int, int]
    area: int


@dataclass(frozen=True)
class Picture:
    pixels: np.ndarray  # RGB uint8 (side, side, 3)
    objects: list[DrawnObject]


def write_sample(
    out: str | Path, preset: str = "easy", *, seed: int = 0, train: int = 1000, val: int = 200
) -> SampleReport:
    """Write `out/{train,val}/*.jpg` and `out/annotations/{train,val}.json`, all of it or nothing.

    Presets: `easy` (128 pixels, 4 shapes, 1 to 3 objects that hardly overlap, a few empty
    pictures) and `hard` (256 pixels, 8 shapes, 0 to 10 objects that rotate and cover each other,
    lines and blobs that are no object). Boxes are tight around what is visible.

    Raises DetrKitError for an unknown preset, a count below 1, a negative seed, a folder that
    holds something already, and a folder that cannot be written.
    """
    if preset not in PRESETS:
        raise DetrKitError(f"sample preset {preset!r}: expected one of {', '.join(PRESETS)}")
    for name, value, least in (("train", train, 1), ("val", val, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DetrKitError(f"sample {name}={value!r}: expected a whole number from {least} on")
    folder = Path(out).expanduser().absolute()
    counts = {"train": train, "val": val}
    try:
        _require_empty(folder)
        with atomic_folder(folder) as temporary:
            objects = _write_splits(temporary, PRESETS[preset], seed, counts)
    except OSError as error:
        raise DetrKitError(f"{folder}: cannot write the sample data: {error}") from error
    return SampleReport(folder, counts, objects)


def draw_picture(preset: Preset, seed: int, split: str, index: int) -> Picture:
    """Draw the picture that `write_sample` stores at this place."""
    rng = np.random.default_rng([seed, preset.key, SPLITS.index(split), index])
    pixels, ground = _textured_ground(rng, preset)
    for _ in range(rng.integers(preset.distractors[0], preset.distractors[1] + 1)):
        _draw_distractor(rng, pixels)
    low, high = preset.objects
    count = 0 if rng.random() < preset.empty_fraction else int(rng.integers(low, high + 1))
    placed: list[_Placed] = []
    for _ in range(count):
        category = int(rng.integers(len(preset.categories)))
        alpha = _place(rng, preset, preset.categories[category], placed)
        if alpha is None:
            continue
        _paint(rng, pixels, alpha, ground, preset.colour_distance)
        covered = alpha >= VISIBLE
        for older in placed:
            older.visible &= ~covered
        placed.append(_Placed(category, covered, int(np.count_nonzero(covered))))
    objects = [
        DrawnObject(one.category, _box_xywh(one.visible), int(np.count_nonzero(one.visible)))
        for one in placed
    ]
    return Picture(np.clip(pixels + 0.5, 0, 255).astype(np.uint8), objects)


@dataclass
class _Placed:
    """An object while its picture is being drawn."""

    category: int
    visible: np.ndarray  # (side, side) bool
    full_area: int


def _require_empty(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise DetrKitError(f"{folder}: the folder is not empty; name a new one or delete it")
    if folder.exists() and not folder.is_dir():
        raise DetrKitError(f"{folder}: is a file; name a folder for the sample data")


def _write_splits(
    folder: Path, preset: Preset, seed: int, counts: dict[str, int]
) -> dict[str, int]:
    """Write both splits; return their numbers of objects."""
    (folder / "annotations").mkdir()
    objects: dict[str, int] = {}
    for split, count in counts.items():
        (folder / split).mkdir()
        content = _write_split(folder / split, preset, seed, split, count)
        objects[split] = len(content["annotations"])
        text = json.dumps(content, separators=(",", ":")) + "\n"
        (folder / "annotations" / f"{split}.json").write_text(text, encoding="utf-8")
    return objects


def _write_split(
    folder: Path, preset: Preset, seed: int, split: str, count: int
) -> dict[str, list[dict[str, Any]]]:
    """Write the pictures of one split; return its COCO content."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        picture = draw_picture(preset, seed, split, index)
        name = f"{index + 1:06d}.jpg"
        bgr = cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (folder / name).write_bytes(encoded.tobytes())
        height, width = picture.pixels.shape[:2]
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        annotations += [
            {
                "id": len(annotations) + position,
                "image_id": index + 1,
                "category_id": CATEGORY_IDS[drawn.category],
                "bbox": list(drawn.box_xywh),
                "area": drawn.area,
                "iscrowd": 0,
            }
            for position, drawn in enumerate(picture.objects, start=1)
        ]
    categories = [
        {"id": id_, "name": name}
        for id_, name in zip(CATEGORY_IDS, preset.categories, strict=False)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _textured_ground(rng: np.random.Generator, preset: Preset) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 RGB (side, side, 3) and its mean colour (3,)."""
    side = preset.side
    ground = rng.uniform(40, 215, size=3).astype(np.float32)
    pixels = np.broadcast_to(ground, (side, side, 3)).copy()
    for cells, strength in ((3, 1.0), (9, 0.5), (27, 0.35)):
        coarse = rng.normal(0, preset.texture * strength, size=(cells, cells, 3))
        grey = coarse.mean(axis=2, keepdims=True) * 1.5
        mixed = (0.4 * coarse + 0.6 * grey).astype(np.float32)
        pixels += cv2.resize(mixed, (side, side), interpolation=cv2.INTER_CUBIC)
    pixels += rng.normal(0, 4, size=(side, side, 1)).astype(np.float32)
    return pixels, ground


def _draw_distractor(rng: np.random.Generator, pixels: np.ndarray) -> None:
    """Draw, in place, something that is no object: a line or an irregular, blurred blob."""
    side = pixels.shape[0]
    colour = rng.uniform(20, 235, size=3)
    alpha: np.ndarray = np.zeros((side, side), np.uint8)
    if rng.random() < 0.5:
        start, end = rng.integers(0, side, size=(2, 2)).tolist()
        cv2.line(alpha, start, end, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
        strength = rng.uniform(0.5, 0.9)
    else:
        angles = np.linspace(0, 2 * np.pi, 9, endpoint=False)
        radii = rng.uniform(0.03, 0.13, size=9) * side
        outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
        _fill(alpha, [outline + rng.uniform(0, side, size=2)])
        alpha = cv2.GaussianBlur(alpha, (0, 0), 4.0)
        strength = rng.uniform(0.3, 0.7)
    _blend(pixels, cv2.convertScaleAbs(alpha, alpha=strength), colour)


def _place(
    rng: np.random.Generator, preset: Preset, shape: str, placed: list[_Placed]
) -> np.ndarray | None:
    """Return the coverage uint8 (side, side) of a new object; None where none fits."""
    for _ in range(20):
        extent = rng.uniform(*preset.extent) * preset.side
        contours = _random_pose(rng, preset, SHAPES[shape], extent)
        size_wh = np.concatenate(contours).max(axis=0)
        corner = rng.uniform(1, preset.side - 1 - size_wh)
        alpha = np.zeros((preset.side, preset.side), np.uint8)
        _fill(alpha, [contour + corner for contour in contours])
        if _fits(alpha >= VISIBLE, placed, preset):
            return alpha
    return None


def _random_pose(
    rng: np.random.Generator, preset: Preset, shape: Callable[[], list[np.ndarray]], extent: float
) -> list[np.ndarray]:
    """Stretch, rotate and scale: contours from (0, 0) on, the longer side being `extent`."""
    stretch = preset.stretch ** rng.uniform(-1, 1)
    angle = np.deg2rad(rng.uniform(-preset.rotation_degrees, preset.rotation_degrees))
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    contours = [(contour * [stretch, 1.0]) @ rotation for contour in shape()]
    points = np.concatenate(contours)
    low, high = points.min(axis=0), points.max(axis=0)
    return [(contour - low) * (extent / (high - low).max()) for contour in contours]


def _fits(covered: np.ndarray, placed: list[_Placed], preset: Preset) -> bool:
    """Whether boxes overlap little enough and every older object stays visible enough."""
    x, y, width, height = _box_xywh(covered)
    for older in placed:
        left = np.count_nonzero(older.visible & ~covered)
        if left < preset.min_visible * older.full_area:
            return False
        other_x, other_y, other_width, other_height = _box_xywh(older.visible)
        overlap_w = min(x + width, other_x + other_width) - max(x, other_x)
        overlap_h = min(y + height, other_y + other_height) - max(y, other_y)
        smaller = min(width * height, other_width * other_height)
        if max(overlap_w, 0) * max(overlap_h, 0) > preset.max_overlap * smaller:
            return False
    return True


def _paint(
    rng: np.random.Generator,
    pixels: np.ndarray,
    alpha: np.ndarray,
    ground: np.ndarray,
    distance: float,
) -> None:
    """Paint an object in place, lighter towards a random side and with a little grain.

    Its colour is at least `distance` from the ground's and from the mean of what it covers.
    """
    x, y, width, height = _box_xywh(alpha)
    beneath = np.array(cv2.mean(pixels[y : y + height, x : x + width])[:3])
    colour = ground
    while min(np.linalg.norm(colour - ground), np.linalg.norm(colour - beneath)) < distance:
        colour = rng.uniform(15, 240, size=3)
    slope_x, slope_y = rng.uniform(-25, 25, size=2)
    light = rng.normal(0, 5, size=(height, width))
    light += np.linspace(-slope_x, slope_x, width) / 2
    light += np.linspace(-slope_y, slope_y, height)[:, None] / 2
    _blend(pixels, alpha, colour + light[..., None])


def _blend(pixels: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> None:
    """Mix `colour` into `pixels` in place; it is one colour, or one for each pixel of the box."""
    if not alpha.any():
        return
    x, y, width, height = _box_xywh(alpha)
    window = pixels[y : y + height, x : x + width]
    weight = alpha[y : y + height, x : x + width, None].astype(np.float32) / 255
    window += weight * (colour.astype(np.float32) - window)


def _fill(alpha: np.ndarray, contours: list[np.ndarray]) -> None:
    """Fill contours (N, 2) of xy pixel positions with 255, antialiased; holes stay empty."""
    scale = 1 << SUBPIXEL_BITS
    fixed = [np.round(contour * scale).astype(np.int32) for contour in contours]
    cv2.fillPoly(alpha, fixed, 255, cv2.LINE_AA, SUBPIXEL_BITS)


def _box_xywh(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Box of the pixels that are not 0; `mask` is bool or uint8 and has at least one."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return x, y, width, height
