"""Latency and throughput of a detector by size, batch and backend: `detr-kit benchmark`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detr_kit.errors import DetrKitError
from detr_kit.files import is_onnx_file
from detr_kit.images import one_line
from detr_kit.inference.predictor import Predictor
from detr_kit.latency.backends import (
    Backend,
    BackendMissing,
    loader,
)
from detr_kit.latency.machine import describe_machine, num_cores
from detr_kit.latency.measuring import Latency, measure_latency
from detr_kit.latency.memory import settled_bytes
from detr_kit.latency.progress import BenchmarkProgress
from detr_kit.sizes import USUAL_SIZE_HW, SizeHW

if TYPE_CHECKING:
    from detr_kit.inference.detector import Precision


@dataclass
class BenchmarkReport:
    """What was measured, what was not and why, in the order of measuring, and on what machine.

    `machine` has names and numbers, see `describe_machine`.
    """

    machine: dict[str, Any] = field(default_factory=dict)
    measured: list[tuple[Backend, Latency]] = field(default_factory=list)
    skipped: list[tuple[Backend, str]] = field(default_factory=list)


def benchmark(
    source: str | Path,
    sizes_hw: Sequence[SizeHW] = (USUAL_SIZE_HW,),
    batch_sizes: Sequence[int] = (1,),
    backends: Sequence[Backend] = (),
    *,
    device: str | None = None,
    precision: Precision = "fp32",
    threads: int | None = None,
    repeats: int = 30,
) -> BenchmarkReport:
    """Time a checkpoint of any kind, or an `.onnx` file, with pictures of each size and batch.

    `sizes_hw` are those of the pictures before they are resized for the model. `backends` are
    "eager" (the default), "compile" (of the transformer's layers) and "onnx", the only one of an
    `.onnx` file. `threads` are those of a CPU, for all backends; by default what torch chooses.

    A backend that cannot be used here, and a batch that does not fit into memory, is skipped.
    Raises DetrKitError where nothing could be measured, and where the checkpoint is none.
    """
    only_onnx = is_onnx_file(source)
    backends = list(dict.fromkeys(backends)) or (["onnx"] if only_onnx else ["eager"])
    if only_onnx and backends != ["onnx"]:
        raise DetrKitError(f"{source}: an ONNX file runs with the backend onnx alone")
    if only_onnx and precision != "fp32":
        raise DetrKitError(f"{source}: an ONNX file has the precision that it was exported with")
    if threads is not None and threads < 1:
        raise DetrKitError(f"threads: expected at least 1, got {threads}")
    cases = [(size_hw, batch_size) for size_hw in sizes_hw for batch_size in batch_sizes]
    report = BenchmarkReport()
    progress = BenchmarkProgress(len(backends), cases, repeats)
    with _threads(threads, with_torch=not only_onnx) as number, progress:
        options: dict[str, Any] = {"device": device, "precision": precision, "threads": number}
        for backend in backends:
            for found in _measure(source, backend, cases, repeats, options, report, progress):
                if isinstance(found, str):
                    report.skipped.append((backend, found))
                else:
                    report.measured.append((backend, found))
    if not report.measured:
        reasons = "; ".join(f"{backend}: {reason}" for backend, reason in report.skipped)
        raise DetrKitError(f"nothing could be measured: {reasons}")
    return report


def _measure(
    source: str | Path,
    backend: Backend,
    cases: list[tuple[SizeHW, int]],
    repeats: int,
    options: dict[str, Any],
    report: BenchmarkReport,
    progress: BenchmarkProgress,
) -> Iterator[Latency | str]:
    """Yield each case's latency, or why there is none; note the machine in the report."""
    try:
        with loader(source, backend, **options) as load:
            before = settled_bytes()
            predictor = load()
            device = getattr(predictor, "device", options["device"] or "cpu")
            report.machine = report.machine or describe_machine(device, threads=options["threads"])
            for size_hw, batch_size in cases:
                on_call = progress.case(backend, size_hw, batch_size)
                yield _latency_or_reason(
                    backend, predictor, size_hw, batch_size,
                    repeats=repeats, resident_before=before, on_call=on_call,
                )  # fmt: skip
    except BackendMissing as missing:
        yield str(missing)


def _latency_or_reason(
    backend: Backend, predictor: Predictor, size_hw: SizeHW, batch_size: int, **options: Any
) -> Latency | str:
    """Return a latency, or why it cannot be measured here."""
    try:
        return measure_latency(predictor, size_hw, batch_size, **options)
    except Exception as error:
        reason = _reason_of(error, backend)
        if reason is None:
            raise
        return f"{batch_size} x {size_hw[0]}x{size_hw[1]}: {reason}"


def _reason_of(error: Exception, backend: Backend) -> str | None:
    """Return what this machine lacks, None where the error says something else."""
    from detr_kit.training.memory import memory_that_ran_out

    if memory_that_ran_out(error) is not None:
        return "out of memory"
    if backend == "compile":
        from torch._dynamo.exc import TorchDynamoException

        if isinstance(error, TorchDynamoException):
            return f"torch.compile failed, which needs a C++ compiler: {one_line(error)[:300]}"
    return None


@contextmanager
def _threads(wanted: int | None, *, with_torch: bool) -> Iterator[int]:
    """Yield how many threads all backends are to use, and let torch use as many."""
    if not with_torch:
        yield wanted or num_cores()
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield wanted or before
    finally:
        torch.set_num_threads(before)
