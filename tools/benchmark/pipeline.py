"""Print the training pipeline's pictures a second and core beside DETR's own, in one run.

    python tools/benchmark/pipeline.py [FOLDER] [--pictures N] [--repeats N] [--augmentation NAME]

FOLDER holds the jpg files of a COCO json given by --json; without them they are coco_mini's
val2017 in ../shared/data. Each side reads the files and runs its recipe by turns, on one thread:

- `pillow` is the official recipe as published, the reference; `torchvision` the same in its v2
  transforms (see recipes.py); both give normalised float pictures;
- `torchvision, uint8` leaves out the last two steps, as detr_kit does;
- `detr_kit` is DetectionDataset with `train_pipeline(NAME)`; its pictures are uint8, because they
  are normalised on the device;
- `detr_kit, normalised` normalises them here too.

A ratio is pillow's time divided by the side's; min, median and max are over the repeats. Random
draws differ between sides; `output` shows that the pictures are of one size on average. Then come
detr_kit's own stages: the time inside of each, without that of stages within it, and what
normalising would add if the device were a CPU. At last, what interpolating once instead of twice,
and not by Pillow, changes.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # is read by libraries as they are imported

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from grey_levels import print_grey_levels
from recipes import SHORT_SIDES, Annotated, TorchvisionRecipe, pillow_recipe
from torch import Tensor

from detr_kit.config import ImageSizeConfig
from detr_kit.data import pipelines, strong
from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.data.augmentation import train_pipeline
from detr_kit.data.dataset import DetectionDataset, Sample
from detr_kit.data.loading import collate
from detr_kit.data.pictures import Picture
from detr_kit.data.views import View
from detr_kit.preprocess import Preprocessing
from detr_kit.structures import CollatedImages

COCO_MINI = Path(__file__).resolve().parents[3] / "shared/data/coco_mini"
IMAGE_SIZE = ImageSizeConfig(train_short_sides=SHORT_SIDES)
BATCH_SIZE = 16
WARM_UP = 1
NORMALISE = "then, on the device"
# What a stage's time is spent in; a function that is called within another's counts for its own.
STAGES: tuple[tuple[Any, str, str], ...] = (
    (Picture, "read", "decode"),
    (Picture, "read_for_training", "decode"),
    (View, "pixels", "crop, resize, flip"),
    (Preprocessing, "apply", "crop, resize, flip"),
    (pipelines, "recoloured", "colours"),
    (strong, "recoloured", "colours"),
    (strong, "pixels_of", "put on one canvas, mix"),
    (strong, "mixed", "put on one canvas, mix"),
    (strong, "objects_of", "boxes"),
    (View, "boxes", "boxes"),
    (pipelines, "visible_boxes", "boxes"),
)

Side = Callable[[int, int], Tensor]


def annotated(annotations: CocoAnnotations, folder: Path, count: int) -> list[Annotated]:
    pictures = []
    for index in range(min(count, len(annotations))):
        boxes_xyxy, labels = annotations.objects_of(index)
        path = folder / annotations.file_names[index]
        size_hw = annotations.size_hw(index)
        pictures.append(Annotated(path, size_hw, boxes_xyxy.tolist(), labels.tolist()))
    return pictures


def normalized(image: Tensor) -> Tensor:
    """Return (1, 3, H, W) float pixels as a device would make them of (H, W, 3) uint8."""
    size_hw = (image.shape[0], image.shape[1])
    alone = CollatedImages(image.unsqueeze(0), (size_hw,), (size_hw,), (0,))
    return alone.normalized(IMAGE_SIZE.mean, IMAGE_SIZE.std).pixels


def sides(pictures: list[Annotated], ours: DetectionDataset) -> dict[str, Side]:
    """Return what makes the picture of an (epoch, index) on each side."""
    draw = random.Random(0)
    torchvision, torchvision_uint8 = TorchvisionRecipe(), TorchvisionRecipe(uint8=True)
    return {
        "pillow": lambda _, index: pillow_recipe(pictures[index], draw)[0],
        "torchvision": lambda _, index: torchvision(pictures[index])[0],
        "torchvision, uint8": lambda _, index: torchvision_uint8(pictures[index])[0],
        "detr_kit": lambda epoch, index: ours[epoch, index].image,
        "detr_kit, normalised": lambda epoch, index: normalized(ours[epoch, index].image),
    }


def print_throughput(pictures: list[Annotated], ours: DetectionDataset, repeats: int) -> None:
    seconds: dict[str, list[float]] = {}
    megapixels: Counter[str] = Counter()
    for epoch in range(WARM_UP + repeats):
        for name, side in sides(pictures, ours).items():
            torch.manual_seed(epoch)
            start = time.perf_counter()
            values = sum(side(epoch, index).numel() for index in range(len(pictures)))
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            megapixels[name] += values / 3e6
    print(f"\n{'':24}{'images/s':>9}{'ms an image':>13}{'output Mpx':>12}   {'faster':^23}")
    print(f"{'':61}{'min':>7}{'median':>8}{'max':>7}")
    reference = np.array(seconds["pillow"][WARM_UP:])
    for name, values in seconds.items():
        times = np.array(values[WARM_UP:])
        ratio, each = reference / times, np.median(times) / len(pictures)
        output = megapixels[name] / len(pictures) / len(values)
        line = f"{name:24}{1 / each:9.0f}{each * 1e3:13.2f}{output:12.3f}   "
        print(line + f"{ratio.min():7.2f}{np.median(ratio):8.2f}{ratio.max():7.2f}")


class Clock:
    """Adds up the time inside of stages, without that of the stages inside them."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.running: list[str] = []
        self.since = 0.0

    def switch(self) -> None:
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.switch()
        self.running.append(name)
        try:
            yield
        finally:
            self.switch()
            self.running.pop()

    def timed(self, function: Any, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        return call


def print_stages(ours: DetectionDataset, count: int, repeats: int) -> None:
    """Print where detr_kit's time goes, from the file to a normalised batch."""
    clock = Clock()
    with ExitStack() as stack:
        for owner, attribute, name in STAGES:
            timed = clock.timed(getattr(owner, attribute), name)
            stack.enter_context(patch.object(owner, attribute, timed))
        for epoch in range(WARM_UP + repeats):
            if epoch == WARM_UP:
                clock.seconds.clear()
            for start in range(0, count, BATCH_SIZE):
                indices = range(start, min(start + BATCH_SIZE, count))
                with clock.stage("seeds, targets, the rest"):
                    samples: list[Sample] = [ours[epoch, index] for index in indices]
                with clock.stage(f"collate {BATCH_SIZE}"):
                    batch = collate(samples)
                del batch
                with clock.stage(NORMALISE):
                    for sample in samples:
                        normalized(sample.image)
    each = {name: value / count / repeats * 1e3 for name, value in clock.seconds.most_common()}
    normalise = each.pop(NORMALISE)
    total = sum(each.values())
    print(f"\n{'detr_kit, stage':28}{'ms an image':>12}{'share':>8}")
    for name, milliseconds in each.items():
        print(f"{name:28}{milliseconds:12.3f}{milliseconds / total:8.0%}")
    print(f"{'in all':28}{total:12.3f}")
    print(f"{NORMALISE:28}{normalise:12.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="throughput of the training pipeline")
    parser.add_argument("folder", nargs="?", type=Path, default=COCO_MINI / "val2017")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=int, default=79)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--augmentation", default="detr")
    arguments = parser.parse_args()
    json = arguments.json or COCO_MINI / "annotations/instances_val2017.json"
    if not json.is_file() or not arguments.folder.is_dir():
        raise SystemExit(f"{json} or {arguments.folder} is missing: give FOLDER and --json")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    annotations = load_annotations(json)
    ours = DetectionDataset(
        annotations, arguments.folder, train_pipeline(arguments.augmentation, IMAGE_SIZE)
    )
    pictures = annotated(annotations, arguments.folder, arguments.pictures)
    area = np.mean([picture.size_hw[0] * picture.size_hw[1] for picture in pictures]) / 1e6
    print(f"{len(pictures)} pictures of {area:.2f} megapixels on average, one thread")
    print(f"augmentation of detr_kit: {arguments.augmentation}; of the others: DETR's")
    print_throughput(pictures, ours, arguments.repeats)
    print_stages(ours, len(pictures), arguments.repeats)
    print_grey_levels(pictures)


if __name__ == "__main__":
    main()
