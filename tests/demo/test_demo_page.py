"""How the page is put together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from detr_kit.demo.page import build_page
from detr_kit.errors import DetrKitError, DetrKitWarning
from tests.demo.known_objects import Knowing


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thumbnails go where they vanish."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))


def parts_of(page: Any, kind: str) -> list[dict[str, Any]]:
    return [part["props"] for part in page.config["components"] if part["type"] == kind]


def test_nothing_is_reported_to_anyone(predictor: Knowing) -> None:
    assert not build_page(predictor).analytics_enabled


def test_nothing_can_be_called_but_by_the_page(predictor: Knowing, picture: Path) -> None:
    page = build_page(predictor, examples=[picture])
    dependencies = page.config["dependencies"]
    assert len(dependencies) == 5
    assert {each["api_visibility"] for each in dependencies} == {"private"}


def test_uploads_and_examples_share_one_way_to_the_model(predictor: Knowing, picture: Path) -> None:
    page = build_page(predictor, examples=[picture])
    queued = [each for each in page.fns.values() if each.queue is not False]
    assert len(queued) == 2
    assert {(each.concurrency_limit, each.concurrency_id) for each in queued} == {(1, "model")}


def test_the_heading_tells_checkpoint_classes_and_device(predictor: Knowing) -> None:
    page = build_page(predictor, title="runs/best <1>")
    [heading, *_] = [part["value"] for part in parts_of(page, "html")]
    assert page.title == "runs/best <1>"
    for text in ("runs/best &lt;1&gt;", "3 classes", "on cpu"):
        assert text in heading


def test_a_device_can_be_called_as_one_likes(predictor: Knowing) -> None:
    page = build_page(predictor, device="the fast one")
    assert "the fast one" in parts_of(page, "html")[0]["value"]


def test_the_threshold_starts_where_it_is_set(predictor: Knowing) -> None:
    [slider] = parts_of(build_page(predictor, threshold=0.35), "slider")
    assert slider["value"] == 0.35


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_of_scores_is_refused(predictor: Knowing, threshold: float) -> None:
    with pytest.raises(DetrKitError, match="threshold: expected a number from 0 to 1"):
        build_page(predictor, threshold=threshold)


def test_overlapping_boxes_are_not_merged_unless_asked(predictor: Knowing) -> None:
    [merge] = parts_of(build_page(predictor), "checkbox")
    assert merge["value"] is False


def test_without_examples_there_is_no_gallery(predictor: Knowing) -> None:
    assert not parts_of(build_page(predictor), "gallery")


def test_examples_that_cannot_be_read_are_left_out_with_a_warning(
    predictor: Knowing, picture: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_text("not a picture", encoding="utf-8")
    with pytest.warns(DetrKitWarning, match=r"example left out: broken\.jpg: cannot read"):
        page = build_page(predictor, examples=[broken, picture])
    [gallery] = parts_of(page, "gallery")
    assert [each["caption"] for each in gallery["value"]] == ["street.png"]


def test_more_examples_than_are_shown_are_left_out_with_a_warning(
    predictor: Knowing, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detr_kit.demo.page.MOST_EXAMPLES", 2)
    with pytest.warns(DetrKitWarning, match=r"^examples: the first 2 of 3 are shown$"):
        many = build_page(predictor, examples=[picture] * 3)
    for built in (many, build_page(predictor, examples=[picture] * 2)):
        [gallery] = parts_of(built, "gallery")
        assert len(gallery["value"]) == 2


def test_it_is_said_that_gradio_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "detr_kit.demo.page")
    with pytest.raises(
        DetrKitError, match=r"the demo needs gradio: pip install 'detr_kit\[demo\]'"
    ):
        import detr_kit.demo.page  # noqa: F401
