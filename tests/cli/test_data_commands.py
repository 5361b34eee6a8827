"""The commands about data, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

TRAIN_JSON = Path("sample/annotations/train.json")


def test_check_of_good_data_ends_with_status_0(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(
        "check", str(TRAIN_JSON), "sample/annotations/val.json",
        "--images", "sample/train", "--images", "sample/val",
        "--html", "report.html", "--json", "found.json",
    )  # fmt: skip
    assert code == 0
    assert "4 images" in out
    assert json.loads(Path("found.json").read_text())["annotations"][0] == str(TRAIN_JSON)
    assert Path("report.html").read_text().startswith("<!DOCTYPE html>")


def test_check_of_bad_data_ends_with_status_1_and_repairs(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    values = json.loads(TRAIN_JSON.read_text())
    values["annotations"][0]["bbox"][2] = 0
    TRAIN_JSON.write_text(json.dumps(values))
    code, out, _ = run("check", str(TRAIN_JSON), "--images", "sample/train", "--fix", "fixed.json")
    assert code == 1
    assert "no_width_or_height" in out
    assert f"annotation {values['annotations'][0]['id']}" in out
    assert Path("fixed.log.txt").exists()
    code, _, _ = run("check", "fixed.json", "--images", "sample/train")
    assert code == 0
    # What was wrong is what training says, before its first step.
    code, _, err = run("train", "run.yaml", "output=new")
    assert code == 1
    assert "has no width or no height" in err


def test_show_batch_draws_a_picture(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("show-batch", "run.yaml", "batch_size=3", "--out", "batch.png")
    assert code == 0
    assert "batch 3 x 3 x 32 x 32" in out
    with Image.open("batch.png") as picture:
        assert picture.width > 64


def test_unreadable_pictures_are_skipped_counted_and_shown(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    Path("sample/train/000002.jpg").write_bytes(b"")
    Path("sample/val/000001.jpg").unlink()
    code, out, err = run("train", "run.yaml", "output=new", "data.on_bad_image=skip")
    assert code == 0
    assert "in the place of 1 unreadable picture: sample/train/000002.jpg" in out
    [row] = [json.loads(line) for line in Path("new/metrics.jsonl").read_text().splitlines()]
    assert row["skipped_images"] == 1
    assert "detr-kit: warning: pictures that could not be read count as without detections" in err
    assert "sample/val/000001.jpg: no such image file" in err
    arguments = ("eval", "new", "--annotations", "sample/annotations/val.json", "--images")
    code, _, err = run(*arguments, "sample/val")
    assert code == 1
    assert "000001.jpg: no such image file (on_bad_image=skip goes on without it)" in err
    code, _, _ = run(*arguments, "sample/val", "--on-bad-image", "skip")
    assert code == 0


def test_repeated_pictures_are_told_of(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("train", "run.yaml", "output=new", "data.repeat_threshold=1")
    assert code == 0
    assert "pictures an epoch, as those of rare categories come up to" in out


def test_labels_go_to_yolo_and_back(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, _, _ = run(
        "export-labels", str(TRAIN_JSON), "yolo", "--format", "yolo", "--images", "sample/train"
    )
    assert code == 0
    code, _, _ = run("import", "yolo", "back.json")
    assert code == 0
    before, after = (json.loads(path.read_text()) for path in (TRAIN_JSON, Path("back.json")))
    assert len(before["annotations"]) == len(after["annotations"])
    code, _, _ = run("split", "back.json", "a.json=0.5", "b.json=0.5")
    assert code == 0
    code, _, _ = run("merge", "a.json", "b.json", "--out", "c.json")
    assert code == 0
    assert len(json.loads(Path("c.json").read_text())["images"]) == 4
    name = before["categories"][0]["name"]
    code, _, _ = run("subset", "c.json", "d.json", "--classes", name)
    assert code == 0
