"""Imports point down only; the order of the layers is in pyproject.toml."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [command, "--no-logo", "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": ""},
    )


def test_layers_hold() -> None:
    done = _lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [("errors", "import detr_kit.training"), ("boxes", "from detr_kit import cli")],
)
def test_an_import_that_points_up_is_found(tmp_path: Path, module: str, line: str) -> None:
    shutil.copytree(ROOT / "detr_kit", tmp_path / "detr_kit")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "detr_kit" / f"{module}.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = _lint_imports(tmp_path)
    assert done.returncode != 0
    assert f"detr_kit.{module} -> detr_kit." in done.stdout


def test_a_module_without_a_layer_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "detr_kit", tmp_path / "detr_kit")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "detr_kit" / "utils.py").touch()
    done = _lint_imports(tmp_path)
    assert done.returncode != 0
    assert "utils" in done.stdout
