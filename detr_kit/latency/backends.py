"""The ways to run a detector whose times are compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from detr_kit.errors import DetrKitError
from detr_kit.files import is_onnx_file
from detr_kit.inference.predictor import Predictor

if TYPE_CHECKING:
    from detr_kit.inference.detector import Precision

Backend = Literal["eager", "compile", "onnx"]
# What the backend onnx needs beyond what is always installed: to run a file, and to write one.
_TO_RUN, _TO_WRITE = ("onnxruntime",), ("onnxruntime", "onnx", "onnxscript")


class BackendMissing(DetrKitError):
    """A way to run a detector is not there on this machine, or not for what is asked of it."""


@contextmanager
def loader(
    source: str | Path, backend: Backend, *, device: str | None, precision: Precision, threads: int
) -> Iterator[Callable[[], Predictor]]:
    """Yield what loads the detector of a checkpoint of any kind, or of an `.onnx` file.

    By then the libraries that run it are imported, and for `onnx` a checkpoint is exported, to a
    file that is deleted afterwards: loading takes no memory but the detector's. `threads` is for
    ONNX Runtime; torch's are set for the whole process. Raises BackendMissing where the backend
    cannot be used here, DetrKitError where the checkpoint cannot.
    """
    if backend != "onnx":
        from detr_kit.inference.detector import Detector

        compiled = backend == "compile"
        yield lambda: Detector.from_checkpoint(
            source, device, precision=precision, compile=compiled
        )
    elif is_onnx_file(source):
        yield _onnx_loader(source, device, threads)
    else:
        with tempfile.TemporaryDirectory(prefix="detr_kit-") as folder:
            path = Path(folder) / "model.onnx"
            _export(source, path, precision)
            yield _onnx_loader(path, device, threads)


def _onnx_loader(path: str | Path, device: str | None, threads: int) -> Callable[[], Predictor]:
    _require_packages(_TO_RUN, "pip install onnxruntime")
    import_module("onnxruntime")
    from detr_kit.export.onnx_detector import OnnxDetector
    from detr_kit.export.runtime import providers_of

    providers = providers_of(device)
    return lambda: OnnxDetector.from_file(path, providers=providers, threads=threads)


def _export(source: str | Path, path: Path, precision: Precision) -> None:
    _require_packages(_TO_WRITE, "pip install 'detr_kit[onnx]'")
    if precision == "bf16":
        raise BackendMissing("ONNX files are exported in fp32 or fp16, not in bf16")
    from detr_kit.export.onnx_file import export_onnx
    from detr_kit.inference.detector import Detector

    detector = Detector.from_checkpoint(source, "cpu")
    # `detr-kit export` checks the file; a check takes longer than the benchmark.
    export_onnx(detector, path, mask=False, precision=precision, check=False)


def _require_packages(names: tuple[str, ...], remedy: str) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise BackendMissing(f"needs {', '.join(missing)}: {remedy}")
