"""What the page answers to a user, without a page."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from detr_kit.demo.limits import Limits
from detr_kit.demo.page import PageModel
from tests.demo.known_objects import Knowing

SHOWN, HIDDEN, PICTURE, BOXES, CAPTION, SUMMARY, CLASSES, TABLE = range(8)


@pytest.fixture
def model(predictor: Knowing) -> PageModel:
    return PageModel(predictor, Limits(pixels=10_000))


def ticks(answer: list[Any], part: int = CLASSES) -> tuple[list[int], list[int]]:
    """Return the category ids that can be ticked and those that are."""
    group = answer[part]
    return [id_ for _, id_ in group.choices], group.value


def test_a_picture_fills_the_page(model: PageModel, picture: Path) -> None:
    answer = model.show(picture, 0.5, False)
    assert answer[SHOWN].name == "street.png"
    assert answer[SHOWN].size_hw == (20, 40)
    assert answer[HIDDEN] == frozenset()
    assert "data:image/jpeg" in answer[PICTURE]
    assert answer[BOXES].count("dk-box") == 3
    assert "3 objects" in answer[CAPTION]
    assert answer[TABLE].count("<tr") == 1 + 3
    assert ticks(answer) == ([1, 2], [1, 2])


def test_the_model_is_asked_once_for_everything_it_can_find(
    model: PageModel, predictor: Knowing, picture: Path
) -> None:
    shown = model.show(picture, 0.5, False)[SHOWN]
    assert len(shown.detections) == 4
    for threshold, count in ((0.0, 4), (0.7, 2), (1.0, 0), (0.5, 3)):
        boxes, caption, *_ = model.redraw(shown, frozenset(), threshold, False)
        assert boxes.count("dk-box") == count
        assert f"{count} object" in caption
    assert model.redraw(shown, frozenset(), 0.0, True)[0].count("dk-box") == 3
    assert predictor.calls == 1


def test_pictures_are_shown_upright(model: PageModel, tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert model.show(path, 0.5, False)[SHOWN].size_hw == (40, 20)


def test_a_class_that_is_not_ticked_is_hidden(model: PageModel, picture: Path) -> None:
    shown = model.show(picture, 0.5, False)[SHOWN]
    hidden, *parts = model.choose_classes(shown, frozenset(), 0.5, False, [2])
    assert hidden == {1}
    assert parts[0].count("dk-box") == 1
    assert "1 object, 2 hidden" in parts[1]
    assert ticks(parts, 3) == ([1, 2], [2])


def test_a_hidden_class_stays_hidden_while_the_threshold_moves(
    model: PageModel, picture: Path
) -> None:
    shown = model.show(picture, 0.5, False)[SHOWN]
    [hidden, *_] = model.choose_classes(shown, frozenset(), 0.0, False, [1, 2])
    assert hidden == {7}
    # The class is below the threshold now; what is ticked says nothing about it.
    [hidden, *_] = model.choose_classes(shown, hidden, 0.5, False, [2])
    assert hidden == {1, 7}
    assert ticks(model.redraw(shown, hidden, 0.0, False), 3) == ([7, 1, 2], [2])


def test_a_new_picture_hides_nothing(model: PageModel, picture: Path) -> None:
    assert model.show(picture, 0.5, False)[HIDDEN] == frozenset()


def test_a_bad_picture_becomes_a_message_and_nothing_of_the_last_one_stays(
    model: PageModel, tmp_path: Path, predictor: Knowing
) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("Dear model", encoding="utf-8")
    answer = model.show(path, 0.5, False)
    assert answer[SHOWN] is None
    assert "notes.jpg: cannot read the image: not a picture of a known format" in answer[BOXES]
    assert [answer[part] for part in (PICTURE, CAPTION, SUMMARY, TABLE)] == [""] * 4
    assert not answer[CLASSES].visible
    assert str(tmp_path) not in "".join(str(part) for part in answer)
    assert predictor.calls == 0


def test_a_picture_that_is_too_large_never_reaches_the_model(
    model: PageModel, tmp_path: Path, predictor: Knowing
) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (101, 100)).save(path)
    assert "large.png: image too large" in model.show(path, 0.5, False)[BOXES]
    assert predictor.calls == 0


def test_a_failing_model_is_told_of_in_the_terminal_only(
    model: PageModel,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("CUDA out of memory at 0xC0FFEE")

    monkeypatch.setattr(model.predictor, "detect", fail)
    with caplog.at_level(logging.ERROR):
        answer = model.show(picture, 0.5, False)
    assert "street.png: the model failed on this picture" in answer[BOXES]
    assert "0xC0FFEE" not in answer[BOXES]
    assert "0xC0FFEE" in caplog.text


def test_without_a_picture_choices_change_nothing(model: PageModel) -> None:
    unchanged = [{"__type__": "update"}] * 5
    assert model.redraw(None, frozenset(), 0.2, True) == unchanged
    assert model.choose_classes(None, frozenset({1}), 0.2, True, []) == [{1}, *unchanged]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(model: PageModel, tmp_path: Path) -> None:
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    assert "pipe.jpg: " in model.show(path, 0.5, False)[BOXES]


def test_what_is_found_does_not_depend_on_the_threshold_of_the_page(
    model: PageModel, picture: Path
) -> None:
    low, high = (model.show(picture, threshold, True)[SHOWN] for threshold in (0.0, 1.0))
    assert np.array_equal(low.detections.scores, high.detections.scores)
