from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner, Result

from detr_kit.categories import CategoryTable
from detr_kit.cli import latency as latency_command
from detr_kit.errors import DetrKitError
from detr_kit.latency import backends, machine

TABLE = CategoryTable((3,), ("cat",))


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
