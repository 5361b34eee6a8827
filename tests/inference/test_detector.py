from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.inference import Detector
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.structures import ImageBatch, ModelOutput

TABLE = CategoryTable((2, 5, 90), ("cat", "unused_5", "dog"), (True, False, True))
PREPROCESSING = Preprocessing(SizeRule("detr", 16, 40), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class RedIsCat(nn.Module):
    """One query: `cat` with the mean red, `dog` with the mean blue of the unpadded picture."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.batches: list[ImageBatch] = []

    def forward(self, batch: ImageBatch, all_layers: bool | None = None) -> ModelOutput:
        self.batches.append(batch)
        means = torch.stack(
            [
                image[:, :height, :width].mean(dim=(1, 2))
                for image, (height, width) in zip(batch.pixels, batch.sizes_hw, strict=True)
            ]
        )
        logits = torch.full((len(means), 1, 4), 9.0)
        logits[:, 0] = torch.stack(
            [means[:, 0], means[:, 1] - 50, means[:, 2], means[:, 2] * 0], dim=1
        ) * (8 * self.one)
        boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(1, len(means), 1, 4)
        return ModelOutput(logits[None], boxes)


def detector() -> Detector:
    return Detector(RedIsCat(), TABLE, PREPROCESSING, device="cpu")


def picture(color: str, size_wh: tuple[int, int] = (30, 20)) -> Image.Image:
    return Image.new("RGB", size_wh, color)


def test_every_kind_of_picture_gives_the_same(tmp_path: Path) -> None:
    red = picture("red")
    red.save(tmp_path / "red.png")
    path = tmp_path / "red.png"
    found = detector().predict([path, str(path), red, np.asarray(red)])
    assert [one.names for one in found] == [["cat"]] * 4
    assert [one.category_ids.tolist() for one in found] == [[2]] * 4
    assert [one.boxes_xyxy.tolist() for one in found] == [[[0, 0, 30, 20]]] * 4
    assert len({float(one.scores[0]) for one in found}) == 1
    for single in (path, str(path), red, np.asarray(red)):
        (alone,) = detector().predict(single)
        assert alone.names == ["cat"]


def test_order_batches_and_sizes() -> None:
    own = detector()
    pictures = [picture("red", (30, 20)), picture("blue", (20, 31)), picture("red", (90, 20))]
    found = own.predict(pictures, batch_size=2)
    assert [one.names for one in found] == [["cat"], ["dog"], ["cat"]]
    assert [one.boxes_xyxy[0, 2:].tolist() for one in found] == [[30, 20], [20, 31], [90, 20]]
    seen = [batch.sizes_hw for batch in own.model.batches]  # type: ignore[union-attr]
    assert seen == [((16, 24),), ((24, 16),), ((9, 40),)]  # none is padded
    (again,) = own.predict(pictures[1])
    assert (again.scores == found[1].scores).all()


def test_threshold() -> None:
    own = detector()
    assert len(own.predict(picture("black"))[0]) == 0
    assert len(own.predict(picture("black"), threshold=0)[0]) == 1
    assert own.predict([]) == []


def test_bad_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DetrKitError, match=r"text\.png"):
        detector().predict([picture("red"), tmp_path / "text.png"])
    with pytest.raises(DetrKitError, match=r"gone\.png"):
        detector().predict(str(tmp_path / "gone.png"))
    with pytest.raises(DetrKitError, match="batch_size"):
        detector().predict([], batch_size=0)


def test_output_that_is_not_finite_names_the_picture(tmp_path: Path) -> None:
    picture("red").save(tmp_path / "red.png")
    broken = detector()
    nn.init.constant_(broken.model.one, torch.nan)  # type: ignore[arg-type]
    with pytest.raises(
        DetrKitError, match=r"not finite for image .*red\.png, number 1 of the list"
    ):
        broken.predict([tmp_path / "red.png", picture("red")])


def small_yolos() -> tuple[nn.Module, dict[str, Any]]:
    """Return the same random model every time, and its numbers."""
    torch.manual_seed(0)
    numbers = resolve(
        ModelConfig(
            name="yolos_small",
            depth=2,
            hidden_dim=24,
            num_heads=2,
            feedforward_dim=32,
            num_queries=4,
            position_size_hw=(32, 32),
        )
    )
    return build_model(numbers, num_classes=len(TABLE)), numbers


def saved_yolos(folder: Path) -> nn.Module:
    model, numbers = small_yolos()
    save_detector(folder, model, DetectorSpec(numbers, TABLE, PREPROCESSING))
    return model


def test_a_checkpoint_predicts_as_what_was_saved(tmp_path: Path) -> None:
    model = saved_yolos(tmp_path / "run" / "best")
    expected = Detector(model, TABLE, PREPROCESSING, device="cpu").predict(
        picture("red", (48, 33)), threshold=0
    )
    assert len(expected[0]) == 4
    for path in (tmp_path / "run", str(tmp_path / "run" / "best")):
        loaded = Detector.from_checkpoint(path, device="cpu")
        assert loaded.categories == TABLE
        assert loaded.preprocessing == PREPROCESSING
        assert loaded.device == torch.device("cpu")
        (found,) = loaded.predict(picture("red", (48, 33)), threshold=0)
        assert (found.boxes_xyxy == expected[0].boxes_xyxy).all()
        assert (found.scores == expected[0].scores).all()
        assert set(found.names) <= {"cat", "dog"}


def test_what_is_no_checkpoint_is_told_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(DetrKitError, match=r"expected a folder with detector\.json"):
        Detector.from_checkpoint(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(DetrKitError, match=r"weights\.pth: not a readable weights file"):
        Detector.from_checkpoint(tmp_path / "weights.pth")
    with pytest.raises(DetrKitError, match=r"gone: does not exist; expected"):
        Detector.from_checkpoint(tmp_path / "gone")


def test_half_precision_is_that_of_the_model_not_of_the_answer() -> None:
    model, _ = small_yolos()
    image = np.random.default_rng(0).integers(0, 255, (48, 33, 3), dtype=np.uint8)
    (full,) = Detector(model, TABLE, PREPROCESSING, "cpu").predict(image, threshold=0)
    half = Detector(model, TABLE, PREPROCESSING, "cpu", precision="bf16")
    (rounded,) = half.predict(image, threshold=0)
    assert rounded.scores.dtype == np.float32
    assert 0 < np.abs(np.sort(full.scores) - np.sort(rounded.scores)).max() < 0.02
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    with pytest.raises(DetrKitError, match="precision 'int4': one of fp32, bf16, fp16"):
        Detector(model, TABLE, PREPROCESSING, precision="int4")  # type: ignore[arg-type]


def test_threads_get_what_each_would_get_alone() -> None:
    own = detector()
    generator = np.random.default_rng(0)
    sizes = [(20, 30), (31, 20), (20, 90), (16, 16)] * 6
    pictures = [generator.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    alone = [own.predict(picture, threshold=0)[0] for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: own.predict(picture, threshold=0)[0], pictures))
    for one, other in zip(alone, together, strict=True):
        assert (one.scores == other.scores).all()
        assert (one.boxes_xyxy == other.boxes_xyxy).all()


def test_tensors_are_pictures_too() -> None:
    own = detector()
    (expected,) = own.predict(picture("red"), threshold=0)
    pixels = torch.from_numpy(np.asarray(picture("red")).copy()).permute(2, 0, 1)
    for tensor in (pixels, pixels / 255.0):
        (found,) = own.predict(tensor, threshold=0)
        assert (found.scores == expected.scores).all()
    assert len(own.predict(torch.stack([pixels] * 3))) == 3
    with pytest.raises(DetrKitError, match=r"floats must be in \[0, 1\]"):
        own.predict(pixels.float())
    with pytest.raises(DetrKitError, match=r"must be \(1, H, W\) or \(3, H, W\)"):
        own.predict(pixels.permute(1, 2, 0))


def test_warming_up_runs_the_model_for_each_size() -> None:
    own = detector()
    own.warm_up([(20, 30), (40, 40)], batch_size=2)
    seen = [batch.sizes_hw for batch in own.model.batches]  # type: ignore[union-attr]
    assert seen == [((16, 24),) * 2, ((16, 16),) * 2]
