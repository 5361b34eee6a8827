"""The commands that convert, as a person types them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from detr_kit.cli import main
from tests.data.conversions.coco_files import coco_file
from tests.data.conversions.label_files import category_names, picture, text, written

Type = Callable[..., str]


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Type:
    """Run a command in `tmp_path` that ends with `status`; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["detr-kit", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return run


def test_import_leaves_out_bad_boxes_on_request(yolo_folder: Path, typed: Type) -> None:
    text(yolo_folder / "labels" / "a.txt", "1 0.5 0.5 0 0.5")
    printed = typed("import", "data", "out.json", status=1)
    assert "(1 such lines; --on-bad-box skip leaves them out)" in printed
    assert "1 bad boxes left out" in typed("import", "data", "out.json", "--on-bad-box", "skip")


def test_import_of_a_folder_that_is_not_there(typed: Type) -> None:
    assert typed("import", "nodir", "out.json", status=1) == "detr-kit: nodir: no such folder\n"


def test_splits_are_exported_one_after_the_other(tmp_path: Path, typed: Type) -> None:
    coco_file(tmp_path / "in.json")
    for name in "5678":
        picture(tmp_path / "p" / f"{name}.png")
    assert "furthest from its share of 75.0%: " in typed("split", "in.json", "a=0.75", "b=0.25")
    for split, json in (("train", "a"), ("val", "b")):
        more = ("--format", "yolo", "--images", "p", "--split", split)
        typed("export-labels", json, "out", *more)
    assert "3 pictures" in typed("import", "out", "back.json", "--split", "train")
    message = typed("import", "out", "back.json", status=1)
    assert "it has the splits train, val; choose one as the split (--split)" in message


def test_classes_of_a_subset_are_repeated_or_parted_by_commas(tmp_path: Path, typed: Type) -> None:
    coco_file(tmp_path / "in.json")
    for words in (["--classes", "circle", "--classes", "star"], ["--classes", "circle, star"]):
        typed("subset", "in.json", "out.json", *words)
        assert category_names(tmp_path / "out.json") == ["star", "circle"]
    assert len(written(tmp_path / "out.json")["images"]) == 3
