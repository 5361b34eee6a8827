from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError
from detr_kit.inference.predictor import Predictor
from detr_kit.latency import backends, benchmark, machine, measuring, report
from detr_kit.sizes import SizeHW

TABLE = CategoryTable((3,), ("cat",))


def test_benchmark_measures_every_size_and_batch(checkpoint: Path) -> None:
    found = benchmark.benchmark(checkpoint, [(32, 16), (64, 64)], [1, 3], device="cpu", repeats=2)
    cases = [(backend, row.size_hw, row.batch_size) for backend, row in found.measured]
    assert cases == [
        ("eager", (32, 16), 1),
        ("eager", (32, 16), 3),
        ("eager", (64, 64), 1),
        ("eager", (64, 64), 3),
    ]
    assert found.skipped == []
    for _, row in found.measured:
        assert row.total_ms.min <= row.total_ms.median <= row.total_ms.p99 <= row.total_ms.max
        assert list(row.stage_ms) == list(measuring.STAGES)
        assert all(ms > 0 for ms in row.stage_ms.values())


def test_threads_are_used_and_given_back(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, used = torch.get_num_threads(), []
    real = benchmark.measure_latency

    def noting(*arguments: Any, **options: Any) -> Any:
        used.append(torch.get_num_threads())
        return real(*arguments, **options)

    monkeypatch.setattr(benchmark, "measure_latency", noting)
    found = benchmark.benchmark(checkpoint, [(32, 32)], threads=before + 1, repeats=1)
    assert used == [before + 1]
    assert found.machine["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_the_machine_is_described() -> None:
    found = machine.describe_machine("cpu", threads=3)
    assert found["processor"]
    assert found["cores"] == machine.num_cores() >= 1
    assert found["PyTorch"] == importlib.metadata.version("torch")
    text = machine.machine_text(found)
    assert "3 threads, device cpu" in text
    assert f"PyTorch {found['PyTorch']}" in text


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == package else real(name))


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_backend_is_skipped_and_what_to_install_is_said(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    without(monkeypatch, package)
    found = benchmark.benchmark(checkpoint, [(32, 32)], backends=["onnx", "eager"], repeats=1)
    assert [backend for backend, _ in found.measured] == ["eager"]
    ((backend, reason),) = found.skipped
    assert backend == "onnx"
    assert package in reason
    assert "pip install 'detr_kit[onnx]'" in reason
    assert f"skipped onnx: {reason}" in report.lines(found)


def test_nothing_measured_is_an_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "onnxruntime")
    with pytest.raises(DetrKitError, match="nothing could be measured: onnx: needs onnxruntime"):
        benchmark.benchmark(checkpoint, backends=["onnx"])
    with pytest.raises(DetrKitError, match="needs onnxruntime: pip install onnxruntime"):
        benchmark.benchmark("model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backends": ["eager", "onnx"]}, "runs with the backend onnx alone"),
        ({"precision": "fp16"}, "has the precision that it was exported with"),
    ],
)
def test_an_onnx_file_is_what_it_is(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DetrKitError, match=message):
        benchmark.benchmark("model.onnx", **options)


def test_an_export_has_no_bf16(checkpoint: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(DetrKitError, match=r"onnx: .*not in bf16"):
        benchmark.benchmark(checkpoint, backends=["onnx"], precision="bf16")


def test_what_does_not_fit_into_memory_is_skipped(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = benchmark.measure_latency

    def short_of_memory(predictor: Predictor, size_hw: SizeHW, batch: int, **options: Any) -> Any:
        if batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(predictor, size_hw, batch, **options)

    monkeypatch.setattr(benchmark, "measure_latency", short_of_memory)
    found = benchmark.benchmark(checkpoint, [(32, 16)], [2, 1], repeats=1)
    assert found.skipped == [("eager", "2 x 32x16: out of memory")]
    assert [row.batch_size for _, row in found.measured] == [1]


def test_other_errors_are_raised(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise ValueError("a fault")

    monkeypatch.setattr(benchmark, "measure_latency", fails)
    with pytest.raises(ValueError, match="a fault"):
        benchmark.benchmark(checkpoint, [(32, 32)], repeats=1)


def test_a_compiler_that_is_missing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise torch._dynamo.exc.TorchDynamoException("no working C++\ncompiler found")

    monkeypatch.setattr(benchmark, "measure_latency", fails)
    with pytest.raises(DetrKitError, match=r"torch.compile failed.*no working C\+\+ compiler"):
        benchmark.benchmark(checkpoint, [(32, 32)], backends=["compile"], repeats=1)


def test_an_onnx_file(onnx_file: Path) -> None:
    found = benchmark.benchmark(onnx_file, [(32, 32)], [2], repeats=1)
    ((backend, row),) = found.measured
    assert backend == "onnx"
    assert list(row.stage_ms) == list(measuring.STAGES)
    assert found.machine["device"] == "cpu"


@pytest.mark.slow
def test_a_checkpoint_is_exported_for_the_backend_onnx(checkpoint: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = benchmark.benchmark(
        checkpoint, [(32, 32)], backends=["eager", "onnx"], device="cpu", repeats=1
    )
    assert [backend for backend, _ in found.measured] == ["eager", "onnx"]
    assert found.skipped == []


def test_an_onnx_file_is_timed_without_torch(onnx_file: Path) -> None:
    script = (
        "import sys\n"
        "from detr_kit.latency.benchmark import benchmark\n"
        f"benchmark({str(onnx_file)!r}, [(32, 32)], repeats=1)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


@pytest.mark.slow
def test_compiled_layers(checkpoint: Path) -> None:
    found = benchmark.benchmark(
        checkpoint, [(32, 32)], backends=["compile"], device="cpu", repeats=1
    )
    assert [backend for backend, _ in found.measured] == ["compile"]
