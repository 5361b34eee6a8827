"""What an installed package promises before any model runs."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import detr_kit
from detr_kit.config import RunConfig
from detr_kit.config_faults import known_keys

ROOT = Path(__file__).resolve().parents[1]
TORCH_FREE = [
    "detr_kit",
    "detr_kit.errors",
    "detr_kit.files",
    "detr_kit.categories",
    "detr_kit.detections",
    "detr_kit.preprocess",
    "detr_kit.config",
    "detr_kit.data.sample",
    "detr_kit.cli",
    "detr_kit.export.onnx_detector",
    "detr_kit.inference.files",
    "detr_kit.inference.video",
]
# Any use of the network ends the process with an error, as on a machine without one.
WITHOUT_NETWORK = """
import socket

def refuse(*args, **kwargs):
    raise SystemExit("reached for the network")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
"""
# What only an extra brings cannot be imported, as after a plain installation.
WITHOUT_EXTRAS = """
import sys

sys.modules.update(dict.fromkeys(
    ["timm", "onnx", "onnxscript", "onnxruntime", "gradio", "norfair", "pandas", "supervision",
     "transformers", "pytest"]
))
"""
# Some parts of what an extra is for may need it when they are imported.
IMPORT_EVERYTHING = """
import importlib, pkgutil, detr_kit

of_extras = ("detr_kit.demo.", "detr_kit.export.")
for module in pkgutil.walk_packages(detr_kit.__path__, "detr_kit."):
    try:
        importlib.import_module(module.name)
    except (ImportError, detr_kit.DetrKitError) as error:
        if not module.name.startswith(of_extras):
            raise
        assert "pip install" in str(error) or error.name.split(".")[0] in sys.modules, error
for name in detr_kit.__all__:
    getattr(detr_kit, name)
"""


def _python(code: str) -> str:
    """Run `code` in a fresh interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", TORCH_FREE)
def test_import_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'torchvision'}} & set(sys.modules)))"
    assert _python(WITHOUT_NETWORK + code).strip() == "[]"


def test_help_needs_no_torch() -> None:
    code = """
import sys
sys.argv = ["detr-kit", "--help"]
from detr_kit.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules)
"""
    lines = _python(WITHOUT_NETWORK + code).splitlines()
    assert lines[-1] == "False"
    assert any("train" in line for line in lines)


def test_everything_imports_without_extras_and_network() -> None:
    _python(WITHOUT_EXTRAS + WITHOUT_NETWORK + IMPORT_EVERYTHING)


def test_public_names() -> None:
    """A change here is a change for users: note it in CHANGELOG.md."""
    assert sorted(detr_kit.__all__) == [
        "CocoMetrics",
        "Detections",
        "Detector",
        "DetrKitError",
        "OnnxDetector",
        "__version__",
        "check",
        "evaluate",
        "evaluate_results",
        "predict_tiled",
        "predict_video",
        "resume",
        "train",
    ]
    assert all(
        getattr(detr_kit, name).__name__ == name for name in detr_kit.__all__ if name[0] != "_"
    )
    with pytest.raises(AttributeError, match="Detectr"):
        detr_kit.Detectr  # noqa: B018


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("train", ["config", "overrides"]),
        ("resume", ["folder"]),
        ("evaluate", ["detector", "annotations", "images"]),
        ("evaluate_results", ["results", "annotations"]),
        ("Detector.from_checkpoint", ["source", "device"]),
        ("Detector.predict", ["self", "images", "threshold"]),
        ("Detections.draw", ["self", "image"]),
        ("Detections.to_coco", ["self", "image_id"]),
        ("Detections.above", ["self", "threshold"]),
    ],
)
def test_public_signatures_begin_as_documented(name: str, parameters: list[str]) -> None:
    function = detr_kit
    for part in name.split("."):
        function = getattr(function, part)
    assert list(inspect.signature(function).parameters)[: len(parameters)] == parameters


def test_one_version() -> None:
    said_by_setup = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()[-1]
    assert said_by_setup == detr_kit.__version__
    assert importlib.metadata.version("detr_kit") == detr_kit.__version__
    assert f"## {detr_kit.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_config_key_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    keys = {part for key in known_keys(RunConfig) for part in key.split(".")} - {"train", "val"}
    assert sorted(key for key in keys if f"{key}`" not in text) == []
