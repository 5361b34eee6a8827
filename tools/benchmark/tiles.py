"""What tiles find in a picture much larger than those of training, in which time and memory.

    python tools/benchmark/tiles.py CHECKPOINT [--tile 128] [--overlap 0.6] [--size 6000 4000]
                                    [--objects 1500] [--threshold 0.5] [--nms IOU]
                                    [--threads N] [--keep FOLDER]

CHECKPOINT is a detector of the generated sample data, preset `easy` (`detr-kit data sample`). The
picture holds such objects, as large as there (26 to 77 pixels), on a ground of the same texture; it
is drawn from a fixed seed and kept as an array on disk and as a PNG. Each way to look at it runs in
a process of its own:

- `whole` is `predict`, which shrinks the picture to the size of training;
- `tiles` is `predict_tiled` on the array, mapped into memory;
- `tiles, no full view` is the same without the shrunk picture;
- `tiles of a PNG` is `predict_tiled` on the file.

A detection is right if it has an IoU of at least 0.5 with an object of its class that no surer one
has. Of the others, a duplicate has that IoU with an object that is taken, a part lies by 0.7 within
an object of any class, and the rest is wrong otherwise. `MB` is the most memory of the process
beyond what it has with the model loaded; pages of the mapped array are not counted, as the system
takes them back when it needs them. `s` is the time without loading. Needs Linux, and 2 GB of memory
for drawing.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

WAYS = ("whole", "tiles", "tiles, no full view", "tiles of a PNG")
WINDOW = 128  # the side of a sample picture, of which an object's length is a share
CELLS = ((3, 1.0), (9, 0.5), (27, 0.35))  # of the sample's texture, for each window
RIGHT_IOU = 0.5
PART = 0.7


def draw(folder: Path, size_wh: tuple[int, int], objects: int) -> None:
    """Write pixels.npy, pixels.png, boxes.npy (N, 4) xyxy and ids.npy (N,)."""
    from detr_kit.data.sample import CATEGORY_IDS, PRESETS, VISIBLE, _paint, _place

    rng = np.random.default_rng(0)
    preset = PRESETS["easy"]
    pixels = _ground(rng, size_wh, preset.texture)
    boxes = np.empty((objects, 4), dtype=np.int64)
    ids = np.empty(objects, dtype=np.int64)
    count = 0
    while count < objects:
        x, y = (int(rng.integers(0, side - WINDOW + 1)) for side in size_wh)
        category = int(rng.integers(len(preset.categories)))
        alpha = _place(rng, preset, preset.categories[category], [])
        assert alpha is not None
        left, top, width, height = cv2.boundingRect((alpha >= VISIBLE).view(np.uint8))
        box = np.array([x + left, y + top, x + left + width, y + top + height])
        placed = boxes[:count]
        if ((placed[:, :2] < box[2:] + 1) & (placed[:, 2:] > box[:2] - 1)).all(axis=1).any():
            continue
        window = pixels[y : y + WINDOW, x : x + WINDOW]
        _paint(rng, window, alpha, window.mean(axis=(0, 1)), preset.colour_distance)
        boxes[count], ids[count] = box, CATEGORY_IDS[category]
        count += 1
    rgb = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    np.save(folder / "pixels.npy", rgb)
    cv2.imwrite(str(folder / "pixels.png"), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    np.save(folder / "boxes.npy", boxes)
    np.save(folder / "ids.npy", ids)


def _ground(rng: np.random.Generator, size_wh: tuple[int, int], texture: float) -> np.ndarray:
    """Return float32 (H, W, 3): the sample's texture, on a colour that changes slowly."""

    def cells(each: float) -> tuple[int, int, int]:
        return (*(max(math.ceil(side / WINDOW * each), 2) for side in size_wh[::-1]), 3)

    colours = rng.uniform(40, 215, cells(1 / 16)).astype(np.float32)
    pixels = cv2.resize(colours, size_wh, interpolation=cv2.INTER_LINEAR)
    for each, strength in CELLS:
        coarse = rng.normal(0, texture * strength, cells(each))
        mixed = 0.4 * coarse + 0.6 * 1.5 * coarse.mean(axis=2, keepdims=True)
        pixels += cv2.resize(mixed.astype(np.float32), size_wh, interpolation=cv2.INTER_CUBIC)
    for rows in pixels:
        rows += rng.normal(0, 4, (len(rows), 1)).astype(np.float32)
    return pixels


def look(way: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Detect in one way; write what was found, and print time and memory as JSON."""
    import torch

    from detr_kit.inference import Detector
    from detr_kit.inference.tiles import predict_tiled

    torch.set_num_threads(arguments.threads)
    detector = Detector.from_checkpoint(arguments.checkpoint)
    detector.warm_up([(arguments.tile, arguments.tile)], batch_size=arguments.batch)
    before, mapped = memory_kb("VmRSS"), memory_kb("RssFile")
    start = time.perf_counter()
    if way == "tiles of a PNG":
        picture: Path | np.ndarray = folder / "pixels.png"
    else:
        picture = np.load(folder / "pixels.npy", mmap_mode="r")
    if way == "whole":
        (found,) = detector.predict(picture, arguments.threshold, nms=arguments.nms)
    else:
        found = predict_tiled(
            detector,
            picture,
            arguments.threshold,
            tile=arguments.tile,
            overlap=arguments.overlap,
            full_view=way != "tiles, no full view",
            batch_size=arguments.batch,
            nms=arguments.nms,
        )
    seconds = time.perf_counter() - start
    np.savez(
        folder / "found.npz", boxes=found.boxes_xyxy, scores=found.scores, ids=found.category_ids
    )
    most = memory_kb("VmHWM") - before - (memory_kb("RssFile") - mapped)
    print(json.dumps({"seconds": seconds, "mb": most / 1024}))


def memory_kb(field: str) -> int:
    """Return a figure of Linux: VmRSS is now, RssFile mapped files, VmHWM the most so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}; this needs Linux")


def judge(folder: Path) -> str:
    """Compare what was found with the objects; return the figures as a line of the table."""
    from detr_kit.inference.overlaps import areas, intersect, overlapping, paired_ious

    objects, ids = np.load(folder / "boxes.npy"), np.load(folder / "ids.npy")
    with np.load(folder / "found.npz") as found:
        order = np.argsort(-found["scores"], kind="stable")
        boxes, found_ids = found["boxes"][order].astype(np.float64), found["ids"][order]
    rows, columns = overlapping(boxes, objects)
    ious = paired_ious(boxes[rows], objects[columns])
    within = areas(intersect(boxes[rows], objects[columns])) / areas(boxes[rows])
    near = (ious >= RIGHT_IOU) & (found_ids[rows] == ids[columns])
    taken = np.zeros(len(objects), dtype=bool)
    kinds = dict.fromkeys(("right", "duplicate", "part", "other"), 0)
    for row in range(len(boxes)):
        pairs = rows == row
        candidates = columns[pairs & near]
        free = candidates[~taken[candidates]]
        if len(free):
            taken[free[0]] = True  # objects do not overlap: there is one at most
            kinds["right"] += 1
        elif len(candidates):
            kinds["duplicate"] += 1
        else:
            kinds["part" if (within[pairs] >= PART).any() else "other"] += 1
    precision = kinds["right"] / max(len(boxes), 1)
    return (
        f"{kinds['right'] / len(objects):8.3f} {precision:10.3f} {kinds['duplicate']:11} "
        f"{kinds['part']:6} {kinds['other']:6}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--overlap", type=float, default=0.6)
    parser.add_argument("--size", type=int, nargs=2, default=(6000, 4000), metavar=("W", "H"))
    parser.add_argument("--objects", type=int, default=1500)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--nms", type=float, help="IoU, within each view")
    parser.add_argument("--batch", type=int, default=16, help="tiles in work at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--keep", type=Path, help="folder for the picture, used if it is there")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        task, folder = arguments.child[0], Path(arguments.child[1])
        if task == "draw":
            draw(folder, tuple(arguments.size), arguments.objects)
        else:
            look(task, folder, arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "ids.npy").is_file():
            run_child("draw", folder)
        print(
            f"{len(np.load(folder / 'ids.npy'))} objects, tiles of {arguments.tile} pixels, ",
            end="",
        )
        print(f"overlap {arguments.overlap}, threads {arguments.threads}")
        print(f"{'':20}   recall  precision  duplicates  parts  other       s      MB", flush=True)
        for way in arguments.ways:
            figures = json.loads(run_child(way, folder))
            rest = f"{figures['seconds']:7.1f} {figures['mb']:7.0f}"
            print(f"{way:20} {judge(folder)} {rest}", flush=True)


def run_child(task: str, folder: Path) -> str:
    """Run this script for one task; return the last line that it prints."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", task, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().rpartition("\n")[2]


if __name__ == "__main__":
    main()
