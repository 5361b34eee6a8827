"""Checking whole data sets: splits and folders, what cannot be read, memory, the printed report."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from detr_kit.data.checks.findings import KINDS, CheckReport
from detr_kit.data.checks.run import check
from detr_kit.data.checks.text import SHOWN_CASES, report_text
from detr_kit.errors import DetrKitError
from tests.data.checks.corpus import annotation, changed, coco, named, replaced


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def to_file(content: Any, name: str = "labels.json") -> Path:
        path = tmp_path / name
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        path.write_bytes(data)
        return path

    return to_file


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def of_pictures(name: str, *files: str, seed: int = 0) -> Path:
        path = tmp_path / name
        path.mkdir()
        generator = np.random.default_rng(seed)
        for file in files:
            pixels = generator.integers(0, 256, (80, 100, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / file)
        return path

    return of_pictures


def kinds(report: CheckReport) -> set[str]:
    return {finding.kind for finding in report.findings}


def printed(report: CheckReport, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(report_text(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


class TestSplitsAndFolders:
    def test_one_file_is_counted(self, write: Any) -> None:
        content = coco()
        content["annotations"].append({**annotation(12, [1, 1, 5, 5]), "iscrowd": 1})
        report = check(write(content))
        assert report.findings == ()
        assert report.counts == ({"images": 2, "objects": 3, "crowd_regions": 1, "categories": 2},)

    def test_pictures_are_checked_where_a_folder_is_given(self, write: Any, folder: Any) -> None:
        path = write(coco())
        assert check(str(path), str(folder("images", "a.jpg", "b.jpg"))).findings == ()
        assert kinds(check(path, folder("empty"))) == {"file_missing"}

    def test_damage_inside_is_found_by_decoding(self, write: Any, folder: Any) -> None:
        images = folder("images", "a.png", "b.png")
        content = bytearray((images / "a.png").read_bytes())
        content[len(content) // 2] ^= 0xFF
        (images / "a.png").write_bytes(content)
        path = write(named("b.png", "a.png"))
        assert check(path, images).num_errors == 0
        assert check(path, images, decode=True).num_errors == 1

    def test_splits_share_a_folder_or_have_one_each(self, write: Any, folder: Any) -> None:
        train, val = write(coco(), "train.json"), write(named("d.jpg", "c.jpg"), "val.json")
        both = folder("both", "a.jpg", "b.jpg", "c.jpg", "d.jpg")
        assert check([train, val], both).findings == ()
        own = [folder("own", "a.jpg", "b.jpg"), folder("other", "c.jpg", "d.jpg", seed=1)]
        assert check([train, val], own).findings == ()
        assert kinds(check([train, val], own[::-1])) == {"file_missing", "not_listed"}

    def test_a_picture_in_two_splits_is_an_error(self, write: Any, folder: Any) -> None:
        train, val = write(coco(), "train.json"), write(named("b.jpg", "c.jpg"), "val.json")
        report = check([train, val], folder("both", "a.jpg", "b.jpg", "c.jpg"))
        assert kinds(report) == {"shared_picture"}
        (finding,) = report.findings
        assert (finding.annotations, finding.count) == (val, 1)

    def test_categories_are_compared(self, write: Any) -> None:
        other = coco()
        other["categories"][0]["name"] = "Cat"
        report = check([write(coco(), "train.json"), write(other, "val.json")])
        assert kinds(report) == {"categories_differ"}

    def test_a_split_that_cannot_be_read_does_not_hide_the_others(
        self, write: Any, folder: Any
    ) -> None:
        broken, sound = write(b"{", "broken.json"), write(coco(), "sound.json")
        report = check([broken, sound], folder("images", "a.jpg"))
        assert [(found.annotations.name, found.kind) for found in report.findings] == [
            ("broken.json", "not_coco"),
            ("sound.json", "file_missing"),
        ]
        assert report.counts[0] == dict.fromkeys(report.counts[1], 0)

    def test_numbers_of_queries(self, write: Any) -> None:
        path = write(coco([[i / 4, 1, 5, 5] for i in range(120)], annotations=[]))
        content = json.loads(path.read_text())
        content["annotations"] = [annotation(i, [i / 4, 1, 5, 5]) for i in range(120)]
        path = write(content)
        assert check(path).count("too_many_objects") == 1
        assert check(path, num_queries=120).count("too_many_objects") == 0
        assert check(path, num_queries=None).count("too_many_objects") == 0


class TestMistakes:
    def test_files_and_folders_that_do_not_exist_are_named(
        self, write: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(DetrKitError, match=r"none\.json: no such annotation file"):
            check(tmp_path / "none.json")
        with pytest.raises(DetrKitError, match="none: no such image folder"):
            check(write(coco()), tmp_path / "none")
        with pytest.raises(DetrKitError, match="cannot read the file: Is a directory"):
            check(tmp_path)
        with pytest.raises(DetrKitError, match=r"cannot read the file: .*null"):
            check("a\0.json")

    def test_folders_must_go_with_the_files(self, write: Any, folder: Any) -> None:
        path, one, two = write(coco()), folder("one"), folder("two")
        with pytest.raises(DetrKitError, match="1 annotation files and 2 image folders"):
            check(path, [one, two])
        with pytest.raises(DetrKitError, match="no annotation file"):
            check([])
        with pytest.raises(DetrKitError, match="where their folder is given"):
            check(path, decode=True)


DEEP = 200_000
# Each with the kinds that are found; the shape of memory is another for every one.
NASTY: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "deep": (lambda: b"[" * 10**6, {"not_coco"}),
    "deep in a section": (lambda: b'{"images": ' + b"[" * DEEP + b"]" * DEEP, {"not_coco"}),
    "deep in a record": (
        lambda: replaced('"id": 10', '"x": ' + "[" * DEEP + "]" * DEEP + ', "id": 10'),
        {"not_coco"},
    ),
    "deep objects": (
        lambda: replaced('"id": 10', '"x": ' + '{"x": ' * DEEP + "1" + "}" * DEEP + ', "id": 10'),
        {"not_coco"},
    ),
    "a text of 50 MB": (
        lambda: replaced('"id": 10', f'"x": "{"y" * 50_000_000}", "id": 10'), set()
    ),
    "a file_name of 50 MB": (lambda: replaced("a.jpg", "y" * 50_000_000), set()),
    "50 MB of escapes": (lambda: replaced("a.jpg", "\\n" * 25_000_000), set()),
    "10 MB of escapes and NaN": (
        lambda: replaced("10, 20", "NaN, 20").replace(b"a.jpg", b"\\n" * 5_000_000), {"not_finite"}
    ),
    "50 MB of what is no number": (lambda: b"[" + b"NaN , " * 8_000_000 + b"1]", {"not_coco"}),
    "50 MB cut off": (
        lambda: b'{"x": [' + b'{"a": 1, "b": [1, 2, 3]},' * 2_000_000, {"not_coco"}
    ),
    "50 MB of nothing": (lambda: b" " * 50_000_000, {"not_coco"}),
    "a number of 100,000 digits": (
        lambda: replaced("[10, 20", f"[{'9' * 100_000}, 20"), {"not_coco"}
    ),
    "an id of 100,000 digits": (
        lambda: replaced('"id": 10', f'"id": {"9" * 100_000}'), {"not_coco"}
    ),
    "a size of 100,000 digits": (
        lambda: replaced('"width": 100', f'"width": {"9" * 100_000}'),
        {"not_coco", "unused_category"},
    ),
    "a decimal of 100,000 digits": (lambda: replaced("20.5", f"20.{'5' * 100_000}"), set()),
    "a number beyond floats": (lambda: replaced("[10, 20", "[1e400, 20"), {"not_coco"}),
    "one section twice": (lambda: replaced('{"images"', '{"images": [], "images"'), set()),
    "one key twice": (lambda: replaced('"id": 10', '"bbox": 1, "id": 10, "id": 10'), {"not_coco"}),
    "byte order mark": (lambda: b"\xef\xbb\xbf" + replaced("a.jpg", "c.jpg"), set()),
    "UTF-16": (lambda: json.dumps(coco()).encode("utf-16"), set()),
    "UTF-16 without a mark": (lambda: json.dumps(coco()).encode("utf-16-le"), set()),
    "UTF-32": (lambda: json.dumps(coco()).encode("utf-32"), set()),
    "UTF-16 cut off": (lambda: json.dumps(coco()).encode("utf-16")[:-3], {"not_coco"}),
    "half a surrogate": (lambda: replaced("a.jpg", "\\ud800.jpg"), {"not_coco"}),
    "half a surrogate elsewhere": (
        lambda: replaced('"id": 10', '"x": "\\udfff", "id": 10'), {"not_coco"}
    ),
    "bytes that are no text": (
        lambda: replaced("a.jpg", "Z").replace(b"Z", b"\xff\xfe"), {"not_coco", "unused_category"}
    ),
    "null character": (lambda: replaced("a.jpg", "a\\u0000.jpg"), {"leaves_folder"}),
    "null byte": (lambda: replaced("a.jpg", "Z").replace(b"Z", b"\0"), {"not_coco"}),
    "NaN": (lambda: replaced("[10, 20", "[NaN, 20"), {"not_finite"}),
    "NaN within a text": (lambda: replaced("a.jpg", 'NaN \\" Infinity'), set()),
    "infinite size": (lambda: replaced('"width": 100', '"width": Infinity'), {"size_missing"}),
    "huge but finite": (
        lambda: replaced("[10, 20", "[1e308, -1e308"), {"outside_image"}
    ),
    "comment": (lambda: b"// COCO\n" + json.dumps(coco()).encode(), {"not_coco"}),
    "single quotes": (lambda: str(coco()).encode(), {"not_coco"}),
    "one object a line": (lambda: b'{"id": 1}\n{"id": 2}\n', {"not_coco"}),
    "empty": (lambda: b"", {"not_coco"}),
    "a picture": (lambda: b"\xff\xd8\xff\xe0" + bytes(range(256)) * 100, {"not_coco"}),
    "zeros": (lambda: bytes(1_000_000), {"not_coco"}),
    "gzip": (lambda: gzip.compress(json.dumps(coco()).encode()), {"not_coco"}),
    "many malformed records": (
        lambda: replaced('"images": [', '"images": [' + "[]," * 200_000), {"not_coco"}
    ),
    "many small records": (
        lambda: replaced('"annotations": [', '"annotations": [' + "{}," * 500_000), {"not_coco"}
    ),
}  # fmt: skip

# Runs each file of a folder through the check and the repair in 1 GiB of addresses.
PROGRAM = """
import json, resource, sys, time
from pathlib import Path
from detr_kit.data.checks.fix import fix
from detr_kit.data.checks.run import check
from detr_kit.errors import DetrKitError
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
said = {}
for line in sys.stdin:
    path = Path(line.strip())
    started = time.perf_counter()
    report = check(path)
    try:
        fix(path, path.with_suffix(".fixed"))
    except DetrKitError as error:
        assert "\\n" not in str(error)
        assert len(str(error)) < 500
    texts = [case.text for found in report.findings for case in found.cases]
    assert all("\\n" not in text and len(text) < 500 for text in texts), texts
    seconds = time.perf_counter() - started
    print(json.dumps([[found.kind for found in report.findings], seconds, "torch" in sys.modules]))
    sys.stdout.flush()
"""


@pytest.fixture(scope="module")
def small_process() -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": ""},
        cwd=Path(__file__).resolve().parents[3],
    )
    yield process
    process.communicate()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits addresses as Linux does")
@pytest.mark.parametrize("name", NASTY)
def test_nothing_takes_a_gigabyte_or_ends_in_a_traceback(
    small_process: Any, write: Any, name: str
) -> None:
    build, expected = NASTY[name]
    path = write(build())
    print(path, file=small_process.stdin, flush=True)
    answer = small_process.stdout.readline()
    assert answer, small_process.stderr.read()
    found, seconds, has_torch = json.loads(answer)
    assert set(found) == expected
    assert seconds < 20
    assert not has_torch


class TestReport:
    def test_a_sound_file_is_said_to_be_ready(self, write: Any) -> None:
        path = write(coco())
        lines = printed(check(path)).splitlines()
        assert lines == [
            f"{path}: 2 images, 3 objects, 2 categories",
            "no errors and no warnings: ready for training",
        ]

    def test_kinds_are_a_table_with_the_first_cases_below(self, write: Any) -> None:
        content = coco([[200, 5, 30, 40 + row] for row in range(30)], annotations=[])
        content["annotations"] = [annotation(row, [200, 5, 30, 40 + row]) for row in range(1030)]
        text = printed(check(write(content), num_queries=None))
        row = next(line for line in text.splitlines() if "outside_image" in line)
        assert "1,030" in row
        assert KINDS["outside_image"][1] in row
        assert text.count("lies outside its image of 100 x 80") == SHOWN_CASES
        assert "and 1,025 more" in text
        assert text.splitlines()[-1].startswith(
            "1,030 errors: mend them before training; --fix OUT"
        )

    def test_one_error_is_one(self, write: Any) -> None:
        text = printed(check(write(changed("annotations", 0, bbox=[200, 5, 30, 40]))))
        assert text.splitlines()[-1].startswith("1 error: ")

    def test_warnings_alone_do_not_ask_for_a_repair(self, write: Any) -> None:
        text = printed(check(write(named("a.jpg"))))
        assert text.splitlines()[-1] == "no errors; 1 warning to look at"

    def test_findings_name_their_split(self, write: Any) -> None:
        paths = [write(coco(), "train.json"), write(named("../b.jpg"), "val.json")]
        text = printed(check(paths))
        assert "leaves_folder in val.json" in text

    def test_names_are_no_markup_and_no_control_codes(self, write: Any) -> None:
        text = printed(
            check(write(named("../[bold]x[/bold]\x1b[31m\n[/nothing].jpg"), "[red].json"))
        )
        assert "[bold]x[/bold]\\x1b[31m\\n[/nothing].jpg" in text
        assert "[red].json: 2 images" in text
        assert "\x1b" not in text

    def test_a_file_that_cannot_be_read_is_said_to_be_so(self, write: Any) -> None:
        text = printed(check(write(b"{")))
        assert "nothing could be read" in text
        assert "it ends too early" in text

    def test_narrow_terminals_lose_nothing(self, write: Any) -> None:
        text = printed(check(write(changed("annotations", 0, bbox=[200, 5, 30, 40]))), width=60)
        assert "outside_image" in text

    def test_nothing_but_the_report_is_printed(
        self, write: Any, folder: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        check(write(coco()), folder("images", "a.jpg", "b.jpg"))
        assert capsys.readouterr() == ("", "")


class TestRealData:
    @pytest.mark.parametrize(
        ("annotations", "images"),
        [
            (["bccd/annotations/train.json", "bccd/annotations/val.json"], ["bccd/images"]),
            (
                [f"coco_mini/annotations/instances_{s}2017.json" for s in ("train", "val")],
                ["coco_mini/train2017", "coco_mini/val2017"],
            ),
        ],
        ids=["bccd", "coco_mini"],
    )
    def test_it_has_no_errors_and_no_warnings(
        self, shared_data: Path, annotations: list[str], images: list[str]
    ) -> None:
        report = check(
            [shared_data / path for path in annotations], [shared_data / path for path in images]
        )
        assert [found.kind for found in report.findings if found.severity != "note"] == []
        assert all(counts["objects"] > 600 for counts in report.counts)
