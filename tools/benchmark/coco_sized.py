"""Write a COCO json of the size of instances_train2017.json: for benchmarks, not for training.

    python tools/benchmark/coco_sized.py [FOLDER] [--images N] [--boxes N]

Pictures, boxes and polygons are drawn from a fixed seed, so that the file is the same everywhere;
its annotations come in no order of pictures, as COCO's do. No pictures are written.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detr_kit.files import atomic_write

# Those of instances_train2017.json, which has 448 MB.
NUM_IMAGES = 118_287
NUM_BOXES = 860_001
NUM_CATEGORIES = 90
CROWD_FRACTION = 0.012
SIZES_HW = np.array([(480, 640), (640, 480), (427, 640), (500, 375)])
FOLDER = Path(tempfile.gettempdir()) / "detr_kit_benchmark"
CHUNK = 10_000


def coco_sized_json(
    folder: Path | None = None, num_images: int = NUM_IMAGES, num_boxes: int = NUM_BOXES
) -> Path:
    """Return the file in `folder` (by default one for temporary files); write it if missing."""
    path = (folder or FOLDER) / f"coco_sized_{num_images}_{num_boxes}.json"
    if not path.is_file():
        with atomic_write(path) as unfinished:
            write_coco_sized(unfinished, num_images, num_boxes)
    return path


def write_coco_sized(path: Path, num_images: int, num_boxes: int) -> None:
    rng = np.random.default_rng(0)
    image_ids = rng.permutation(5 * num_images)[:num_images] + 1
    sizes_hw = SIZES_HW[rng.integers(len(SIZES_HW), size=num_images)]
    categories = [
        {"supercategory": "thing", "id": id_, "name": f"category {id_}"}
        for id_ in range(1, NUM_CATEGORIES + 1)
    ]
    sections: dict[str, Iterator[list[dict[str, Any]]]] = {
        "images": iter([_images(image_ids, sizes_hw)]),
        "annotations": _annotations(rng, image_ids, sizes_hw, num_boxes),
        "categories": iter([categories]),
    }
    with path.open("wb") as file:
        file.write(b'{"info":{"year":2017},"licenses":[{"id":3}]')
        for name, chunks in sections.items():
            file.write(f',"{name}":['.encode())
            for position, chunk in enumerate(chunks):
                file.write(b"," if position else b"")
                file.write(msgspec.json.encode(chunk)[1:-1])
            file.write(b"]")
        file.write(b"}")


def _images(image_ids: np.ndarray, sizes_hw: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "license": 3,
            "file_name": f"{id_:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{id_:012d}.jpg",
            "height": height,
            "width": width,
            "date_captured": "2013-11-14 17:02:52",
            "flickr_url": f"http://farm9.staticflickr.com/8186/{id_}_z.jpg",
            "id": id_,
        }
        for id_, (height, width) in zip(image_ids.tolist(), sizes_hw.tolist(), strict=True)
    ]


def _annotations(
    rng: np.random.Generator, image_ids: np.ndarray, sizes_hw: np.ndarray, num_boxes: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield the annotations in chunks; most are polygons, a few crowd regions."""
    for start in range(0, num_boxes, CHUNK):
        count = min(CHUNK, num_boxes - start)
        rows = rng.integers(len(image_ids), size=count)
        sizes_wh = sizes_hw[rows, ::-1]
        boxes_wh = rng.uniform(2, sizes_wh / 2).round(2)
        boxes_xywh = np.concatenate(
            [rng.uniform(0, sizes_wh - boxes_wh).round(2), boxes_wh], axis=1
        )
        columns = zip(
            rng.permutation(np.arange(start, start + count) + 1).tolist(),
            image_ids[rows].tolist(),
            rng.integers(1, NUM_CATEGORIES + 1, size=count).tolist(),
            boxes_xywh.tolist(),
            (boxes_wh.prod(axis=1) * 0.6).round(4).tolist(),
            (rng.random(count) < CROWD_FRACTION).tolist(),
            _outlines(rng, boxes_xywh),
            sizes_hw[rows].tolist(),
            strict=True,
        )
        yield [
            {
                "segmentation": _run_lengths(size_hw) if crowd else [outline],
                "area": area,
                "iscrowd": int(crowd),
                "image_id": image_id,
                "bbox": box_xywh,
                "category_id": category_id,
                "id": id_,
            }
            for id_, image_id, category_id, box_xywh, area, crowd, outline, size_hw in columns
        ]


def _outlines(rng: np.random.Generator, boxes_xywh: np.ndarray) -> Iterator[list[float]]:
    """Yield a polygon x0, y0, x1, y1... inside each box, as long as COCO's are."""
    lengths = rng.lognormal(3.0, 0.7, size=len(boxes_xywh)).astype(int).clip(4, 300)
    boxes = np.repeat(boxes_xywh, lengths, axis=0)
    points = (boxes[:, :2] + rng.random((len(boxes), 2)) * boxes[:, 2:]).round(2)
    for outline in np.split(points, np.cumsum(lengths)[:-1]):
        yield outline.ravel().tolist()


def _run_lengths(size_hw: list[int]) -> dict[str, Any]:
    height, width = size_hw
    return {"counts": [height] * width, "size": size_hw}


def main() -> None:
    parser = argparse.ArgumentParser(description="write a json of COCO's size")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--boxes", type=int, default=NUM_BOXES)
    arguments = parser.parse_args()
    path = coco_sized_json(arguments.folder, arguments.images, arguments.boxes)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
