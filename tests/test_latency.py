from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.cli import latency as latency_command
from detr_kit.config import ModelConfig
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.inference.predictor import Predictor
from detr_kit.latency import backends, benchmark, machine, measuring, memory, report
from detr_kit.latency.measuring import Spread, measure_latency, num_calls
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeHW, SizeRule

TABLE = CategoryTable((3,), ("cat",))
PREPROCESSING = Preprocessing(SizeRule("fit", 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NOTHING = Detections(np.empty((0, 4)), np.empty(0), np.empty(0), [])


class Clock:
    """Stands still but where a stage takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(measuring, "perf_counter", lambda: self.now)

    def takes(self, seconds: float) -> None:
        self.now += seconds


class Network:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def forward(self, number: int) -> None:
        self.clock.takes(4 * number)


class Staged(Predictor):
    """Takes 1 s to prepare a picture, 4 s in its model and 2 s afterwards."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(TABLE, PREPROCESSING)
        self.clock = clock
        self.model = Network(clock)
        self.seen: list[tuple[list[SizeHW], list[SizeHW]]] = []

    def prepare(self, image: np.ndarray) -> np.ndarray:
        self.clock.takes(1)
        return super().prepare(image)

    def detect(
        self, resized: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW], names: list[str]
    ) -> list[Detections]:
        self.seen.append(([image.shape[:2] for image in resized], list(original_sizes_hw)))
        self.model.forward(len(resized))
        self.clock.takes(2 * len(resized))
        return [NOTHING] * len(resized)


def test_spread_is_in_milliseconds() -> None:
    spread = Spread.of([0.002, 0.001, 0.003, 0.103])
    assert (spread.min, spread.median, spread.max) == pytest.approx((1, 2.5, 103))
    assert spread.p99 == pytest.approx(100)  # 97 % of the way from the third to the last


def test_total_and_stages_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Staged(Clock(monkeypatch))
    told: list[int] = []
    latency = measure_latency(predictor, (40, 64), 2, repeats=7, on_call=lambda: told.append(1))
    assert latency.total_ms == Spread(14e3, 14e3, 14e3, 14e3)
    assert latency.stage_ms == {"preprocessing": 2e3, "model": 8e3, "postprocessing": 4e3}
    assert latency.images_per_second == pytest.approx(1 / 7)
    assert (latency.size_hw, latency.resized_hw) == ((40, 64), (20, 32))
    assert len(told) == len(predictor.seen) == num_calls(7)
    assert predictor.seen[0] == ([(20, 32)] * 2, [(40, 64)] * 2)
    assert "forward" not in vars(predictor.model)  # timed for the stages alone


def test_stages_are_left_out_where_nothing_tells_them_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = Staged(Clock(monkeypatch))
    monkeypatch.setattr(Staged, "detect", lambda self, resized, *_: [NOTHING] * len(resized))
    assert measure_latency(predictor, (8, 8), repeats=1).stage_ms == {}
    del predictor.model
    assert measure_latency(predictor, (8, 8), repeats=1).stage_ms == {}


def test_a_session_of_onnx_runtime_is_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    predictor = Staged(clock)
    session = SimpleNamespace(run=lambda number: clock.takes(10 * number))
    own = session.run
    predictor.session = session  # type: ignore[attr-defined]
    monkeypatch.setattr(Network, "forward", lambda self, number: session.run(number))
    assert measure_latency(predictor, (8, 8), repeats=1).stage_ms["model"] == 10e3
    assert session.run is own


def test_an_accelerator_is_waited_for_around_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    predictor = Staged(clock)
    predictor.device = torch.device("cuda")  # type: ignore[attr-defined]
    waited: list[float] = []

    def synchronize(device: torch.device) -> None:
        assert device.type == "cuda"
        waited.append(clock.now)
        clock.takes(0.5)  # what the device was still at

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: 5)
    latency = measure_latency(predictor, (8, 8), repeats=1)
    assert latency.stage_ms == {"preprocessing": 1.5e3, "model": 4.5e3, "postprocessing": 2e3}
    assert latency.total_ms.max == 7e3  # whoever times a whole call waits for its boxes only
    assert len(waited) == 2
    assert latency.peak_bytes == 5


@pytest.mark.parametrize("numbers", [{"repeats": 0}, {"batch_size": 0}])
def test_nothing_to_measure(numbers: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DetrKitError, match="expected at least 1"):
        measure_latency(Staged(Clock(monkeypatch)), (8, 8), **numbers)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak of resident memory")
def test_peak_memory_counts_what_was_freed_too() -> None:
    before = memory.settled_bytes()  # or what others left is given back meanwhile
    peak = memory.PeakMemory(None, before)
    least = 64 << 20
    held = np.ones(least, dtype=np.uint8)
    assert held[-1] == 1
    del held
    found = peak.bytes()
    assert found is not None
    assert least - (1 << 20) < found < 2 * least  # Linux counts pages in batches


def test_peak_memory_is_unknown_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    assert memory.resident_bytes() is None
    assert memory.PeakMemory(None, None).bytes() is None


def test_a_device_without_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device) -> int:
        raise RuntimeError("this allocator keeps none")

    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", fails)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", fails)
    assert memory.PeakMemory(torch.device("meta"), 3).bytes() is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latency") / "detector"
    torch.manual_seed(0)
    numbers = resolve(
        ModelConfig(
            name="yolos_small",
            hidden_dim=16,
            num_heads=1,
            feedforward_dim=16,
            depth=1,
            num_queries=4,
            position_size_hw=(32, 32),
        )
    )
    spec = DetectorSpec(numbers, TABLE, PREPROCESSING)
    save_detector(folder, build_model(numbers, len(TABLE)), spec)
    return folder


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


def test_unrest_of_the_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    latency = measure_latency(Staged(Clock(monkeypatch)), (8, 8), repeats=1)
    found = benchmark.BenchmarkReport(machine.describe_machine("cpu", threads=1))
    found.measured.append(("eager", latency))
    assert len(report.lines(found)) == 1
    restless = replace(latency, total_ms=Spread(10.0, 31.0, 9.0, 31.0))
    found.measured.append(("eager", restless))
    assert "3.1 times the median" in report.lines(found)[-1]


@pytest.fixture(scope="module")
def onnx_file(checkpoint: Path) -> Path:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from detr_kit.export.onnx_file import export_onnx
    from detr_kit.inference.detector import Detector

    path = checkpoint.parent / "model.onnx"
    export_onnx(Detector.from_checkpoint(checkpoint, "cpu"), path, mask=False, check=False)
    return path


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


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(pretty_exceptions_enable=False)
    latency_command.register(app)
    return lambda *arguments: CliRunner().invoke(app, [str(part) for part in arguments])


def test_the_command_prints_and_writes_what_it_measured(
    checkpoint: Path, command: Callable[..., Result]
) -> None:
    done = command(
        checkpoint, "--size", "32x16", "--size", "64x64", "--batch-size", 1, "--batch-size", 2,
        "--device", "cpu", "--repeats", 1, "--json", "figures.json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "32x16, which the model sees as 32x16" in done.output
    assert "64x64, which the model sees as 32x32" in done.output
    assert done.output.count("eager") == 4
    written = json.loads(Path("figures.json").read_text())
    assert [row["size_hw"] for row in written["measured"]] == [[32, 16]] * 2 + [[64, 64]] * 2
    for row in written["measured"]:
        rate = row["batch_size"] / row["total_ms"]["median"] * 1e3
        assert row["images_per_second"] == pytest.approx(rate)
    assert written["machine"]["cores"] == machine.num_cores()
    assert written["skipped"] == []


@pytest.mark.parametrize("size", ["480", "480x", "0x3", "480*640", "-1x3"])
def test_a_size_that_is_none(size: str, command: Callable[..., Result]) -> None:
    done = command("model", "--size", size)
    assert isinstance(done.exception, DetrKitError)
    assert str(done.exception).startswith(f"--size {size}: expected HEIGHTxWIDTH")


def test_the_names_of_the_backends_are_those_of_the_command() -> None:
    assert {name.value for name in latency_command.BackendName} == set(get_args(backends.Backend))
