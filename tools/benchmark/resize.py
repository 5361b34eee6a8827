"""Print the time of detr_kit's two resizes as ratios to Pillow's, in one run on one thread.

    python tools/benchmark/resize.py [FOLDER] [--pictures N] [--repeats N]

FOLDER holds jpg files; without one it is ../shared/data/coco_mini/val2017, and where that is
missing, noise of COCO's picture sizes. Both sides turn the same decoded pictures by turns into the
sizes of evaluation (800, 512) and smaller ones:

- `evaluation` is `preprocess.resize`, `training` is `preprocess.resize_for_training`;
- the reference is Pillow's `resize`, array in and array out, which is what a pipeline needs.

A ratio of 1 is Pillow's time, 0.5 half of it; min, median and max are over the repeats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from detr_kit.images import read_image
from detr_kit.preprocess import resize, resize_for_training
from detr_kit.sizes import SizeHW, SizeRule

PICTURES = Path(__file__).resolve().parents[3] / "shared/data/coco_mini/val2017"
NOISE_SIZES_HW = ((480, 640), (640, 480), (427, 640), (500, 375))
RULES = (
    SizeRule("detr", 800, 1333),
    SizeRule("yolos_16", 512, 853),
    SizeRule("detr", 480, 1333),
    SizeRule("detr", 320, 533),
    SizeRule("detr", 224, 373),
)
WARM_UP = 2

Resize = Callable[[int, SizeHW], object]


def pictures(folder: Path | None, count: int) -> list[np.ndarray]:
    if folder is None and not PICTURES.is_dir():
        rng = np.random.default_rng(0)
        sizes_hw = [NOISE_SIZES_HW[index % len(NOISE_SIZES_HW)] for index in range(count)]
        return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes_hw]
    paths = sorted((folder or PICTURES).glob("*.jpg"))[:count]
    if not paths:
        raise SystemExit(f"{folder or PICTURES}: no jpg files")
    return [read_image(path) for path in paths]


def seconds(function: Resize, sizes_hw: list[SizeHW]) -> float:
    start = time.perf_counter()
    for index, size_hw in enumerate(sizes_hw):
        function(index, size_hw)
    return time.perf_counter() - start


def measure(images: list[np.ndarray], rule: SizeRule, repeats: int) -> dict[str, np.ndarray]:
    """Return the (repeats,) seconds of each side for all pictures."""
    bilinear = Image.Resampling.BILINEAR
    sides: dict[str, Resize] = {
        "evaluation": lambda i, hw: resize(images[i], hw),
        "training": lambda i, hw: resize_for_training(images[i], hw),
        "pillow": lambda i, hw: np.array(Image.fromarray(images[i]).resize(hw[::-1], bilinear)),
    }
    sizes_hw = [rule.target_hw((image.shape[0], image.shape[1])) for image in images]
    rows = [
        [seconds(function, sizes_hw) for function in sides.values()]
        for _ in range(WARM_UP + repeats)
    ]
    return dict(zip(sides, np.array(rows[WARM_UP:]).T, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="detr_kit's resize against Pillow's")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    images = pictures(arguments.folder, arguments.pictures)
    areas = sorted(image.shape[0] * image.shape[1] / 1e6 for image in images)
    print(f"{len(images)} pictures of {areas[0]:.2f} to {areas[-1]:.2f} megapixels, one thread")
    print(f"{'':26}{'ms a picture':>13}   {'evaluation':^23}{'training':^23}")
    print(f"{'rule':26}{'pillow':>13}   " + f"{'min':>7}{'median':>8}{'max':>7} " * 2)
    for rule in RULES:
        times = measure(images, rule, arguments.repeats)
        line = f"{f'{rule.rule} {rule.short_side}/{rule.long_side}':26}"
        line += f"{np.median(times['pillow']) / len(images) * 1e3:13.2f}   "
        for side in ("evaluation", "training"):
            ratio = times[side] / times["pillow"]
            line += f"{ratio.min():7.2f}{np.median(ratio):8.2f}{ratio.max():7.2f} "
        print(line)


if __name__ == "__main__":
    main()
