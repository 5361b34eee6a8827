from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.images import read_image
from detr_kit.inference.files import expand_inputs, image_ids_of, output_paths, predict_files


class OneBox:
    """A detector that finds the whole picture, and nothing in black ones."""

    def predict(
        self, images: list[Path], threshold: float = 0.5, batch_size: int = 8
    ) -> list[Detections]:
        found = []
        for image in map(read_image, images):
            rows = [[1, 1, image.shape[1] - 1, image.shape[0] - 1]] if image.any() else []
            size = len(rows)
            found.append(
                Detections(np.array(rows), np.full(size, 0.75), np.full(size, 7), ["cat"] * size)
            )
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in a tree, among files that are none."""
    root = tmp_path / "in"
    for name, color in (
        ("b.png", "white"),
        ("a.JPG", "white"),
        ("deep/er/b.png", "black"),
        (".hidden/c.png", "white"),
        (".d.png", "white"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), color).save(root / name)
    (root / "labels.json").write_text("{}")
    (root / "empty").mkdir()
    return root


def test_folders_are_read_to_their_depth_in_order(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in expand_inputs([folder])]
    assert names == ["a.JPG", "b.png", "deep/er/b.png"]


def test_files_are_taken_as_given_and_once(folder: Path) -> None:
    given = [folder / "labels.json", str(folder / "b.png"), folder]
    names = [path.name for path in expand_inputs(given)]
    assert names == ["labels.json", "b.png", "a.JPG", "b.png"]


def test_inputs_that_lead_to_nothing(folder: Path) -> None:
    with pytest.raises(DetrKitError, match="empty: the folder holds no picture"):
        expand_inputs([folder, folder / "empty"])
    with pytest.raises(DetrKitError, match="gone: no such file or folder"):
        expand_inputs([folder / "gone"])
    with pytest.raises(DetrKitError, match="no pictures given"):
        expand_inputs([])


def test_every_picture_has_its_own_drawing(folder: Path) -> None:
    pictures = expand_inputs([folder, folder / "labels.json"])
    names = [path.as_posix() for path in output_paths(pictures, "out")]
    assert names == ["out/a.JPG", "out/b.png", "out/deep/er/b.png", "out/labels.json.png"]
    with pytest.raises(DetrKitError, match="would replace a picture"):
        output_paths(pictures, folder)


def test_image_ids() -> None:
    assert image_ids_of([Path("b/000000000139.jpg"), Path("7.png")]) == [139, 7]
    assert image_ids_of([Path("a/7.jpg"), Path("b/007.jpg")]) == [1, 2]
    assert image_ids_of([Path("7.jpg"), Path("x.jpg")]) == [1, 2]


def test_drawings_and_results(folder: Path, tmp_path: Path) -> None:
    found = predict_files(
        OneBox(),  # type: ignore[arg-type]
        [folder],
        out=tmp_path / "out",
        json_path=tmp_path / "results.json",
        batch_size=2,
    )
    assert [(path.name, len(detections)) for path, detections in found] == [
        ("a.JPG", 1),
        ("b.png", 1),
        ("b.png", 0),
    ]
    drawn = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    names = [path.relative_to(tmp_path / "out").as_posix() for path in drawn]
    assert names == ["a.JPG", "b.png", "deep/er/b.png"]
    assert (read_image(drawn[1]) != 255).any()  # a box on a white picture
    assert not read_image(drawn[2]).any()
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows == [
        {
            "image_id": image_id,
            "category_id": 7,
            "bbox": [1, 1, 38, 28],
            "score": 0.75,
            "file_name": name,
        }
        for image_id, name in ((1, "a.JPG"), (2, "b.png"))
    ]


def test_a_bad_picture_leaves_no_results_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DetrKitError, match=r"labels\.json"):
        predict_files(
            OneBox(),  # type: ignore[arg-type]
            [folder, folder / "labels.json"],
            json_path=tmp_path / "results.json",
        )
    assert not (tmp_path / "results.json").exists()
