"""Files of weights from anywhere: what they hold is read, and nothing of it is run."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detr_kit.checkpoints.reading import CheckpointContent, read_checkpoint, read_tensors
from detr_kit.errors import DetrKitError

pytestmark = pytest.mark.usefixtures("no_network")

WEIGHTS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.count": torch.tensor(3),
    "b": torch.tensor([1.5, -2.5], dtype=torch.float16),
}
# What the official training scripts keep beside the weights.
TRAINING = {
    "model": WEIGHTS,
    "optimizer": {
        "state": {0: {"step": 7, "exp_avg": torch.ones(2, 3)}},
        "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}],
    },
    "lr_scheduler": {"step_size": 200, "last_epoch": 7, "_last_lr": [1e-4]},
    "epoch": 7,
    "args": argparse.Namespace(nheads=4, dilation=False, masks=None, init_pe_size=[512, 864]),
}


def written(path: Path, content: Any, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def refusal(path: Path, read: Callable[[Path], Any] = read_checkpoint) -> str:
    """Return the one line that says why a file is not read."""
    with pytest.raises(DetrKitError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("content", [WEIGHTS, {"model": WEIGHTS}, {"state_dict": WEIGHTS}])
def test_weights_at_the_top_or_nested(
    tmp_path: Path, content: Any, legacy: bool, assert_same: Callable[..., None]
) -> None:
    found = read_checkpoint(written(tmp_path / "w.pth", content, legacy=legacy))
    assert_same(found.tensors, WEIGHTS)
    assert found.args == {}


@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints_give_weights_and_settings(
    tmp_path: Path, legacy: bool, assert_same: Callable[..., None]
) -> None:
    found = read_checkpoint(written(tmp_path / "w.pth", TRAINING, legacy=legacy))
    assert_same(found.tensors, WEIGHTS)
    assert found.args == vars(TRAINING["args"])


@pytest.mark.parametrize("args", [{"nheads": 4}, [4], None, torch.zeros(1), "nheads"])
def test_settings_of_other_kinds_are_used_or_left(tmp_path: Path, args: Any) -> None:
    found = read_checkpoint(written(tmp_path / "w.pth", {"model": WEIGHTS, "args": args}))
    assert found.args == (args if isinstance(args, dict) else {})


def test_safetensors(tmp_path: Path, assert_same: Callable[..., None]) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert_same(read_tensors(tmp_path / "w.safetensors"), WEIGHTS)


class Asks:
    """Asks, when it is unpickled, to run a command that leaves a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.trace}'",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["model", "args", "extra"])
def test_a_file_that_asks_to_run_code_is_not_run(tmp_path: Path, place: str, legacy: bool) -> None:
    trace = tmp_path / "trace"
    content = {"model": WEIGHTS, place: Asks(trace)}
    if place == "model":
        content = {"model": {**WEIGHTS, "x": Asks(trace)}}
    told = refusal(written(tmp_path / "w.pth", content, legacy=legacy))
    assert told.startswith("not loaded: ")
    assert "run code" in told
    if not legacy:
        assert f"({os.system.__module__}.system)" in told
    assert not trace.exists()
    # The same file would have: the check above can fail.
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert trace.exists()


def test_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.pth"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"model": Asks(trace)}, protocol=protocol))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert refusal(path)
        assert told == []  # torch has something to say of protocols, too
        assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.float64(0.5), "numpy"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (Path("runs"), "pathlib"),
    ],
)
def test_what_is_no_tensor_is_named(tmp_path: Path, value: Any, named: str) -> None:
    told = refusal(written(tmp_path / "w.pth", {"model": WEIGHTS, "best": value}))
    assert named in told


def test_names_that_would_break_the_line_are_escaped(tmp_path: Path) -> None:
    path = written(tmp_path / "w.pth", {"model": WEIGHTS, "best": Path("x")})
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as changed:
        for name, part in parts.items():
            changed.writestr(name, part.replace(b"pathlib\n", b"path\x1bib\n"))
    assert "path\\x1bib" in refusal(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_torch_file_is_one_line(tmp_path: Path, legacy: bool) -> None:
    whole = written(tmp_path / "w.pth", TRAINING, legacy=legacy).read_bytes()
    path = tmp_path / "cut.pth"
    step = 1 if legacy else 7  # a zip's end is missing wherever it is cut
    for length in [*range(0, len(whole), step), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert refusal(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_torch_file_is_read_or_one_line(tmp_path: Path, legacy: bool) -> None:
    whole = written(tmp_path / "w.pth", TRAINING, legacy=legacy).read_bytes()
    path = tmp_path / "damaged.pth"
    draw = random.Random(0)
    refusals = []
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(read_checkpoint(path), CheckpointContent)
        except DetrKitError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not [line for line in refusals if "\n" in line]


def test_a_truncated_safetensors_file_is_one_line(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "not a readable safetensors file" in refusal(path)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b'{"model": {}}',
        b"<!DOCTYPE html>\n<html>",  # an error page that was saved as the file
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        bytes(1000),
    ],
)
def test_what_is_no_file_of_weights_is_one_line(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = (tmp_path / "w").with_suffix(suffix)
    path.write_bytes(content)
    assert refusal(path, read_tensors)


@pytest.mark.parametrize("names", [("a.txt",), ("w/constants.pkl", "w/data.pkl", "w/version")])
def test_other_zip_files_are_one_line(tmp_path: Path, names: tuple[str, ...]) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:  # the second is a TorchScript's
        for name in names:
            archive.writestr(name, "3\n")
    assert refusal(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        torch.zeros(2),
        {"model": {}},
        {"model": {"a": 1}},
        {"model": {"a": torch.zeros(1), "epoch": 3}},
        {"epoch": 3},
        {0: torch.zeros(1)},
        {"model": {("a", "b"): torch.zeros(1)}},
        {"a\nb": torch.zeros(1)},
    ],
)
def test_contents_that_are_not_tensors_by_name(tmp_path: Path, content: Any) -> None:
    assert "expected tensors by name" in refusal(written(tmp_path / "w.pth", content))


def test_safetensors_without_tensors_or_with_strange_names(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for content in ({}, {"a\x1b[31m": torch.zeros(1)}):
        save_file(content, path)
        assert "expected tensors by name" in refusal(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.pth", tmp_path):
        assert refusal(path) == "no such weights file"
