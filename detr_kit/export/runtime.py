"""ONNX Runtime's sessions, with errors that say what to do. No torch is needed here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from detr_kit.errors import DetrKitError
from detr_kit.images import one_line

CPU = ("CPUExecutionProvider",)
_CUDA = "CUDAExecutionProvider"


def open_session(
    source: str | Path | bytes, *, providers: Sequence[Any] = CPU, threads: int | None = None
) -> Any:
    """Return ONNX Runtime's session of a file, or of its content; see `OnnxDetector.from_file`."""
    runtime = require_onnxruntime()
    name = "the graph" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise DetrKitError(f"{name}: no such file")
    if threads is not None and threads < 1:
        raise DetrKitError(f"threads: expected at least 1, got {threads}")
    wanted = [_name_of(provider) for provider in providers]
    missing = [name for name in wanted if name not in runtime.get_available_providers()]
    if missing:
        there = ", ".join(runtime.get_available_providers())
        raise DetrKitError(
            f"this ONNX Runtime has no {', '.join(missing)}; it has {there}. onnxruntime-gpu and "
            "onnxruntime-openvino are its builds for other devices"
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors are raised; warnings would go to stderr unasked
    try:
        content = source if isinstance(source, bytes) else name
        session = runtime.InferenceSession(content, options, providers=list(providers))
    # Its exceptions are of classes of their own, made in C++ and without a public base.
    except Exception as error:
        raise DetrKitError(f"{name}: ONNX Runtime cannot load it: {one_line(error)}") from error
    # Where a driver is missing it goes on without the provider and says so in its log alone.
    if wanted and wanted[0] not in session.get_providers():
        raise DetrKitError(f"{wanted[0]} cannot be used here: its libraries or device are missing")
    return session


def run_session(
    session: Any, outputs: Sequence[str], inputs: dict[str, Any], name: str
) -> list[Any]:
    """Return the outputs as arrays; raises DetrKitError naming the file where it fails."""
    try:
        return session.run(list(outputs), inputs)
    except Exception as error:  # as above
        raise DetrKitError(f"{name}: ONNX Runtime failed: {one_line(error)}") from error


def require_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DetrKitError(
            "ONNX files need onnxruntime: pip install onnxruntime, or 'detr_kit[onnx]' to export"
        ) from error
    return onnxruntime


def require_export_tools() -> None:
    """Raise DetrKitError where a package that writes ONNX files is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise DetrKitError(
            f"export to ONNX needs {', '.join(missing)}: pip install 'detr_kit[onnx]'"
        )


def providers_of(device: str | None) -> tuple[Any, ...]:
    """Return the providers for a device as torch names them: cpu (the default), cuda, cuda:1."""
    kind, _, index = (device or "cpu").partition(":")
    if kind == "cpu":
        return CPU
    if kind == "cuda" and (not index or index.isdecimal()):
        return ((_CUDA, {"device_id": int(index or 0)}), *CPU)
    raise DetrKitError(
        f"device {device!r}: ONNX files run on cpu and cuda; for others give "
        "OnnxDetector.from_file the providers"
    )


def _name_of(provider: Any) -> str:
    return provider if isinstance(provider, str) else provider[0]
