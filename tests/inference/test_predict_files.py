from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.images import ImageError, read_image
from detr_kit.inference.files import drawing_paths, predict_files
from detr_kit.inference.inputs import expand_inputs, image_ids_of
from detr_kit.inference.predictor import Predictor
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeHW, SizeRule


class OneBox(Predictor):
    """A detector that finds the whole picture, and nothing in black ones."""

    def __init__(self) -> None:
        preprocessing = Preprocessing(SizeRule("square", 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        super().__init__(CategoryTable((7,), ("cat",)), preprocessing)

    def detect(
        self, resized: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW], names: list[str]
    ) -> list[Detections]:
        found = []
        for image, (height, width) in zip(resized, original_sizes_hw, strict=True):
            rows = [[1, 1, width - 1, height - 1]] if image.any() else []
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
    names = [path.as_posix() for path in drawing_paths(pictures, "out").values()]
    assert names == ["out/a.JPG", "out/b.png", "out/deep/er/b.png", "out/labels.json.png"]
    with pytest.raises(DetrKitError, match="would replace a picture"):
        drawing_paths(pictures, folder)


def test_image_ids() -> None:
    assert image_ids_of([Path("b/000000000139.jpg"), Path("7.png")]) == [139, 7]
    assert image_ids_of([Path("a/7.jpg"), Path("b/007.jpg")]) == [1, 2]
    assert image_ids_of([Path("7.jpg"), Path("x.jpg")]) == [1, 2]


def test_drawings_and_results(folder: Path, tmp_path: Path) -> None:
    found = predict_files(
        OneBox(),
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
            OneBox(),
            [folder, folder / "labels.json"],
            json_path=tmp_path / "results.json",
        )
    assert not (tmp_path / "results.json").exists()


def test_an_unreadable_picture_may_be_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "c.png").write_text("no picture")
    told: list[ImageError] = []
    found = predict_files(
        OneBox(),
        [folder],
        out=tmp_path / "out",
        json_path=tmp_path / "r.json",
        on_unreadable=told.append,
    )
    assert [path.name for path, _ in found] == ["a.JPG", "b.png", "b.png"]
    assert [error.name for error in told] == [str(folder / "c.png")]
    assert not (tmp_path / "out" / "c.png").exists()
    rows = json.loads((tmp_path / "r.json").read_text())
    # Ids are those of all pictures given, so that they do not depend on which could be read.
    assert [(row["image_id"], row["file_name"]) for row in rows] == [(1, "a.JPG"), (2, "b.png")]


def test_image_ids_of_a_data_set(folder: Path, tmp_path: Path) -> None:
    known = {"b.png": 70, "er/b.png": 8, "a.JPG": 3}
    pictures = expand_inputs([folder])
    assert image_ids_of(pictures, known) == [3, 70, 8]
    predict_files(OneBox(), pictures, json_path=tmp_path / "r.json", known_ids=known)
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [row["image_id"] for row in rows] == [3, 70]
    with pytest.raises(DetrKitError, match=r"a\.JPG: the annotations name no such picture"):
        image_ids_of(pictures, {"b.png": 70})
    with pytest.raises(DetrKitError, match=r"deep/er/b\.png: .* image 70, which .*b\.png is too"):
        image_ids_of(pictures, {"b.png": 70, "a.JPG": 3})


def test_urls_are_refused_by_name() -> None:
    with pytest.raises(DetrKitError, match=r"https://a\.b/c\.jpg: URLs are not fetched"):
        OneBox().predict("https://a.b/c.jpg")
    with pytest.raises(DetrKitError, match="URLs are not fetched"):
        expand_inputs([Path("https://a.b/c.jpg")])


def test_links_go_by_their_own_names(tmp_path: Path) -> None:
    """As in the caches of hubs and of tools that keep versions of data."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "train").mkdir()
    for name in ("9f3a", "77c0"):
        Image.new("RGB", (8, 8), "white").save(tmp_path / "blobs" / name, format="PNG")
    (tmp_path / "train" / "a.png").symlink_to(tmp_path / "blobs" / "9f3a")
    (tmp_path / "train" / "b.png").symlink_to(tmp_path / "blobs" / "77c0")
    pictures = expand_inputs([tmp_path / "train"])
    drawn = drawing_paths(pictures, tmp_path / "out")
    assert [path.name for path in drawn.values()] == ["a.png", "b.png"]
    assert image_ids_of(pictures, {"a.png": 4, "b.png": 9}) == [4, 9]
    with pytest.raises(DetrKitError, match="would replace a picture"):
        drawing_paths(pictures, tmp_path / "train")


def test_two_drawings_are_not_one_file(tmp_path: Path) -> None:
    for name in ("a.ppm", "a.ppm.png"):
        Image.new("RGB", (8, 8), "white").save(tmp_path / name)
    pictures = expand_inputs([tmp_path / "a.ppm", tmp_path / "a.ppm.png"])
    with pytest.raises(DetrKitError, match=r"a\.ppm and .*a\.ppm\.png would be one file"):
        drawing_paths(pictures, "out")


def test_results_tell_pictures_of_several_folders_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), "white").save(tmp_path / name / "1.png")
    predict_files(OneBox(), [tmp_path], json_path=tmp_path / "r.json")
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [row["file_name"] for row in rows] == ["a/1.png", "b/1.png"]


def test_outputs_that_cannot_be_are_told_first(folder: Path, tmp_path: Path) -> None:
    class Untouched(OneBox):
        def detect(self, *inputs: object) -> list[Detections]:
            raise AssertionError("the model was run")

    picture = folder / "b.png"
    before = picture.read_bytes()
    with pytest.raises(DetrKitError, match="it is a file to read"):
        predict_files(Untouched(), [picture], json_path=picture)
    assert picture.read_bytes() == before
    with pytest.raises(DetrKitError, match="it is a folder"):
        predict_files(Untouched(), [picture], json_path=tmp_path)
    with pytest.raises(DetrKitError, match=r"b\.png is no folder"):
        predict_files(Untouched(), [picture], json_path=picture / "r.json")


def test_a_stop_keeps_what_was_found(folder: Path, tmp_path: Path) -> None:
    own = OneBox()
    begun = 0

    def should_stop() -> bool:
        nonlocal begun
        begun += 1
        return begun > 2

    found = predict_files(
        own, [folder], json_path=tmp_path / "r.json", batch_size=1, should_stop=should_stop
    )
    assert [path.name for path, _ in found] == ["a.JPG", "b.png"]
    assert len(json.loads((tmp_path / "r.json").read_text())) == 2
