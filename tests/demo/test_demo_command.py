"""The command, and the signals that end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("gradio")

from detr_kit.cli import demo
from detr_kit.demo import server
from detr_kit.errors import DetrKitError
from detr_kit.export import opening
from tests.conftest import REPOSITORY
from tests.demo.known_objects import Knowing

SERVED = """
from tests.demo.known_objects import Knowing
from detr_kit.demo.server import serve
serve(Knowing(), title="runs/best")
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command would open and serve."""
    asked: dict[str, Any] = {}

    def open_predictor(source: str, device: str | None = None) -> Knowing:
        asked.update(source=source, device=device)
        return Knowing()

    monkeypatch.setattr(opening, "open_predictor", open_predictor)
    monkeypatch.setattr(server, "serve", lambda predictor, **options: asked.update(options))
    return asked


def run(*arguments: str) -> None:
    app = typer.Typer()
    demo.register(app)
    result = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_a_checkpoint_is_served_on_this_machine_only(asked: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tmp_path / "runs" / "best"
    checkpoint.mkdir(parents=True)
    run(str(checkpoint))
    assert asked["source"] == str(checkpoint)
    assert asked["host"] == "127.0.0.1"
    assert asked["port"] is None
    assert asked["examples"] == []
    assert asked["limits"].file_bytes == 20 * 2**20
    assert asked["limits"].pixels == 50_000_000


def test_the_title_is_the_end_of_the_path_or_the_hub_s_name(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "runs" / "best"
    checkpoint.mkdir(parents=True)
    for source, title in (
        (str(checkpoint), "runs/best"),
        ("hustvl/yolos-tiny", "hustvl/yolos-tiny"),
    ):
        run(source)
        assert asked["title"] == title


def test_options_reach_the_page(asked: dict[str, Any], picture: Path) -> None:
    options = {
        "--examples": str(picture.parent),
        "--host": "0.0.0.0",
        "--port": "8000",
        "--threshold": "0.3",
        "--max-file-mb": "5",
        "--max-megapixels": "12",
        "--device": "cuda:1",
    }
    run("any/name", *(text for option in options.items() for text in option))
    assert asked["examples"] == [picture]
    assert (asked["host"], asked["port"], asked["threshold"]) == ("0.0.0.0", 8000, 0.3)
    assert (asked["limits"].file_bytes, asked["limits"].pixels) == (5 * 2**20, 12_000_000)
    assert asked["device"] == "cuda:1"


def test_more_pixels_than_pillow_decodes_are_refused_before_a_model_is_opened(
    asked: dict[str, Any],
) -> None:
    run("any/name", "--max-megapixels", "89")
    asked.clear()
    with pytest.raises(DetrKitError, match=r"pixels must be at most 89,478,485"):
        run("any/name", "--max-megapixels", "90")
    assert asked == {}


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_stops_it_and_it_says_so(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert "runs/best: http://127.0.0.1:" in process.stdout.readline()
    assert len(list(tmp_path.glob("detr-kit-demo-*"))) == 1
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (0, "stopped\n", "")
    assert not list(tmp_path.glob("detr-kit-demo-*"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
