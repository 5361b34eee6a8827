from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.inference.predictor import Predictor
from detr_kit.latency import benchmark, machine, measuring, memory, report
from detr_kit.latency.measuring import Spread, measure_latency, num_calls
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


def test_unrest_of_the_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    latency = measure_latency(Staged(Clock(monkeypatch)), (8, 8), repeats=1)
    found = benchmark.BenchmarkReport(machine.describe_machine("cpu", threads=1))
    found.measured.append(("eager", latency))
    assert len(report.lines(found)) == 1
    restless = replace(latency, total_ms=Spread(10.0, 31.0, 9.0, 31.0))
    found.measured.append(("eager", restless))
    assert "3.1 times the median" in report.lines(found)[-1]


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
