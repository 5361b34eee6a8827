"""The generated sample data."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.data import sample
from detr_kit.data.sample import PRESETS, draw_picture, write_sample
from detr_kit.errors import DetrKitError


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_same_seed_gives_the_same_bytes(tmp_path: Path, preset: str) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        write_sample(tmp_path / name, preset, seed=seed, train=4, val=3)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")
    one, other = _contents(tmp_path / "one"), _contents(tmp_path / "other")
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_pictures_depend_on_their_place_only(tmp_path: Path) -> None:
    write_sample(tmp_path / "small", train=2, val=1)
    write_sample(tmp_path / "large", train=5, val=2)
    small, large = _contents(tmp_path / "small"), _contents(tmp_path / "large")
    pictures = [name for name in small if name.endswith(".jpg")]
    assert len(pictures) == 3
    assert all(small[name] == large[name] for name in pictures)
    assert large["train/000001.jpg"] != large["val/000001.jpg"]


@pytest.mark.parametrize("preset", PRESETS)
def test_files_are_a_coco_data_set(tmp_path: Path, preset: str) -> None:
    report = write_sample(tmp_path / "out", preset, train=20, val=5)
    wanted = PRESETS[preset]
    assert report.images == {"train": 20, "val": 5}
    for split, count in report.images.items():
        content = json.loads((tmp_path / "out/annotations" / f"{split}.json").read_text())
        ids = [category["id"] for category in content["categories"]]
        assert [category["name"] for category in content["categories"]] == [*wanted.categories]
        assert ids != list(range(1, len(ids) + 1))
        assert len(content["images"]) == count
        for image in content["images"]:
            pixels = cv2.imread(str(tmp_path / "out" / split / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3)
            assert pixels.shape == (wanted.side, wanted.side, 3)
        annotations = content["annotations"]
        assert len(annotations) == report.objects[split] > 0
        assert len({one["id"] for one in annotations}) == len(annotations)
        for one in annotations:
            x, y, width, height = one["bbox"]
            assert x >= 0
            assert y >= 0
            assert width > 0
            assert height > 0
            assert x + width <= wanted.side
            assert y + height <= wanted.side
            assert 0 < one["area"] <= width * height
            assert one["iscrowd"] == 0
            assert one["category_id"] in ids


def test_easy_is_as_promised() -> None:
    preset = PRESETS["easy"]
    counts, extents, overlaps = [], [], []
    for index in range(300):
        boxes = [drawn.box_xywh for drawn in draw_picture(preset, 0, "train", index).objects]
        counts.append(len(boxes))
        extents += [max(width, height) / preset.side for _, _, width, height in boxes]
        for i, (x, y, width, height) in enumerate(boxes):
            for other_x, other_y, other_width, other_height in boxes[:i]:
                overlap_w = min(x + width, other_x + other_width) - max(x, other_x)
                overlap_h = min(y + height, other_y + other_height) - max(y, other_y)
                overlaps.append(
                    max(overlap_w, 0)
                    * max(overlap_h, 0)
                    / min(width * height, other_width * other_height)
                )
    assert set(counts) == {0, 1, 2, 3}
    assert 1 <= counts.count(0) <= 20
    # a pixel at each side goes to the antialiased edge or comes from it
    assert min(extents) >= 0.2 - 2 / preset.side
    assert max(extents) <= 0.6 + 2 / preset.side
    assert max(overlaps) <= preset.max_overlap


def test_hard_has_many_sizes_and_crowded_pictures() -> None:
    preset = PRESETS["hard"]
    pictures = [draw_picture(preset, 0, "val", index) for index in range(120)]
    counts = [len(picture.objects) for picture in pictures]
    extents = [
        max(drawn.box_xywh[2:]) / preset.side for picture in pictures for drawn in picture.objects
    ]
    assert min(counts) == 0
    assert max(counts) >= 8
    assert min(extents) < 0.08
    assert max(extents) > 0.7
    assert {drawn.category for picture in pictures for drawn in picture.objects} == set(range(8))


@settings(max_examples=25, deadline=None)
@given(index=st.integers(0, 10_000), preset=st.sampled_from(sorted(PRESETS)))
def test_boxes_are_tight(index: int, preset: str) -> None:
    """Each border row and column of a box is painted; outside the boxes, only faint rims are."""
    picture = draw_picture(PRESETS[preset], 1, "train", index)
    ground = _only_ground(preset, index)
    painted = np.abs(picture.pixels.astype(int) - ground.astype(int)).max(axis=2) > 0
    boxes = np.zeros_like(painted)
    rim = 3
    for drawn in picture.objects:
        x, y, width, height = drawn.box_xywh
        inside = painted[y : y + height, x : x + width]
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
        boxes[max(y - rim, 0) : y + height + rim, max(x - rim, 0) : x + width + rim] = True
    assert not (painted & ~boxes).any()


def _only_ground(preset: str, index: int) -> np.ndarray:
    """The same picture without its objects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "_paint", lambda *_: None)
        return draw_picture(PRESETS[preset], 1, "train", index).pixels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "medium"}, "medium.*easy, hard"),
        ({"train": 0}, "train=0"),
        ({"val": -1}, "val=-1"),
        ({"val": 2.5}, r"val=2\.5"),
        ({"seed": -1}, "seed=-1"),
        ({"train": True}, "train=True"),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(DetrKitError, match=message):
        write_sample(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DetrKitError, match="not empty"):
        write_sample(tmp_path, train=1, val=1)
    with pytest.raises(DetrKitError, match="is a file"):
        write_sample(tmp_path / "mine.txt", train=1, val=1)
    with pytest.raises(DetrKitError, match="cannot write"):
        write_sample(tmp_path / "mine.txt" / "deeper", train=1, val=1)
    assert _contents(tmp_path) == {"mine.txt": b"precious"}


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_sample(tmp_path / "out", train=1, val=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "annotations",
        "train",
        "val",
    ]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample.json, "dumps", stop)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "out", train=1, val=1)
    assert list(tmp_path.iterdir()) == []
