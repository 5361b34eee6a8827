"""Print the memory of data loader workers over two epochs of a data set of COCO's size, in one run.

    python tools/benchmark/workers.py [FOLDER] [--workers 1 4 8] [--images N] [--boxes N]

FOLDER is where the json stands or is written to (450 MB); without one it is a folder for temporary
files. Pictures are not read: a tiny one stands in for each. All else is what training does: the
batches of AspectBatchSampler, Target, collate. Each line is a process of its own:

- `dicts` is the reference: a list of one dict a picture with one dict an object, without polygons,
  whose workers are forked, as they are in most code;
- `columns` is DetectionDataset over `load_annotations(file)`, whose workers come from detr_kit's
  own context (a fork server where there is one), which sends the columns to each of them;
- `cache` is the same over `load_annotations(file, cache_dir=...)`, whose workers open the cache.

`start` is the private memory (USS) of a worker that has given its first batch, `end` after two
epochs, both of the worker with most; `in all` counts the loading process and what it started, by
shares (PSS), at the end. Pages of a cached file count as private where one worker alone has read
them; the system can still drop them, so `own end` leaves pages of files out. Needs Linux.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coco_sized import NUM_BOXES, NUM_IMAGES, coco_sized_json
from torch.utils.data import DataLoader, Dataset

from detr_kit.boxes import xyxy_to_cxcywh
from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.data.dataset import DetectionDataset, Sample
from detr_kit.data.loading import collate, worker_context
from detr_kit.data.pictures import Pictures
from detr_kit.data.pipelines import Augmented
from detr_kit.data.samplers import AspectBatchSampler
from detr_kit.data.views import visible_boxes
from detr_kit.structures import Target

SIDES = ("dicts", "columns", "cache")
EPOCHS = 2
BATCH_SIZE = 64
TINY_HW = (8, 8)


def tiny_picture() -> np.ndarray:
    return np.zeros((*TINY_HW, 3), np.uint8)


class UnreadPipeline:
    """What a pipeline does with the objects; a tiny picture stands in for the file."""

    def __call__(self, pictures: Pictures, index: int, *, seed: int) -> Augmented:
        picture = pictures[index]
        height, width = picture.size_hw
        boxes = picture.boxes_xyxy / np.array([width, height, width, height])
        visible, rows = visible_boxes(boxes, picture.size_hw)
        return Augmented(tiny_picture(), visible, picture.labels[rows])


class DictDataset(Dataset[Any]):
    """The same content as a list of one dict a picture with one dict an object."""

    def __init__(self, annotations: CocoAnnotations) -> None:
        self.records = [_record(annotations, index) for index in range(len(annotations))]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Any) -> Any:
        _, index = key
        record = self.records[index]
        objects, size_hw = record["annotations"], (record["height"], record["width"])
        boxes = torch.tensor([one["bbox"] for one in objects]).reshape(-1, 4)
        boxes_cxcywh = xyxy_to_cxcywh(boxes / torch.tensor(size_hw[::-1] * 2))
        labels = torch.tensor([one["category"] for one in objects], dtype=torch.int64)
        target = Target(labels=labels, boxes_cxcywh=boxes_cxcywh, image_id=record["image_id"])
        return Sample(torch.from_numpy(tiny_picture()), target, size_hw)


def _record(annotations: CocoAnnotations, index: int) -> dict[str, Any]:
    height, width = annotations.size_hw(index)
    boxes_xyxy, labels = annotations.objects_of(index)
    ids = annotations.annotation_ids[annotations.offsets[index] :]
    return {
        "image_id": int(annotations.image_ids[index]),
        "file_name": str(annotations.file_names[index]),
        "height": height,
        "width": width,
        "annotations": [
            {"id": int(id_), "bbox": box, "category": label, "iscrowd": 0}
            # The columns of a picture are shorter than `ids`, which go on to the last picture.
            for id_, box, label in zip(ids, boxes_xyxy.tolist(), labels.tolist(), strict=False)
        ],
    }


def one_thread(worker_id: int) -> None:
    torch.set_num_threads(1)


def measure(side: str, workers: int, path: Path, cache_dir: Path) -> dict[str, float]:
    """Load two epochs in this process; memory is in bytes."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    annotations = load_annotations(path, cache_dir=cache_dir if side == "cache" else None)
    sampler = AspectBatchSampler(annotations.sizes_hw, BATCH_SIZE)
    dataset: Dataset[Any]
    if side == "dicts":
        dataset, context = DictDataset(annotations), multiprocessing.get_context("fork")
    else:
        dataset = DetectionDataset(annotations, path.parent, UnreadPipeline())
        context = worker_context()
    del annotations
    gc.collect()
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context=context,
        worker_init_fn=one_thread,
    )
    at_start: list[int] = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for position, _ in enumerate(loader):
            if epoch == 0 and position == workers - 1:
                pids = [process.pid for process in multiprocessing.active_children()]
                at_start = [private_bytes(pid) for pid in pids]
    at_end = [private_bytes(pid) for pid in pids]
    return {
        "start": max(at_start),
        "end": max(at_end),
        "growth": max(end - start for start, end in zip(at_start, at_end, strict=True)),
        "own end": max(_rollup_bytes(pid, "Private_Dirty") for pid in pids),
        "in all": sum(_rollup_bytes(pid, "Pss") for pid in family()),
    }


def private_bytes(pid: int | None) -> int:
    return _rollup_bytes(pid, "Private_Clean") + _rollup_bytes(pid, "Private_Dirty")


def _rollup_bytes(pid: int | None, name: str) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(rf"^{name}:\s+(\d+) kB", rollup, re.MULTILINE)[0]) * 1024


def family() -> set[int]:
    """Return this process and its descendants: workers may be a fork server's children."""
    parents = {int(path.name): _parent(path) for path in Path("/proc").glob("[0-9]*")}
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _parent(process: Path) -> int | None:
    try:
        # The name of the program, in brackets, may hold anything.
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # ended meanwhile
        return None


def in_own_process(side: str, workers: int, path: Path, cache_dir: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", side, str(workers), str(path), str(cache_dir)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output)


def main() -> None:
    parser = argparse.ArgumentParser(description="memory of data loader workers")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--boxes", type=int, default=NUM_BOXES)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("memory is read from /proc/PID/smaps_rollup, which only Linux has")
    if arguments.measure:
        side, workers, json_path, cache = arguments.measure
        print(json.dumps(measure(side, int(workers), Path(json_path), Path(cache))))
        return
    path = coco_sized_json(arguments.folder, arguments.images, arguments.boxes)
    print(f"{path.name}: {arguments.images} images, {arguments.boxes} boxes, {EPOCHS} epochs")
    print(f"{'':10}{'workers':>8}{'start MB':>10}{'end MB':>9}{'growth MB':>11}", end="")
    print(f"{'own end MB':>12}{'in all MB':>11}{'end, dicts = 1':>16}")
    with tempfile.TemporaryDirectory(dir=path.parent) as cache_dir:
        load_annotations(path, cache_dir=Path(cache_dir))
        for workers in arguments.workers:
            rows = {s: in_own_process(s, workers, path, Path(cache_dir)) for s in SIDES}
            for side, row in rows.items():
                start, end, growth, own, whole = (
                    row[name] / 1e6 for name in ("start", "end", "growth", "own end", "in all")
                )
                print(f"{side:10}{workers:8}{start:10.1f}{end:9.1f}{growth:11.1f}", end="")
                print(f"{own:12.1f}{whole:11.1f}", end="")
                print(f"{row['end'] / rows['dicts']['end']:16.2f}", flush=True)


if __name__ == "__main__":
    main()
