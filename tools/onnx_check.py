"""Print how far ONNX files are from their models at full size, and that they run without torch.

    python tools/onnx_check.py [--variants detr_r50 yolos_s] [--checkpoint CHECKPOINT]

Builds each variant of the zoo with random weights, or opens a checkpoint; exports it with a padding
mask and without, and compares batches of 1, 2 and 3 pictures of three sizes with the model: the
differences of probabilities and of boxes as parts of the picture. With a mask, the pictures of a
batch differ in size. A file that takes pictures and gives boxes then finds objects in a process in
which importing torch fails. Exits with a status of 1 where a difference is above 1e-4. Takes about
ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from detr_kit.categories import coco_table
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from detr_kit.export.check import BOUNDS, Arrays, Difference, differences
from detr_kit.export.metadata import ExportOptions, FileMetadata
from detr_kit.export.onnx_file import ExportReport, export_onnx
from detr_kit.export.runtime import open_session
from detr_kit.inference.detector import Detector
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

SIZES_HW = ((640, 640), (800, 1066), (801, 603))  # square, wide, of odd sides
CASES = [(count, size_hw) for count in (1, 2, 3) for size_hw in SIZES_HW]
BOUND = BOUNDS["fp32"]
assert BOUND is not None

WITHOUT_TORCH = """
import json, sys

class Refused:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "torch":
            raise ImportError("torch must not be imported")

sys.meta_path.insert(0, Refused())
import numpy as np
from detr_kit.export.opening import open_predictor

(found,) = open_predictor(sys.argv[1]).predict(np.load(sys.argv[2]), threshold=0.0)
assert "torch" not in sys.modules
print(json.dumps([found.scores.tolist(), found.boxes_xyxy.tolist()]))
"""


def random_detector(name: str) -> Detector:
    """Build a variant whose norms and scores are not all alike, as in a new model they are."""
    torch.manual_seed(0)
    settings = {"backbone_norm": "frozen"} if name.startswith("detr") else {}
    config = ModelConfig(name=name, backbone_weights="none", **settings)
    model = build_model(resolve(config), num_classes=91)
    for module in model.modules():
        if hasattr(module, "running_var"):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    for module in model.heads.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=2 * module.in_features**-0.5)
    rule = SizeRule("detr", 800, 1333)
    preprocessing = Preprocessing(rule, IMAGENET_MEAN, IMAGENET_STD)
    return Detector(model, coco_table(), preprocessing, "cpu")


def compare(detector: Detector, report: ExportReport) -> list[Difference]:
    """Compare at full size; what `export_onnx` itself does is smaller, to be quick."""
    session = open_session(report.path)
    names = [value.name for value in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    metadata = FileMetadata(detector.categories, detector.preprocessing, report.options)
    found = []
    for one in differences(run, detector.model, metadata, cases=CASES):
        height, width = one.size_hw
        print(
            f"{_named(report.options):8} {one.batch_size:5} {height:5} x {width:<5}"
            f"{one.scores:9.1e} {one.boxes:9.1e}",
            flush=True,
        )
        found.append(one)
    return found


def _named(options: ExportOptions) -> str:
    return "mask" if options.mask else "no mask"


def without_torch(detector: Detector, path: Path, folder: Path) -> float:
    """Return how far scores of a picture are from torch's; the process must not import torch."""
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    np.save(folder / "picture.npy", picture)
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(path), str(folder / "picture.npy")],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        sys.exit(f"without torch it fails:\n{process.stderr}")
    scores, _ = json.loads(process.stdout)
    (expected,) = detector.predict(picture, threshold=0.0)
    return float(np.abs(np.array(scores) - expected.scores).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="*", default=["detr_r50", "yolos_s"])
    parser.add_argument("--checkpoint", help="a detector to take instead of the variants")
    arguments = parser.parse_args()
    if arguments.checkpoint:
        detectors = {arguments.checkpoint: Detector.from_checkpoint(arguments.checkpoint, "cpu")}
    else:
        detectors = {name: random_detector(name) for name in arguments.variants}
    worst = 0.0
    for name, detector in detectors.items():
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            print(f"\n{name}\n{'':8} {'batch':>5} {'height x width':13}{'scores':>9} {'boxes':>9}")
            for mask in (True, False):
                report = export_onnx(detector, folder / "a.onnx", mask=mask, check=False)
                worst = max(worst, *(one.largest for one in compare(detector, report)))
            size = f"{report.size_bytes / 1e6:.0f} MB, opset {report.opset}"
            report = export_onnx(
                detector, folder / "b.onnx", preprocess=True, postprocess=True, check=False
            )
            off = without_torch(detector, report.path, folder)
            print(f"{size}; without torch, from uint8 pixels: scores {off:.1e} off")
    print(f"\nlargest difference {worst:.1e}, at most {BOUND:g} passes")
    sys.exit(0 if worst <= BOUND else 1)


if __name__ == "__main__":
    main()
