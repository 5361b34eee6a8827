"""Print how far ONNX files are from their models, at full size, and that they need no torch.

    python tools/onnx_check.py [VARIANT ...] [--picture-sides 800x1066,640x640] [--masked-only]

Builds each variant of the zoo (default: detr_r50, yolos_s) with random weights, exports it with
and without a padding mask, and compares batches of 1, 2 and 3 pictures of each size with the model;
pictures of a batch with a mask differ in size. Then another process, in which importing torch
fails, finds objects with the file. Takes some ten minutes and 8 GB of memory on two cores.
"""

from __future__ import annotations

DEFAULT = ("detr_r50", "yolos_s")
SIZES_HW = ((800, 1066), (640, 640), (801, 603))
BOUND = 1e-4

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
print(json.dumps([found.scores.tolist(), found.boxes_xyxy.tolist(), "torch" in sys.modules]))
"""
