"""Opening whatever finds objects: a checkpoint of any kind, or an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detr_kit.errors import DetrKitError
from detr_kit.files import is_onnx_file
from detr_kit.inference.predictor import Predictor

_SAYS_NOTHING = (None, False, "fp32")  # the defaults, which commands hand over too


def open_predictor(
    source: str | Path, device: str | None = None, **detector_options: Any
) -> Predictor:
    """Return a `Detector` of a checkpoint, or an `OnnxDetector` of a file that ends in `.onnx`.

    `source` is anything that `Detector.from_checkpoint` takes, and so are the options; `device`
    is torch's name for one. An ONNX file runs on the CPU unless the device says `cuda`, takes no
    other options, and torch is not imported for it.
    """
    if is_onnx_file(source):
        from detr_kit.export.onnx_detector import OnnxDetector
        from detr_kit.export.runtime import providers_of

        given = [name for name, value in detector_options.items() if value not in _SAYS_NOTHING]
        if given:
            raise DetrKitError(
                f"{source}: an ONNX file is what it was exported as and takes no {', '.join(given)}"
            )
        return OnnxDetector.from_file(source, providers=providers_of(device))
    from detr_kit.inference.detector import Detector

    return Detector.from_checkpoint(source, device, **detector_options)
