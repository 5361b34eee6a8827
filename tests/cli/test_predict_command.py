"""`detr-kit predict` on pictures that differ, and on videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

Run = Callable[..., tuple[int, str, str]]


def rows(path: str = "found.json") -> list[dict[str, object]]:
    return json.loads(Path(path).read_text())


def test_what_cannot_be_read_is_told_and_the_rest_is_done(workplace: Path, run: Run) -> None:
    Path("sample/val/bad.jpg").write_text("no picture")
    code, out, err = run(
        "predict", "detector", "sample/val", "--threshold", "0", "--json", "found.json",
        "--out", "drawn",
    )  # fmt: skip
    assert code == 1
    assert err.splitlines() == [
        "detr-kit: sample/val/bad.jpg: cannot read the image: not a picture of a known format",
        "detr-kit: 1 of 3 pictures could not be read",
    ]
    assert "2 pictures, 8 objects: drawn, found.json" in out
    assert len(rows()) == 8
    assert len(list(Path("drawn").iterdir())) == 2


def test_results_have_the_image_ids_of_a_data_set(workplace: Path, run: Run) -> None:
    coco = json.loads(Path("sample/annotations/val.json").read_text())
    for image in coco["images"]:
        image["id"] += 500
    coco["annotations"] = []
    Path("ids.json").write_text(json.dumps(coco))
    code, _, _ = run(
        "predict", "detector", "sample/val", "--threshold", "0", "--json", "found.json",
        "--annotations", "ids.json",
    )  # fmt: skip
    assert code == 0
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    assert {(row["image_id"], row["file_name"]) for row in rows()} == set(names.items())
    code, _, _ = run("score", "found.json", "--annotations", "ids.json")
    assert code == 0


def test_thresholds_of_a_file(workplace: Path, run: Run) -> None:
    categories = json.loads(Path("sample/annotations/val.json").read_text())["categories"]
    names = [category["name"] for category in categories]
    everything = {"threshold": "0", "json": "all.json"}
    run("predict", "detector", "sample/val", *_options(everything))
    found = {row["category_id"] for row in rows("all.json")}
    kept = next(iter(found))
    own = {name: 0.0 if category["id"] == kept else 1.0
           for name, category in zip(names, categories, strict=True)}  # fmt: skip
    Path("least.json").write_text(json.dumps(own))
    code, _, _ = run(
        "predict", "detector", "sample/val", *_options({"thresholds": "least.json"}),
        "--json", "found.json",
    )  # fmt: skip
    assert code == 0
    expected = [row for row in rows("all.json") if row["category_id"] == kept]
    assert rows() == expected
    Path("least.json").write_text('{"unicorn": 0.5}')
    code, _, err = run("predict", "detector", "sample/val", "--thresholds", "least.json")
    assert code == 1
    assert "least.json" in err
    assert "unicorn" in err


def test_large_pictures_in_tiles(workplace: Path, run: Run) -> None:
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (90, 150, 3), dtype=np.uint8)).save("large.png")
    code, _, _ = run(
        "predict", "detector", "large.png", "--tile", "64", "--threshold", "0",
        "--json", "found.json",
    )  # fmt: skip
    assert code == 0
    assert len(rows()) > 4  # more than the model has queries
    code, _, err = run("predict", "detector", "clip.mp4", "--tile", "64", "--out", "drawn")
    assert (code, err) == (1, "detr-kit: --tile: it is for pictures, not for videos\n")


@pytest.fixture
def clip(workplace: Path) -> str:
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    for level in range(6):
        writer.write(np.full((32, 48, 3), 40 * level, dtype=np.uint8))
    writer.release()
    return "clip.avi"


def test_a_video(clip: str, run: Run) -> None:
    code, out, _ = run(
        "predict", "detector", clip, "--out", "drawn", "--json", "found.jsonl",
        "--threshold", "0", "--max-frames", "4",
    )  # fmt: skip
    assert code == 0
    assert "clip.avi: 4 frames, 16 objects" in out
    lines = Path("found.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["detections"]) for line in lines] == [4] * 4
    drawn = cv2.VideoCapture("drawn/clip.mkv")
    assert drawn.get(cv2.CAP_PROP_FPS) == 10


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("clip.avi",), "a video needs --out FOLDER, --json FILE or both"),
        (("clip.avi", "sample/val"), "clip.avi: give videos and pictures to separate commands"),
        (
            ("clip.avi", "b.mp4", "--json", "found.jsonl"),
            "--json found.jsonl: it is one file; give one video at a time",
        ),
        (
            ("clip.avi", "other/clip.mp4", "--out", "drawn"),
            "clip: two videos of this name would be one file; give them one by one",
        ),
        (("sample/val", "--track"), "--track: it is for videos, not for pictures"),
        (
            ("https://a.b/c.jpg",),
            "https://a.b/c.jpg: URLs are not fetched; save what it names to a file first",
        ),
        (
            ("https://a.b/c.mp4", "--out", "drawn"),
            "https://a.b/c.mp4: URLs are not fetched; save what it names to a file first",
        ),
    ],
)
def test_what_does_not_go_together(
    clip: str, run: Run, arguments: tuple[str, ...], line: str
) -> None:
    code, _, err = run("predict", "detector", *arguments)
    assert (code, err) == (1, f"detr-kit: {line}\n")


def _options(values: dict[str, str]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", value)]
