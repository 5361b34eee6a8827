"""What the check finds in the files of a data set, on one small file for each fault."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from detr_kit.data.checks import picture_files
from detr_kit.data.checks.findings import KINDS
from detr_kit.errors import DetrKitError
from detr_kit.images import read_image
from tests.data.checks.picture_corpus import (
    CORPUS,
    HEIGHT,
    WIDTH,
    bomb,
    content,
    png,
    sparse,
    zeros_deflated,
)

# The kinds for which `read_image` refuses a picture.
REFUSED = {
    "file_missing", "case_differs", "zero_bytes", "unreadable", "truncated", "size_differs",
    "huge", "unsupported_mode",
}  # fmt: skip
# What `read_image` would wait for, run, or take long to read.
NOT_READ = {"pipe.jpg", "program.eps", "heavy.jpg", "heavy_chunk.png"}

Found = dict[str, list[str]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "images"
    folder.mkdir()
    for name, entry in CORPUS.items():
        entry.build(folder / name)
    return folder


@pytest.fixture(scope="module")
def checked(corpus: Path, check_folder: Callable) -> dict[bool, Found]:
    """The lines by kind, headers only (False) and decoded (True)."""
    images = [(name, *entry.said) for name, entry in CORPUS.items()]
    return {decode: check_folder(corpus, images, decode=decode)[0] for decode in (False, True)}


def lines_of(found: Found, name: str) -> dict[str, str]:
    start = f"{name.replace(chr(10), chr(92) + 'n')}: "
    return {
        kind: line.removeprefix(start)
        for kind, lines in found.items()
        for line in lines
        if line.startswith(start) and kind != "duplicate_picture"
    }


@pytest.mark.parametrize("decode", [False, True], ids=["headers", "decoded"])
@pytest.mark.parametrize("name", CORPUS, ids=lambda name: ascii(name[:40]))
def test_each_file_has_its_faults_and_no_other(
    checked: dict[bool, Found], name: str, decode: bool
) -> None:
    entry = CORPUS[name]
    lines = lines_of(checked[decode], name)
    expected = {} if entry.only_decoded and not decode else entry.kinds
    assert set(lines) == set(expected)
    image = f"(image {100 + list(CORPUS).index(name)})"
    for kind, reason in expected.items():
        assert lines[kind].startswith(reason)
        assert lines[kind].endswith(image)
        assert "\n" not in lines[kind]


def test_every_kind_of_pictures_has_two_inputs() -> None:
    counts = dict.fromkeys(KINDS, 0)
    for entry in CORPUS.values():
        for kind in entry.kinds:
            counts[kind] += 1
    start, end = (list(KINDS).index(kind) for kind in ("file_missing", "duplicate_picture"))
    assert min(list(counts.values())[start:end]) >= 2


@pytest.mark.parametrize("name", sorted(CORPUS.keys() - NOT_READ), ids=lambda n: ascii(n[:40]))
def test_decoding_finds_an_error_exactly_where_training_would(
    corpus: Path, checked: dict[bool, Found], name: str
) -> None:
    width, height = CORPUS[name].said
    expected = (height, width) if width else None
    refused = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, about metadata
        try:
            read_image(corpus / name, expected_size_hw=expected)
        except DetrKitError:
            refused = True
    assert refused == bool(REFUSED & lines_of(checked[True], name).keys())


def test_nothing_is_said_on_the_way(
    corpus: Path,
    check_folder: Callable,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    names = ["damaged_exif.jpg", "transparent.png", "over_the_limit.png", "cut_directory.tif"]
    check_folder(corpus, [(name, WIDTH, HEIGHT) for name in names])
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


MEASURE = """
import sys
from pathlib import Path
from detr_kit.data.checks.findings import Findings
from detr_kit.data.checks.pictures import check_pictures
from detr_kit.data.coco_file import read_columns

path = Path(sys.argv[1])
findings = Findings(path)
check_pictures(read_columns(path), path.parent / "images", findings, decode=True)
print([(found.kind, found.count) for found in findings.listed()])
# Not ru_maxrss, which counts the process that this one was started from.
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(peak.split()[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bombs_and_large_pictures_stay_below_one_gibibyte(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    side = 9000  # 81 million pixels, just below the limit: 309 MiB decoded
    (folder / "large_0.png").write_bytes(
        png(size=(side, side), pixels=zeros_deflated(side * (1 + 3 * side)))
    )
    for index in range(1, 4):
        os.link(folder / "large_0.png", folder / f"large_{index}.png")
    (folder / "bomb.png").write_bytes(bomb())
    sparse(content("webp"), 2**31)(folder / "heavy.webp")
    sparse(png()[:33] + struct.pack(">I", 2**29 - 99) + b"tEXtTitle\0", 2**29)(folder / "text.png")
    names = [*(f"large_{index}.png" for index in range(4)), "bomb.png", "heavy.webp", "text.png"]
    records = [
        {"id": index, "file_name": name, "width": side, "height": side}
        for index, name in enumerate(names)
    ]
    path = tmp_path / "images.json"
    path.write_text(json.dumps({"images": records, "annotations": [], "categories": []}))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found, kilobytes = done.stdout.split("\n")[:2]
    assert found == "[('huge', 3), ('duplicate_picture', 3)]"
    assert int(kilobytes) < 2**20


def test_what_may_take_too_much_memory_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix, bytes_a_pixel in (("jp2", 20), ("jpg", 12), ("png", 8)):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(content(suffix)[:1000])
        inspector = picture_files.Inspector(decode=True)
        enough = WIDTH * HEIGHT * bytes_a_pixel
        monkeypatch.setattr(picture_files, "MAX_DECODING_BYTES", enough)
        assert inspector(path).fault is not None
        monkeypatch.setattr(picture_files, "MAX_DECODING_BYTES", enough - 1)
        assert inspector(path).fault is None
        assert inspector(path).size_hw == (HEIGHT, WIDTH)
