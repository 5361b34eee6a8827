"""Detector.predict of Deformable DETR and RT-DETR against processor and model of transformers.

The pictures have the size that the processors resize to, so that all that is left is arithmetic in
float32; how pictures are resized is compared in `test_parity_preprocessing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DeformableDetrImageProcessor, RTDetrImageProcessor

from detr_kit import Detector
from tests.parity.hf_deformable import random_reference
from tests.parity.hf_models import save_reference
from tests.parity.table import Table

SIDES = {"rt": (128, 128), "de": (128, 160)}
PROCESSORS: dict[str, Any] = {
    "rt": lambda: RTDetrImageProcessor(size={"height": 128, "width": 128}),
    "de": lambda: DeformableDetrImageProcessor(size={"shortest_edge": 128, "longest_edge": 160}),
}
# In float32. Measured are 1e-6 in scores and 2e-4 pixels.
BOUNDS = {"scores": 1e-4, "boxes (pixels)": 0.01, "labels (that differ)": 0}


@pytest.fixture
def pictures(tmp_path: Path) -> Any:
    """Writes three pictures of coarse and fine noise of a size, and returns their paths."""

    def write(size_hw: tuple[int, int]) -> list[Path]:
        generator = np.random.default_rng(0)
        paths = []
        for index in range(3):
            coarse = generator.integers(0, 256, (6, 7, 3), dtype=np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize(size_hw[::-1])).astype(int)
            noisy = np.clip(smooth + generator.integers(-30, 31, smooth.shape), 0, 255)
            paths.append(tmp_path / f"{index}.png")
            Image.fromarray(noisy.astype(np.uint8)).save(paths[-1])
        return paths

    return write


@pytest.mark.parametrize("name", ["deformable_r18", "deformable_r18_two_stage", "rtdetrv2_r18d"])
def test_predictions_agree(name: str, pictures: Any, tmp_path: Path, table: Table) -> None:
    kind = name[:2]
    reference, processor = random_reference(name), PROCESSORS[kind]()
    save_reference(reference, tmp_path / "hf")
    processor.save_pretrained(tmp_path / "hf")
    paths = pictures(SIDES[kind])
    ours = Detector.from_checkpoint(tmp_path / "hf", device="cpu").predict(paths, threshold=0.0)
    inputs = processor(
        images=[Image.open(path).convert("RGB") for path in paths], return_tensors="pt"
    )
    options = {} if kind == "rt" else {"top_k": reference.config.num_queries}
    with torch.no_grad():
        output = reference(pixel_values=inputs["pixel_values"])
    theirs = processor.post_process_object_detection(
        output, threshold=0.0, target_sizes=torch.tensor([SIDES[kind]] * len(paths)), **options
    )
    differences = dict.fromkeys(BOUNDS, 0.0)
    for own, found in zip(ours, theirs, strict=True):
        assert len(own) == len(found["scores"]) == reference.config.num_queries
        scores, boxes = found["scores"].numpy(), found["boxes"].numpy()
        labels = int((own.category_ids != found["labels"].numpy()).sum())
        for what, difference in (
            ("scores", np.abs(own.scores - scores).max()),
            ("boxes (pixels)", np.abs(own.boxes_xyxy - boxes).max()),
            ("labels (that differ)", labels),
        ):
            differences[what] = max(differences[what], float(difference))
        assert own.scores[0] - own.scores[-1] > 0.01
    for what, difference in differences.items():
        table.row(
            f"transformers, {name}, Detector.predict: {what}",
            float32=difference,
            float32_bound=BOUNDS[what],
        )
