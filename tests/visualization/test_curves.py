"""Curves of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_kit.errors import DetrKitError
from detr_kit.visualization.curves import draw_curves


def row(epoch: int, loss: float, ap: float | None) -> dict:
    train = {"class": loss, "l1": loss / 2, "giou": loss / 3}
    val = {"ap": ap, "ap50": ap, "ap75": ap}
    return {"epoch": epoch, "train": train, "val": val}


def test_another_run_gives_another_picture(tmp_path: Path) -> None:
    drawn = []
    for name, rows in (
        ("one", [row(1, 2.0, 0.1)]),
        ("two", [row(1, 2.0, 0.1), row(2, 1.0, 0.4)]),
        ("unscored", [{"epoch": 1, "train": {"class": 1.0, "l1": None}}, row(2, 0.5, None)]),
    ):
        draw_curves(rows, tmp_path / f"{name}.png")
        drawn.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    assert all(picture.shape == drawn[0].shape for picture in drawn)
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one.png",
        "two.png",
        "unscored.png",
    ]


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(DetrKitError, match="no finished epoch"):
        draw_curves([], tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []
