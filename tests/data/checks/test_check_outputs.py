"""What a check writes and prints: never onto other files, and nothing that is not true."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from detr_kit.cli.data import check_command
from detr_kit.data.checks.findings import KINDS, MAX_CASES, REPAIRS, CheckReport
from detr_kit.data.checks.fix import fix
from detr_kit.data.checks.run import check
from detr_kit.data.checks.text import repaired_text, report_text
from detr_kit.errors import DetrKitError
from tests.data.checks.corpus import changed, coco, named


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def to_file(content: Any, name: str = "labels.json") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return to_file


def pictures(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 80), (seed, 0, 0)).save(folder / name)
    return folder


def last_line(report: CheckReport, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=400)
    console.print(report_text(report, **options))
    return console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]


class TestFilesAreKept:
    @pytest.mark.parametrize("option", ["json_out", "html", "fix"])
    @pytest.mark.parametrize("name", ["labels.json", "link.json", "a.jpg", "notes.txt", "val.json"])
    def test_no_output_replaces_labels_pictures_or_anything_else(
        self, write: Any, tmp_path: Path, option: str, name: str
    ) -> None:
        path = write(coco())
        (tmp_path / "link.json").symlink_to(path)
        for other in ("a.jpg", "notes.txt"):
            (tmp_path / other).write_bytes(b"mine")
        write(coco(), "val.json")
        before = (tmp_path / name).read_bytes()
        # Refused before the folder of pictures, which is not there, is missed.
        with pytest.raises(DetrKitError, match=r"choose (another|a new file) to write"):
            check_command([path], [tmp_path / "none"], **{option: tmp_path / name})
        assert (tmp_path / name).read_bytes() == before

    def test_reports_may_be_written_again(self, write: Any, tmp_path: Path) -> None:
        for _ in range(2):
            check_command([write(coco())], None, json_out=tmp_path / "found.json", queries=9)
        assert json.loads((tmp_path / "found.json").read_text())["findings"] == []

    def test_two_outputs_need_two_names(self, write: Any, tmp_path: Path) -> None:
        with pytest.raises(DetrKitError, match="another output has that name"):
            check_command([write(coco())], json_out=tmp_path / "x.json", fix=tmp_path / "x.json")

    def test_several_splits_are_not_repaired_and_not_checked(self, tmp_path: Path) -> None:
        with pytest.raises(DetrKitError, match="one annotation file at a time"):
            check_command([tmp_path / "a.json", tmp_path / "b.json"], fix=tmp_path / "c.json")

    def test_a_repair_never_replaces_a_file(self, write: Any, tmp_path: Path) -> None:
        path = write(coco())
        for name in ("fixed.json", "fixed.log.txt"):
            (tmp_path / name).write_text("mine")
            with pytest.raises(DetrKitError, match="it is there already"):
                fix(path, tmp_path / "fixed.json")
            (tmp_path / name).unlink()


class TestLastLine:
    def test_a_repair_is_named_only_where_it_repairs(self, write: Any) -> None:
        bad_box = check(write(changed("annotations", 0, bbox=[200, 5, 30, 40])))
        assert last_line(bad_box).startswith("1 error: mend it before training; --fix OUT writes")
        assert last_line(bad_box, being_fixed=True) == "1 error: mend it before training"
        no_size = check(write(changed("images", 0, width=None)))
        assert last_line(no_size) == "1 error: mend it before training"
        assert "--fix OUT" in last_line(no_size, with_pictures=True)

    def test_pictures_are_mended_by_hand(self, write: Any, tmp_path: Path) -> None:
        folder = pictures(tmp_path / "images", "a.jpg", "b.jpg")
        (folder / "a.jpg").write_bytes(b"")
        line = last_line(check(write(coco()), folder), with_pictures=True)
        assert line == (
            "1 error: mend it before training; mend or remove those files, or train with "
            "data.on_bad_image=skip"
        )

    def test_a_json_that_cannot_be_read_is_said_to_be_so(self, write: Any) -> None:
        assert last_line(check(write(b"{"))) == (
            "1 error: mend it before training; a json that cannot be read must be written anew"
        )

    def test_a_repair_says_what_it_removed(self, write: Any, tmp_path: Path) -> None:
        path = write(changed("annotations", 0, bbox=[200, 5, 30, 40]))
        result = fix(path, tmp_path / "fixed.json")
        assert repaired_text(result) == (
            f"1 change; removed: 1 annotation; no errors left; see {result.out}, {result.log}"
        )


class TestReport:
    def test_cases_say_what_they_are_about_and_how_many_there_are(self, write: Any) -> None:
        report = check(write(coco([[10, 20, 0, 1 + i] for i in range(MAX_CASES + 7)])))
        [found] = report.to_json()["findings"]
        assert (found["count"], found["listed"]) == (MAX_CASES + 7, MAX_CASES)
        assert len(found["cases"]) == MAX_CASES
        assert found["cases"][0] == {
            "text": "annotation 10 (image 5 'a.jpg'): bbox [10.0, 20.0, 0.0, 1.0] has no width or "
            "no height",
            "file": "a.jpg",
            "annotation_id": 10,
            "image_id": 5,
        }

    def test_a_kind_that_is_none_is_an_error_with_what_is_near(self, write: Any) -> None:
        report = check(write(coco()))
        with pytest.raises(DetrKitError, match="did you mean 'outside_image'"):
            report.count("outside_images")
        with pytest.raises(DetrKitError, match="no kind of findings is called 'zzz'"):
            report.count("zzz")

    def test_the_documentation_names_every_kind_with_its_repair(self) -> None:
        text = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| (`.*`) \| (error|warning|note) \| (.*) \|$", text, re.MULTILINE)
        told = {
            name.strip("`"): (severity, repair)
            for names, severity, repair in rows
            for name in names.split(", ")
        }
        assert told == {kind: (KINDS[kind][0], REPAIRS.get(kind, "left")) for kind in KINDS}


class TestWhereFilesAre:
    def test_pictures_that_no_split_names_are_noted_once(self, write: Any, tmp_path: Path) -> None:
        folder = pictures(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg", "sub/d.PNG")
        (folder / "notes.txt").write_text("no picture")
        (folder / "b.jpg").rename(folder / "B.jpg")
        train, val = write(coco(), "train.json"), write(named("c.jpg", "x.jpg"), "val.json")
        report = check([train, val], folder)
        [found] = [found for found in report.findings if found.kind == "not_listed"]
        assert (found.annotations, found.count) == (train, 1)
        assert [case.text for case in found.cases] == ["'sub/d.PNG': no json names it"]

    @pytest.mark.parametrize(
        ("prefix", "there", "hint"),
        [
            (
                "images/",
                "",
                "names begin with images/, and --images is that folder: give its parent",
            ),
            ("data/", "", "names begin with data/, but the files are there without it"),
            ("", "one/two/", "the files are in one/two/ of the image folder: give that"),
            ("", "../other/", ""),
        ],
    )
    def test_a_hint_says_where_the_files_are(
        self, write: Any, tmp_path: Path, prefix: str, there: str, hint: str
    ) -> None:
        names = [f"{number}.jpg" for number in range(5)]
        folder = tmp_path / "images"
        folder.mkdir()
        pictures(folder, *(there + name for name in names))
        images = [
            {"id": number, "file_name": prefix + name, "width": 100, "height": 80}
            for number, name in enumerate(names)
        ]
        path = write(coco([], images=images, annotations=[]))
        found = next(f for f in check(path, folder).findings if f.kind == "file_missing")
        assert found.cases[0].text.partition("; ")[2] == hint
        assert all("; " not in case.text for case in found.cases[1:])
