"""A batch drawn as the model receives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_kit.config import RunConfig, parse_config
from detr_kit.data.sample import write_sample
from detr_kit.errors import DetrKitError
from detr_kit.visualization.batch import show_batch


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    write_sample(tmp_path / "sample", "easy", train=5, val=2)

    def split(name: str) -> dict[str, str]:
        folder = tmp_path / "sample"
        return {
            "annotations": str(folder / "annotations" / f"{name}.json"),
            "images": str(folder / name),
        }

    values: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 2,
        "model": {"name": "any"},
        "data": {"augmentation": "small_data", "train": split("train"), "val": split("val")},
        "image_size": {"rule": "detr", "short_side": 128, "train_short_sides": [96, 128]},
    }
    return parse_config(values, "test")


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_pictures_are_those_of_the_run(config: RunConfig, tmp_path: Path) -> None:
    """Without augmentation and boxes, the sheet holds the very pixels of the file."""
    data = config.data.model_copy(update={"augmentation": "none"})
    labels = Path(data.val.annotations)  # type: ignore[union-attr]
    text = labels.read_text()
    labels.write_text(
        text[: text.index('"annotations":[')]
        + '"annotations":[],'
        + text[text.index('"categories"') :]
    )
    lines = show_batch(
        config.model_copy(update={"data": data}), tmp_path / "out.png", split="val", batch=1
    )
    assert lines[1] == "0 objects in 2 pictures"
    sheet = drawn(tmp_path / "out.png")
    with Image.open(tmp_path / "sample" / "val" / "000001.jpg") as picture:
        expected = np.asarray(picture).astype(int)
    # 8 of margin, 18 of caption; normalising and back is off by rounding alone.
    assert np.abs(sheet[26 : 26 + 128, 8 : 8 + 128] - expected).max() <= 1


def test_epochs_and_batches_differ_and_repeat(config: RunConfig, tmp_path: Path) -> None:
    def draw(**choice: int) -> bytes:
        show_batch(config, tmp_path / "out.png", **choice)
        return drawn(tmp_path / "out.png").tobytes()

    first = draw()
    assert draw(epoch=1, batch=1) == first
    assert draw(epoch=2) != first
    assert draw(batch=2) != first


def test_the_lines_say_what_is_in_the_batch(config: RunConfig, tmp_path: Path) -> None:
    lines = show_batch(config, tmp_path / "out.jpg", epoch=2)
    assert lines[0].startswith("batch 2 x 3 x ")
    assert lines[0].endswith("of it padding")
    assert lines[1].endswith("objects in 2 pictures")


def test_unreadable_pictures_are_named(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "sample" / "train" / "000002.jpg").write_bytes(b"")
    data = config.data.model_copy(update={"on_bad_image": "skip"})
    lenient = config.model_copy(update={"data": data})
    lines = [
        line for batch in (1, 2, 3) for line in show_batch(lenient, tmp_path / "o.png", batch=batch)
    ]
    assert sum("000002.jpg: cannot read" in line for line in lines) >= 1


@pytest.mark.parametrize(
    ("choice", "out", "message"),
    [
        ({"batch": 4}, "out.png", "an epoch has 3 batches, there is no number 4"),
        ({}, "out.txt", r"out\.txt: not the name of a picture file"),
        ({"split": "val", "batch": 2}, "out.png", "an epoch has 1 batches"),
    ],
)
def test_mistakes(
    config: RunConfig, tmp_path: Path, choice: dict[str, Any], out: str, message: str
) -> None:
    with pytest.raises(DetrKitError, match=message):
        show_batch(config, tmp_path / out, **choice)
    assert not (tmp_path / out).exists()


def test_a_split_that_is_missing_is_named(config: RunConfig, tmp_path: Path) -> None:
    data = config.data.model_copy(update={"val": None})
    with pytest.raises(DetrKitError, match=r"key 'data\.val' is missing"):
        show_batch(config.model_copy(update={"data": data}), tmp_path / "out.png", split="val")
