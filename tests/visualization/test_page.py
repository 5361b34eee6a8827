"""Which of several details a page is written with, by how large it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detr_kit.visualization import page as module
from detr_kit.visualization.page import write_page


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([9, 8, 7, 6], 0),
        ([10, 8, 7, 6], 0),
        ([11, 10, 7, 6], 1),
        ([13, 12, 9, 6], 2),
        ([13, 12, 11, 10], 3),
        # Too large at the last as well, and written all the same.
        ([14, 13, 12, 11], 3),
    ],
)
def test_the_first_detail_is_taken_that_is_small_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], chosen: int
) -> None:
    def rendered(template: str, *, detail: int, is_shortened: bool, text: str) -> bytes:
        assert (template, text) == ("some.html", "?")
        assert is_shortened == (detail > 0)
        return str(detail).encode() * sizes[detail]

    monkeypatch.setattr(module, "MAX_BYTES", 10)
    monkeypatch.setattr(module, "render", rendered)
    details: list[Any] = [0, 1, 2, 3]
    write_page(tmp_path / "out.html", "some.html", details, {"text": "?"})
    assert (tmp_path / "out.html").read_text() == str(chosen) * sizes[chosen]
