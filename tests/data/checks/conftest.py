"""What the tests of checks share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from detr_kit.data.checks.findings import Findings
from detr_kit.data.checks.pictures import check_pictures
from detr_kit.data.coco_file import read_columns

Found = dict[str, list[str]]


def _check_folder(
    folder: Path, images: Iterable[tuple[str, int, int]], *, decode: bool = False,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> tuple[dict[str, list[str]], dict[str, bytes]]:  # fmt: skip
    """Return the lines of all cases by kind, and the digests; images are (name, width, height)."""
    records = [
        {"id": 100 + row, "file_name": name, "width": width, "height": height}
        for row, (name, width, height) in enumerate(images)
    ]
    path = folder.parent / f"{folder.name}.json"
    path.write_text(json.dumps({"images": records, "annotations": [], "categories": []}))
    findings = AllFindings(path)
    digests = check_pictures(read_columns(path), folder, findings, decode=decode, progress=progress)
    return findings.lines, digests


class AllFindings(Findings):
    """Keeps every case, not the first ones only."""

    def __init__(self, annotations: Path) -> None:
        super().__init__(annotations)
        self.lines: Found = {}

    def add(self, kind, cases, count=None) -> None:  # type: ignore[no-untyped-def]
        listed = list(cases)
        super().add(kind, listed, count)
        self.lines.setdefault(kind, []).extend(case.text for case in listed)


@pytest.fixture(scope="session")
def check_folder() -> Callable:
    """Checks a folder of pictures against (name, width, height) of images with ids from 100."""
    return _check_folder
