"""Print time and memory of scoring a COCO-sized problem, as ratios to pycocotools', in one run.

    python tools/benchmark/evaluation.py [FOLDER] [--repeats N] [--images N]
                                         [--hotcoco-python PATH]

The problem is drawn from a fixed seed: 5,000 pictures, 80 classes, some 36,000 objects with crowd
regions and polygons, 100 detections a picture, of which 30 % lie near an object. It is written to
FOLDER (100 MB, half a minute), without one to a folder for temporary files, and stays there. Each
side runs in a process of its own, in turn, and scores 20 pictures before:

- `pycocotools` is `COCO`, `loadRes`, `COCOeval.evaluate`, `accumulate` and `summarize`;
- `detr_kit` is `load_ground_truth` and `evaluation_of`, whose table of matches is kept;
- `hotcoco` is the same calls as pycocotools', where it can be imported: here, or by the interpreter
  that `--hotcoco-python` names. It uses all cores; `cpu` is the time of all of them together.

`from arrays`, results are an array (D, 7) in memory and the ground truth has been read before; the
time is that of all else, `loadRes` among it. `from json`, both files are read, too; they were read
once before, so that no side waits for the disk. `peak` is the most memory over the interpreter with
its imports, ground truth and results among it. Ratios are pycocotools' divided by the side's, over
all pairs of repeats. Needs Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Nothing of detr_kit is imported up here: an interpreter that has only hotcoco runs this, too.
PROC = Path("/proc/self")
SIDES = ("pycocotools", "detr_kit", "hotcoco")
SOURCES = ("arrays", "json")
NUM_IMAGES = 5000
NUM_CLASSES = 80
OBJECTS_AN_IMAGE = 7.2
DETECTIONS_AN_IMAGE = 100
NEAR_FRACTION = 0.3
CROWD_FRACTION = 0.012
POLYGON_POINTS = 20
SIZES_HW = np.array([(480, 640), (640, 480), (427, 640), (500, 375)])
WARM_UP_IMAGES = 20

Score = Callable[[Any, Any], tuple[Any, list[float], np.ndarray]]


def problem(folder: Path, num_images: int) -> Path:
    """Return a folder with annotations.json, results.json and results.npy; write it if missing."""
    from detr_kit.files import atomic_folder

    path = folder / f"scoring_{num_images}"
    if not path.is_dir():
        with atomic_folder(path) as unfinished:
            write_problem(unfinished, num_images)
    return path


def write_problem(folder: Path, num_images: int) -> None:
    import msgspec

    from detr_kit.evaluation.results import write_results

    rng = np.random.default_rng(0)
    image_ids = rng.permutation(6 * num_images)[:num_images] + 1
    sizes_hw = SIZES_HW[rng.integers(len(SIZES_HW), size=num_images)]
    category_ids = np.sort(rng.permutation(np.arange(1, 91))[:NUM_CLASSES])
    shares = rng.permutation(1 / np.arange(1, NUM_CLASSES + 1))  # few classes have most objects
    shares /= shares.sum()
    counts = rng.negative_binomial(1.2, 1.2 / (1.2 + OBJECTS_AN_IMAGE), num_images)
    image_rows = np.arange(num_images).repeat(counts)
    boxes_xywh = _boxes(rng, sizes_hw[image_rows])
    classes = rng.choice(NUM_CLASSES, len(image_rows), p=shares)
    content = {
        "images": [
            {"id": id_, "file_name": f"{id_:012d}.jpg", "height": height, "width": width}
            for id_, (height, width) in zip(image_ids.tolist(), sizes_hw.tolist(), strict=True)
        ],
        "categories": [{"id": id_, "name": f"category {id_}"} for id_ in category_ids.tolist()],
        "annotations": _annotations(
            rng, image_ids[image_rows], category_ids[classes], boxes_xywh, sizes_hw[image_rows]
        ),
    }
    (folder / "annotations.json").write_bytes(msgspec.json.encode(content))
    found_rows, found_classes, found_boxes_xywh, scores = _found(
        rng, sizes_hw, counts, boxes_xywh, classes, shares
    )
    columns = [image_ids[found_rows], *found_boxes_xywh.T, scores, category_ids[found_classes]]
    results = np.column_stack(columns).astype(np.float64)
    np.save(folder / "results.npy", results)
    write_results(folder / "results.json", results)


def _boxes(rng: np.random.Generator, sizes_hw: np.ndarray) -> np.ndarray:
    """Return boxes_xywh (n, 4) whose areas are spread as COCO's: small, medium, large by thirds."""
    borders = sizes_hw[:, ::-1]
    sides = np.exp(rng.normal(7.8, 2.0, len(sizes_hw)) / 2)[:, None]
    ratios = np.exp(rng.normal(0, 0.35, len(sizes_hw)))[:, None]
    sides_wh = np.clip(np.hstack([sides * ratios, sides / ratios]), 2, borders)
    corners = rng.random((len(sizes_hw), 2)) * (borders - sides_wh)
    return np.hstack([corners, sides_wh]).round(2)


def _annotations(
    rng: np.random.Generator,
    image_ids: np.ndarray,
    category_ids: np.ndarray,
    boxes_xywh: np.ndarray,
    sizes_hw: np.ndarray,
) -> list[dict[str, Any]]:
    places = rng.random((len(boxes_xywh), POLYGON_POINTS, 2))
    points = (boxes_xywh[:, None, :2] + places * boxes_xywh[:, None, 2:]).round(2)
    columns = zip(
        (rng.permutation(len(boxes_xywh)) + 1).tolist(),
        image_ids.tolist(),
        category_ids.tolist(),
        boxes_xywh.tolist(),
        (boxes_xywh[:, 2:].prod(axis=1) * rng.uniform(0.4, 1, len(boxes_xywh))).round(4).tolist(),
        (rng.random(len(boxes_xywh)) < CROWD_FRACTION).astype(int).tolist(),
        points.reshape(len(points), -1).tolist(),
        sizes_hw.tolist(),
        strict=True,
    )
    return [
        {
            "segmentation": {"counts": [height] * width, "size": [height, width]}
            if iscrowd
            else [outline],
            "area": area,
            "iscrowd": iscrowd,
            "image_id": image_id,
            "bbox": box_xywh,
            "category_id": category_id,
            "id": id_,
        }
        for id_, image_id, category_id, box_xywh, area, iscrowd, outline, (height, width) in columns
    ]


def _found(
    rng: np.random.Generator,
    sizes_hw: np.ndarray,
    counts: np.ndarray,
    boxes_xywh: np.ndarray,
    classes: np.ndarray,
    shares: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return image rows, classes, boxes_xywh and scores of detections, as a detector gives them."""
    rows = np.arange(len(counts)).repeat(DETECTIONS_AN_IMAGE)
    found_classes = rng.choice(NUM_CLASSES, len(rows), p=shares)
    found_boxes_xywh = _boxes(rng, sizes_hw[rows])
    logits = rng.normal(-3.5, 1.2, len(rows))
    near = np.flatnonzero((rng.random(len(rows)) < NEAR_FRACTION) & (counts[rows] > 0))
    offsets = np.cumsum(counts) - counts
    objects = offsets[rows[near]] + (rng.random(len(near)) * counts[rows[near]]).astype(int)
    jitter = rng.choice([0.02, 0.06, 0.2], len(near))
    shaken = rng.normal(0, 1, (len(near), 4)) * jitter[:, None]
    found_boxes_xywh[near] = boxes_xywh[objects] + shaken * np.tile(boxes_xywh[objects, 2:], 2)
    found_boxes_xywh[:, 2:] = np.maximum(found_boxes_xywh[:, 2:], 1)
    is_right = rng.random(len(near)) < 0.85
    found_classes[near[is_right]] = classes[objects[is_right]]
    logits[near] = rng.normal(0.5 - 10 * jitter, 1.5) - 1.5 * ~is_right
    scores = 1 / (1 + np.exp(-logits))
    return rows, found_classes, found_boxes_xywh.round(2), scores.round(5)


def _pycocotools() -> tuple[Callable[[Path], Any], Score]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return lambda path: COCO(str(path)), _score_with(COCOeval)


def _hotcoco() -> tuple[Callable[[Path], Any], Score]:
    from hotcoco import COCO, COCOeval

    return lambda path: COCO(str(path)), _score_with(COCOeval)


def _score_with(scorer_type: Any) -> Score:
    def score(truth: Any, results: Path | np.ndarray) -> tuple[Any, list[float], np.ndarray]:
        found = truth.loadRes(str(results) if isinstance(results, Path) else results)
        scorer = scorer_type(truth, found, "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        return scorer, [float(value) for value in scorer.stats], scorer.eval["precision"]

    return score


def _detr_kit() -> tuple[Callable[[Path], Any], Score]:
    from detr_kit.evaluation.coco import evaluation_of
    from detr_kit.evaluation.ground_truth import load_ground_truth

    def score(truth: Any, results: Path | np.ndarray) -> tuple[Any, list[float], np.ndarray]:
        evaluation = evaluation_of(results, truth)
        figures = [-1.0 if value is None else value for _, value in evaluation.metrics.figures()]
        return evaluation, figures, evaluation.arrays.precision

    return load_ground_truth, score


# How each side reads the ground truth, and how it scores results that are a path or an array.
READERS = {"pycocotools": _pycocotools, "detr_kit": _detr_kit, "hotcoco": _hotcoco}


def _bytes(name: str) -> int:
    return int(re.findall(rf"{name}:\s+(\d+) kB", (PROC / "status").read_text())[0]) * 1024


def measure(side: str, source: str, folder: Path, warm_up: Path) -> tuple[dict[str, Any], Any]:
    """Score in this process; return seconds, bytes and the figures, and the precision array."""
    read, score = READERS[side]()
    score(read(warm_up / "annotations.json"), warm_up / "results.json")
    score(read(warm_up / "annotations.json"), np.load(warm_up / "results.npy"))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    resident = _bytes("VmRSS")
    # The peak starts anew: that of the imports must not hide the one of a side that needs little.
    (PROC / "clear_refs").write_text("5")
    results: Any = folder / "results.json"
    truth = None
    if source == "arrays":
        truth, results = read(folder / "annotations.json"), np.load(folder / "results.npy")
    cpu, start = time.process_time(), time.perf_counter()
    if source == "json":
        truth = read(folder / "annotations.json")
    _kept, figures, precision = score(truth, results)
    measured = {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak": _bytes("VmHWM") - resident,
        "figures": figures,
    }
    return measured, precision


def in_own_process(
    python: str, side: str, source: str, folder: Path, warm_up: Path
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        names = [side, source, str(folder), str(warm_up), out]
        # The sides print their progress; what was measured comes back in files.
        command = [python, __file__, "--measure", *names]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        measured = json.loads((Path(out) / "measured.json").read_text())
        return {**measured, "precision": np.load(Path(out) / "precision.npy")}


def can_import(python: str, module: str) -> bool:
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    return done.returncode == 0


def table(source: str, measured: dict[str, list[dict[str, Any]]]) -> str:
    """Return the medians of every side, the ratios over the repeats, and what differs."""
    lines = [f"{'from ' + source:13}{'seconds':>9}{'cpu s':>9}{'peak MB':>9}   "]
    titles = ("times faster", "less peak")
    lines[0] += "".join(f"{title:^27}" for title in titles) + "  differ by at most"
    span = f"{'min':>8}{'median':>9}{'max':>9} "
    lines += [" " * 43 + span * len(titles) + f"{'figures':>10}{'precision':>10}"]
    reference = measured["pycocotools"]
    for side, rows in measured.items():
        medians = {name: np.median([row[name] for row in rows]) for name in _NUMBERS}
        line = f"{side:13}{medians['seconds']:9.3f}{medians['cpu']:9.3f}"
        line += f"{medians['peak'] / 1e6:9.1f}   "
        for name in ("seconds", "peak"):
            ratio = np.array([one[name] / row[name] for one in reference for row in rows])
            line += f"{ratio.min():8.1f}{np.median(ratio):9.1f}{ratio.max():9.1f} "
        for name in ("figures", "precision"):
            theirs = np.array(reference[0][name])
            most = max(float(np.abs(np.array(row[name]) - theirs).max()) for row in rows)
            line += f"{most:10.2g}"
        lines.append(line)
    return "\n".join(lines)


_NUMBERS = ("seconds", "cpu", "peak")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="detr_kit's scoring against pycocotools'")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--pycocotools-repeats", type=int, default=1, help="each takes minutes and 2 GB"
    )
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--hotcoco-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    if not (PROC / "status").exists():
        raise SystemExit("memory is read from /proc/self/status, which only Linux has")
    if arguments.measure:
        side, source, *paths = arguments.measure
        folder, warm_up, out = map(Path, paths)
        warnings.simplefilter("ignore")  # of results that look odd, being drawn
        measured, precision = measure(side, source, folder, warm_up)
        (out / "measured.json").write_text(json.dumps(measured))
        np.save(out / "precision.npy", precision)
        return
    parent = arguments.folder or Path(tempfile.gettempdir()) / "detr_kit_benchmark"
    folder, warm_up = problem(parent, arguments.images), problem(parent, WARM_UP_IMAGES)
    pythons = dict.fromkeys(SIDES, sys.executable) | {"hotcoco": arguments.hotcoco_python}
    if not can_import(pythons["hotcoco"], "hotcoco"):
        print("hotcoco cannot be imported and is left out; --hotcoco-python names who has it")
        del pythons["hotcoco"]
    num_objects = (folder / "annotations.json").read_bytes().count(b'"iscrowd"')
    num_found = len(np.load(folder / "results.npy"))
    print(f"{arguments.images} images, {num_objects} objects, {num_found} detections")
    for source in SOURCES:
        measured: dict[str, list[dict[str, Any]]] = {side: [] for side in pythons}
        (folder / "results.json").read_bytes()
        for repeat in range(max(arguments.repeats, arguments.pycocotools_repeats)):
            for side, python in pythons.items():
                is_reference = side == "pycocotools"
                if repeat < (arguments.pycocotools_repeats if is_reference else arguments.repeats):
                    row = in_own_process(python, side, source, folder, warm_up)
                    measured[side].append(row)
        print(table(source, measured), flush=True)


if __name__ == "__main__":
    main()
