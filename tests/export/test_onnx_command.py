"""`detr-kit export` as a person types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.cli import main
from detr_kit.config import ModelConfig
from detr_kit.data.sample import write_sample
from detr_kit.export import assembly
from detr_kit.export.onnx_detector import OnnxDetector
from detr_kit.models.zoo import resolve
from tests.export.onnx_files import exported_file, small_detector
from tests.export.small_models import MODELS, SMALL, TABLE

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command beside the folder `detector`; return exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    name, settings = MODELS["plain"]
    numbers = resolve(ModelConfig(name=name, **{**SMALL[name], **settings}))
    detector = small_detector("plain")
    spec = DetectorSpec(numbers, TABLE, detector.preprocessing)
    save_detector(tmp_path / "detector", detector.model, spec)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["detr-kit", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the graph of `plain` from its file: tracing it takes seconds."""
    path = exported_file("plain").path
    monkeypatch.setattr(assembly, "core_graph", lambda *_: onnx.load(path))


def test_export_writes_a_file_and_says_how_far_it_is_off(run: Run, quick: None) -> None:
    code, out, _ = run("export", "detector", "out.onnx")
    assert code == 0
    assert "Largest differences from the model" in out
    assert "203 x 157" in out
    assert "inputs: pixels, padding_mask" in out
    assert "outputs: scores, boxes_cxcywh" in out
    assert "written to out.onnx:" in out
    assert "opset 18, fp32" in out
    assert OnnxDetector.from_file("out.onnx").categories == TABLE


def test_export_without_the_check_says_so(run: Run, quick: None) -> None:
    code, out, _ = run("export", "detector", "out.onnx", "--no-check", "--precision", "int8")
    assert code == 0
    assert "not checked" in out
    assert "Largest" not in out
    assert OnnxDetector.from_file("out.onnx").options.precision == "int8"


def test_export_tells_what_precision_costs(run: Run, quick: None, tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", "easy", train=1, val=2)
    annotations = tmp_path / "sample/annotations/val.json"
    content = json.loads(annotations.read_text())
    content["categories"] = [{"id": TABLE.ids[0], "name": TABLE.names[0]}]
    for row in content["annotations"]:
        row["category_id"] = TABLE.ids[0]
    annotations.write_text(json.dumps(content))
    code, out, err = run(
        "export", "detector", "out.onnx", "--precision", "int8",
        "--annotations", str(annotations), "--images", "sample/val",
    )  # fmt: skip
    assert code == 0, err
    assert "the model" in out
    assert "the file, int8" in out


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11 about itself
def test_a_program_of_torch_is_written_by_its_ending(run: Run) -> None:
    code, out, err = run("export", "detector", "out.pt2", "--no-mask", "--no-check")
    assert code == 0, err
    assert "inputs: pixels\n" in out
    program = torch.export.load("out.pt2")
    found = program.module()(torch.zeros(1, 3, 70, 90))
    assert set(found) == {"scores", "boxes_cxcywh"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out.bin",), "out.bin: its name must end in .onnx or .pt2"),
        (("out.onnx", "--format", "torch"), "out.onnx: its name must end in .pt2"),
        (("out.onnx", "--mask", "--preprocess"), "mask and preprocess exclude each other"),
        (("out.onnx", "--images", "here"), "--annotations and --images belong together"),
        (("out.pt2", "--preprocess"), "--preprocess is for ONNX files"),
        (("out.pt2", "--precision", "int8"), "--precision int8 is for ONNX files"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = run("export", "detector", *arguments)
    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert sorted(path.name for path in Path().iterdir()) == ["detector"]


def test_a_file_that_is_exported_already_is_refused(run: Run) -> None:
    code, _, err = run("export", "some.onnx", "out.onnx")
    assert code == 1
    assert "some.onnx: is exported already" in err
