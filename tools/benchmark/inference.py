"""Print detr_kit's inference beside that of Hugging Face transformers, in one run on a CPU.

    python tools/benchmark/inference.py [--family detr yolos] [--batch 1 4] [--threads 2]
        [--attention sdpa eager] [--repeats 10] [--no-onnx] [--clock cpu]

All sides have the same drawn weights, DETR-R50 or YOLOS-S with 91 classes, and the same pictures
of 480x640 (coco_mini's in ../shared/data, or generated ones), which both resize to 800x1066, for
YOLOS to 800x1056. First it is printed how far their outputs differ; the script stops where that is
more than 1e-4.

- `network` is from normalised pixels to logits and boxes.
- `pictures to boxes` is from decoded pictures to boxes that score 0.5: `Detector.predict`, and the
  image processor, the model and `post_process_object_detection` of transformers.
- `preprocessing` is the part before the network, from decoded pixels and from a file, beside
  transformers' image processors on torchvision (its default) and on Pillow.

The sides run by turns, so that what else the machine does concerns all of them. A ratio is
detr_kit's time divided by the other's in the same turn; below 1 detr_kit is faster. GOAL marks the
ratio that is aimed at. Where others use the machine too, `OMP_WAIT_POLICY=passive` and `--clock
cpu` count the time that the process's threads worked, but ONNX Runtime's threads work while they
wait.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inference_preprocessing import pixel_differences, preprocessing_work
from inference_sides import Side, onnx_side, our_side, peer_side, write_detector
from PIL import Image
from step_batches import COCO_MINI
from step_sides import FAMILIES

from detr_kit.inference.detector import Detector

SIZE_HW = (480, 640)
WARM_UP = 1
BOUND = 1e-4
GOALS = {"detr": 0.70, "yolos": 1.0}
PREPROCESSING_GOAL = 0.5
PREPROCESSING_REPEATS = 30
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def picture_files(count: int, folder: Path) -> list[Path]:
    """Return files of pictures of SIZE_HW, written to the folder where there are none."""
    found = []
    for path in sorted((COCO_MINI / "val2017").glob("*.jpg")):
        with Image.open(path) as file:
            if (file.height, file.width) == SIZE_HW and file.mode == "RGB":
                found.append(path)
        if len(found) == count:
            return found
    rng = np.random.default_rng(0)
    for index in range(count):
        found.append(folder / f"generated{index}.jpg")
        Image.fromarray(rng.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)).save(found[-1])
    return found[-count:]


def turns(
    work: dict[str, Callable[[], Any]], repeats: int, now: Callable[[], float]
) -> dict[str, np.ndarray]:
    """Return the (repeats,) milliseconds of each side, by turns."""
    rows = []
    for _ in range(WARM_UP + repeats):
        row = []
        for call in work.values():
            start = now()
            call()
            row.append((now() - start) * 1e3)
        rows.append(row)
    return dict(zip(work, np.array(rows[WARM_UP:]).T, strict=True))


def print_turns(title: str, milliseconds: dict[str, np.ndarray], goals: dict[str, float]) -> None:
    """Print times and ratios of the first side to the others, and whether goals are met."""
    print(f"  {title:28}{'ms':^27}{'detr_kit / it':^27}")
    print(f"  {'':28}{'min':>9}{'median':>9}{'max':>9}{'min':>9}{'median':>9}{'max':>9}")
    (first, ours), *_ = milliseconds.items()
    for name, own in milliseconds.items():
        line = f"  {name:28}{own.min():9.1f}{np.median(own):9.1f}{own.max():9.1f}"
        if name != first:
            ratio = ours / own
            line += f"{ratio.min():9.3f}{np.median(ratio):9.3f}{ratio.max():9.3f}"
            if name in goals:
                met = "met" if np.median(ratio) <= goals[name] else "MISSED"
                line += f"   goal {goals[name]:.2f}: {met}"
        print(line)


def print_agreement(sides: list[Side]) -> None:
    """Print how far outputs are from the last side's; end the script where it is too far."""
    *others, reference = sides
    expected = reference.outputs(reference.network())
    for side in others:
        found = side.outputs(side.network())
        scores = float((found.probabilities - expected.probabilities).abs().max())
        boxes = float((found.boxes_cxcywh - expected.boxes_cxcywh).abs().max())
        print(
            f"  {side.name} differs from {reference.name} by {scores:.1e} in probabilities (up to "
            f"{float(expected.probabilities.max()):.2f}), {boxes:.1e} in boxes"
        )
        if not max(scores, boxes) <= BOUND:
            raise SystemExit(f"more than {BOUND}: these are not the same detectors")


def compare(family: str, batch: int, folder: Path, arguments: argparse.Namespace) -> None:
    files = picture_files(batch, folder)
    pictures = [np.array(Image.open(path)) for path in files]
    threads = torch.get_num_threads()
    sides = [our_side(folder, pictures)]
    if arguments.onnx:
        sides.append(onnx_side(folder, pictures, threads))
    sides += [peer_side(folder, name, pictures) for name in arguments.attention]
    print(f"\n{family}, {batch} x {SIZE_HW[0]}x{SIZE_HW[1]}, {threads} threads")
    print_agreement(sides)
    goals = {f"transformers, {name}": GOALS[family] for name in arguments.attention[:1]}
    now = CLOCKS[arguments.clock]
    network = turns({side.name: side.network for side in sides}, arguments.repeats, now)
    print_turns("network", network, goals)
    whole = turns({side.name: side.detect for side in sides}, arguments.repeats, now)
    print_turns("pictures to boxes", whole, goals)
    print(
        "  images/s by the median: "
        + ", ".join(f"{name} {batch / np.median(own) * 1e3:.2f}" for name, own in whole.items())
    )


def compare_preprocessing(folder: Path, arguments: argparse.Namespace) -> None:
    detector = Detector.from_checkpoint(folder, "cpu")
    (path,) = picture_files(1, folder)
    work = preprocessing_work(detector, folder, path)
    for name, text in pixel_differences(work["decoded"], detector.preprocessing.std).items():
        print(f"  pixels of {name} differ by {text} on average, of 255")
    goals = {f"transformers, {kind}": PREPROCESSING_GOAL for kind in ("torchvision", "Pillow")}
    for start, calls in work.items():
        found = turns(calls, PREPROCESSING_REPEATS, CLOCKS[arguments.clock])
        print_turns(f"preprocessing, {start}", found, goals)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="detr_kit's inference beside transformers'")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--attention", nargs="+", default=["sdpa", "eager"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false")
    parser.add_argument("--preprocessing-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.onnx and (find_spec("onnxruntime") is None or find_spec("onnxscript") is None):
        print("without ONNX Runtime: pip install 'detr_kit[onnx]'", file=sys.stderr)
        arguments.onnx = False
    return arguments


def print_setting(arguments: argparse.Namespace) -> None:
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"CPU, PyTorch {torch.__version__}, transformers {version('transformers')}, "
        f"{arguments.clock} time, {arguments.repeats} turns after {WARM_UP}{load}"
    )


@torch.inference_mode()
def main() -> None:
    arguments = parse_arguments()
    print_setting(arguments)
    for family in arguments.family:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_detector(family, folder)
            for threads in arguments.threads:
                torch.set_num_threads(threads)
                for batch in () if arguments.preprocessing_only else arguments.batch:
                    compare(family, batch, folder, arguments)
                print(f"\n{family}, preprocessing of a picture, {threads} threads")
                compare_preprocessing(folder, arguments)
    print_setting(arguments)


if __name__ == "__main__":
    main()
