"""Exports of several splits into one folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from detr_kit.data.conversions import exporting
from detr_kit.data.conversions.formats import LabelFormat, export_labels, import_labels
from detr_kit.errors import DetrKitError
from tests.data.conversions.label_files import NAMES, file_names, picture, text

FORMATS: tuple[LabelFormat, ...] = ("yolo", "voc")


def coco_file(folder: Path, split: str, name: str, names: tuple[str, ...] = NAMES) -> Path:
    """A json of one picture, which is in `pictures/`, with one object."""
    picture(folder / "pictures" / name)
    content = {
        "images": [{"id": 1, "file_name": name, "width": 40, "height": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [10, 4, 20, 8]}],
        "categories": [{"id": id_, "name": name} for id_, name in enumerate(names, 1)],
    }
    path = folder / f"{split}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return coco_file(tmp_path, "train", "sub/a.png")


@pytest.fixture
def val(tmp_path: Path) -> Path:
    return coco_file(tmp_path, "val", "b.png")


def export(source: Path, out: Path, label_format: LabelFormat, split: str, **more: Any) -> None:
    images = source.parent / "pictures"
    export_labels(source, out, label_format, images=images, split=split, **more)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestBothFormats:
    @pytest.mark.parametrize("copy", [False, True])
    @pytest.mark.parametrize("label_format", FORMATS)
    def test_splits_of_one_folder_are_read_one_by_one(
        self, tmp_path: Path, train: Path, val: Path, label_format: LabelFormat, copy: bool
    ) -> None:
        out = tmp_path / "out"
        export(train, out, label_format, "train", copy=copy)
        before = files(out)
        export(val, out, label_format, "val", copy=copy)
        assert before.keys() < files(out).keys()
        for split, wanted in (("train", "sub/a.png"), ("val", "b.png")):
            report = import_labels(out, tmp_path / "back.json", split=split)
            assert (report.num_images, report.num_objects) == (1, 1)
            assert file_names(tmp_path / "back.json") == [wanted]
        links = [path for path in out.rglob("*.png") if path.is_symlink()]
        assert len(links) == (0 if copy else 2)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []

    @pytest.mark.parametrize("label_format", FORMATS)
    def test_other_classes_and_splits_that_are_there_are_refused(
        self, tmp_path: Path, train: Path, val: Path, label_format: LabelFormat
    ) -> None:
        out = tmp_path / "out"
        export(train, out, label_format, "train")
        before = files(out)
        with pytest.raises(DetrKitError, match=r"train.* already$"):
            export(val, out, label_format, "train")
        with pytest.raises(DetrKitError, match="its classes are circle, star, not star, circle in"):
            export(coco_file(tmp_path, "x", "c.png", NAMES[::-1]), out, label_format, "val")
        with pytest.raises(DetrKitError, match="it exists; name a folder that is new or empty"):
            export_labels(val, out, label_format)
        with pytest.raises(DetrKitError, match=r"split 'a/b' \(--split\)"):
            export(val, out, label_format, "a/b")
        text(tmp_path / "other" / "notes.md")
        with pytest.raises(DetrKitError, match="it exists; name a folder that is new or empty"):
            export(train, tmp_path / "other", label_format, "train")
        assert files(out) == before

    @pytest.mark.parametrize("label_format", FORMATS)
    def test_a_failure_leaves_the_export_as_it_was(
        self,
        tmp_path: Path,
        train: Path,
        val: Path,
        label_format: LabelFormat,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(28, "no space left")

        out = tmp_path / "out"
        export(train, out, label_format, "train")
        before = files(out)
        monkeypatch.setattr(exporting, "place_picture", refuse)
        with pytest.raises(DetrKitError, match=r"out: cannot write the labels: .*no space left"):
            export(val, out, label_format, "val")
        assert files(out) == before
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []

    @pytest.mark.parametrize("label_format", FORMATS)
    def test_an_export_that_had_stepped_aside_is_put_back(
        self, tmp_path: Path, train: Path, val: Path, label_format: LabelFormat
    ) -> None:
        out = tmp_path / "out"
        export(train, out, label_format, "train")
        before = files(out)
        out.rename(tmp_path / ".out.old")  # where a process that ends in between leaves it
        export(val, out, label_format, "val")
        assert before.keys() < files(out).keys()

    def test_without_hard_links_files_are_copied(
        self, tmp_path: Path, train: Path, val: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(1, "not permitted")

        out = tmp_path / "out"
        export(train, out, "yolo", "train", copy=True)
        before = files(out)
        monkeypatch.setattr(os, "link", refuse)
        export(val, out, "yolo", "val", copy=True)
        after = files(out)
        assert {name: after[name] for name in before if name != "data.yaml"} == {
            name: content for name, content in before.items() if name != "data.yaml"
        }

    def test_a_link_to_a_folder_stays_one(self, tmp_path: Path, train: Path, val: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "disk", target_is_directory=True)
        export(train, tmp_path / "out", "yolo", "train")
        export(val, tmp_path / "out", "yolo", "val")
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "labels" / "val" / "b.txt").is_file()


class TestYolo:
    def test_data_yaml_is_completed_split_by_split(
        self, tmp_path: Path, train: Path, val: Path
    ) -> None:
        out = tmp_path / "out"
        names = {0: "circle", 1: "star"}
        export(val, out, "yolo", "val")
        assert yaml.safe_load((out / "data.yaml").read_text()) == {
            "val": "images/val",
            "names": names,
        }
        export(train, out, "yolo", "train")
        values = yaml.safe_load((out / "data.yaml").read_text())
        assert list(values.items()) == [
            ("train", "images/train"),
            ("val", "images/val"),
            ("names", names),
        ]
        assert sorted(files(out)) == [
            "data.yaml",
            "images/train/sub/a.png",
            "images/val/b.png",
            "labels/train/sub/a.txt",
            "labels/val/b.txt",
        ]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda out: text(out / "data.yaml", "train: images", "names: [circle, star]"), "not "),
            (lambda out: text(out / "data.yaml", "names: [circle, star]"), "not of an export with"),
            (
                lambda out: text(out / "data.yaml", "nc: 2", "train: images/train", "names: [a]"),
                "not of an export with --split",
            ),
            (lambda out: text(out / "labels" / "val" / "c.txt"), r"labels/val: it is there, but"),
        ],
    )
    def test_what_is_no_export_of_splits_is_refused(
        self,
        tmp_path: Path,
        train: Path,
        val: Path,
        change: Callable[[Path], object],
        message: str,
    ) -> None:
        out = tmp_path / "out"
        export(train, out, "yolo", "train")
        change(out)
        with pytest.raises(DetrKitError, match=message):
            export(val, out, "yolo", "val")

    def test_only_splits_that_yolo_knows_are_written(self, tmp_path: Path, val: Path) -> None:
        with pytest.raises(DetrKitError, match="the splits of YOLO are train, val, test"):
            export(val, tmp_path / "out", "yolo", "validation")


class TestVoc:
    def test_every_split_has_its_list(self, tmp_path: Path, train: Path, val: Path) -> None:
        out = tmp_path / "out"
        export_labels(train, out, "voc", images=tmp_path / "pictures")
        export(val, out, "voc", "my val")
        assert (out / "ImageSets/Main/train.txt").read_text() == "sub/a\n"
        assert (out / "ImageSets/Main/my val.txt").read_text() == "b\n"

    def test_a_picture_that_is_there_is_not_written_over(self, tmp_path: Path, train: Path) -> None:
        export(train, tmp_path / "out", "voc", "train")
        with pytest.raises(DetrKitError, match=r"Annotations/sub/a.xml: it is there already"):
            export(train, tmp_path / "out", "voc", "val")


@pytest.mark.parametrize("label_format", FORMATS)
def test_labels_without_pictures_say_which_option_names_these(
    tmp_path: Path, train: Path, label_format: LabelFormat
) -> None:
    out = tmp_path / "out"
    export_labels(train, out, label_format)
    with pytest.raises(DetrKitError, match=r"with images \(--images\)"):
        import_labels(out, tmp_path / "back.json")
    images = tmp_path / "pictures"
    assert import_labels(out, tmp_path / "back.json", images=images).num_objects == 1


def test_a_yolo_split_without_pictures_is_read_by_its_own_folder(
    tmp_path: Path, train: Path
) -> None:
    out = tmp_path / "out"
    export_labels(train, out, "yolo", split="train")
    images = tmp_path / "pictures"
    with pytest.raises(DetrKitError, match="name the split's own folders of labels and pictures"):
        import_labels(out, tmp_path / "back.json", images=images, split="train")
    report = import_labels(
        out / "labels" / "train", tmp_path / "back.json", images=images, names=out / "data.yaml"
    )
    assert (report.num_objects, report.num_empty) == (1, 0)


def test_pictures_that_are_missing_are_counted(tmp_path: Path, train: Path) -> None:
    content = json.loads(train.read_text())
    content["images"] += [{**content["images"][0], "id": 2, "file_name": "gone.png"}]
    train.write_text(json.dumps(content))
    message = r"gone.png: no such image file \(1 of 2 are missing; detr-kit check names them\)"
    with pytest.raises(DetrKitError, match=message):
        export(train, tmp_path / "out", "yolo", "train")
    assert not (tmp_path / "out").exists()
