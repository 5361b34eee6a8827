from __future__ import annotations

import importlib.util
import itertools
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_kit import labels
from detr_kit.drawing import category_color, contrasting, draw_boxes
from detr_kit.errors import DetrKitError
from detr_kit.labels import Lettering, Places, Text

Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, ends excluded


def gray(width: int, height: int, level: int = 90) -> Image.Image:
    return Image.new("RGB", (width, height), (level, level, level))


def drawn(canvas: Image.Image, boxes: list[list[float]], names: list[str], **more: object) -> Image:  # type: ignore[valid-type]
    own = canvas.copy()
    draw_boxes(own, np.array(boxes), names, range(len(boxes)), **more)  # type: ignore[arg-type]
    return own


def placed(
    boxes: np.ndarray, texts: list[Text], size_wh: tuple[int, int]
) -> tuple[dict[int, tuple[str, Rectangle]], Places]:
    """Return label and rectangle of the rows that have one."""
    lettering = Lettering(texts, size_wh)
    places = Places(boxes, lettering, size_wh)
    found = {
        row: (label, (x, y, x + lettering.width_of(label), y + lettering.height))
        for row, label, (x, y) in places.of(texts)
    }
    return found, places


def overlap(a: Rectangle, b: Rectangle) -> int:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    return max(0, wide) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def random_boxes(count: int, size_wh: tuple[int, int], sides: tuple[int, int]) -> np.ndarray:
    numbers = np.random.default_rng(0)
    centers = numbers.uniform((0, 0), size_wh, (count, 2))
    halves = numbers.uniform(*sides, (count, 2)) / 2
    boxes = np.concatenate([centers - halves, centers + halves], axis=1)
    return boxes.round().clip(0, np.array(size_wh * 2) - 1).astype(np.int64)


def luminance(color: np.ndarray) -> np.ndarray:
    part = np.asarray(color) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(a: object, b: object) -> np.ndarray:
    """Contrast ratio of WCAG 2, from 1 to 21."""
    one, other = luminance(np.asarray(a)) + 0.05, luminance(np.asarray(b)) + 0.05
    return np.maximum(one / other, other / one)


def test_neighbouring_ids_have_different_colors() -> None:
    assert len({category_color(id_) for id_ in range(91)}) == 91


def test_names_can_be_read_on_every_category_color() -> None:
    for category_id in range(300):
        color = category_color(category_id)
        assert contrast(contrasting(color), color) >= 4.5


@pytest.mark.parametrize("category_id", range(12))
def test_lines_stand_out_from_any_background(category_id: int) -> None:
    own = category_color(category_id)
    for background in (own, (0, 0, 0), (255, 255, 255), (119, 119, 119)):
        canvas = Image.new("RGB", (320, 300), background)
        draw_boxes(canvas, np.array([[50, 50, 250, 250]]), [""], [category_id])
        across = np.asarray(canvas)[150, 40:60]  # the left line and what is beside it
        assert contrast(across, background).max() > 2, background


def test_the_last_box_is_on_top() -> None:
    canvas = gray(64, 64)
    draw_boxes(canvas, np.array([[5, 30, 60, 60]] * 2), ["", ""], [2, 1])
    assert canvas.getpixel((60, 50)) == category_color(1)


def test_drawing_twice_gives_the_same_pixels() -> None:
    boxes = random_boxes(60, (300, 200), (5, 90)).astype(np.float32)
    kept = boxes.copy()
    names = [f"name {row}" for row in range(60)]
    first, second = (drawn(gray(300, 200), boxes.tolist(), names) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    draw_boxes(gray(300, 200), boxes, names, range(60))
    assert (boxes == kept).all()


def test_boxes_outside_the_picture_are_not_drawn() -> None:
    outside = [[-30, 5, -10, 20], [101, 5, 140, 20], [5, -30, 20, -10], [5, 51, 20, 90]]
    assert drawn(gray(100, 50), outside, ["name"] * 4).tobytes() == gray(100, 50).tobytes()
    far = [[-1e30, -1e30, 1e30, 1e30]]
    pixels = np.asarray(drawn(gray(100, 50), far, [""]))
    assert (pixels[[0, -1]] == category_color(0)).all()
    assert (pixels[:, [0, -1]] == category_color(0)).all()


@pytest.mark.parametrize("box", [[40, 20, 40, 20], [40, 10, 40, 40], [10, 20, 80, 20]])
def test_boxes_without_area_can_be_seen(box: list[float]) -> None:
    pixels = np.asarray(drawn(gray(100, 50), [box], [""]))
    assert (pixels[box[1], box[0]] == category_color(0)).all()
    assert (pixels[box[3], box[2]] == category_color(0)).all()


def test_the_inside_of_small_boxes_is_left_to_see() -> None:
    canvas = gray(1000, 1000)
    pixels = np.asarray(drawn(canvas, [[500, 500, 513, 513]], [""]))
    assert (pixels[501:513, 501:513] == 90).all()
    assert (pixels[500, 500:514] == category_color(0)).all()


def test_lines_of_many_boxes_are_thin() -> None:
    few, many = (
        np.asarray(drawn(gray(1200, 1200), boxes.tolist(), [""] * len(boxes)))
        for boxes in (random_boxes(count, (1200, 1200), (100, 200)) for count in (5, 500))
    )

    def widths(pixels: np.ndarray) -> set[int]:
        inked = (pixels != 90).any(axis=2)
        return {len(list(run)) for row in inked[::7] for ink, run in itertools.groupby(row) if ink}

    assert min(widths(few)) >= 4
    assert min(widths(many)) == 1


@pytest.mark.parametrize("count", [0, 1, 3, 40])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_labels_are_in_the_picture_and_hide_no_other(count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    size_wh = tuple(numbers.integers(1, 500, 2).tolist())
    corners = numbers.integers(0, size_wh, (count, 2, 2))
    boxes = np.sort(corners, axis=1).reshape(count, 4)
    names = numbers.choice(["cat", "dining table", ""], count).tolist()
    texts = [Text(name, detail) for name, detail in zip(names, itertools.cycle(["0.50", ""]))]
    found, places = placed(boxes, texts, size_wh)
    rectangles = [rectangle for _, rectangle in found.values()]
    for x0, y0, x1, y1 in rectangles:
        assert 0 <= x0 < x1 <= size_wh[0]
        assert 0 <= y0 < y1 <= size_wh[1]
    assert not any(overlap(a, b) for a, b in itertools.combinations(rectangles, 2))
    covered = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in rectangles)
    assert covered <= size_wh[0] * size_wh[1] / 4
    assert len(found) + places.num_left_out == sum(any(text) for text in texts)
    for row, (label, (x0, y0, x1, y1)) in found.items():
        name, detail = texts[row]
        shown = label.removesuffix(detail).rstrip()
        assert label.endswith(detail)
        assert shown in ("", name) or (shown.endswith("…") and name.startswith(shown[:-1]))
        box = boxes[row]  # touched by its label, which is how one knows whose it is
        assert x0 <= box[2] + 1
        assert box[0] <= x1
        assert y0 <= box[3] + 1
        assert box[1] <= y1


def test_a_label_is_above_its_box_unless_it_hides_another_one_there() -> None:
    own, above = [100, 100, 180, 180], [104, 84, 124, 98]
    texts = [Text("", ""), Text("dog", "0.90")]
    free, _ = placed(np.array([[300, 300, 310, 310], own]), texts, (400, 400))
    assert free[1][1][3] == 100
    crowded, _ = placed(np.array([above, own]), texts, (400, 400))
    assert not overlap(crowded[1][1], (104, 84, 125, 99))


def test_a_label_of_a_box_at_the_top_is_inside() -> None:
    found, _ = placed(np.array([[0, 0, 399, 399]]), [Text("dog", "0.90")], (400, 400))
    assert found[0][1][:2] == (0, 0)


def test_the_best_gets_its_name_and_the_rest_is_counted() -> None:
    boxes = np.array([[10, 20, 69, 60]] * 30)
    texts = [Text("some long name", f"0.{row:02}") for row in range(30)]
    found, places = placed(boxes, texts, (90, 80))
    assert 29 in found
    assert 0 not in found
    assert places.num_left_out == 30 - len(found) > 0
    assert any(label == texts[row].detail for row, (label, _) in found.items())


def test_a_note_tells_what_is_left_out() -> None:
    boxes, names = [[10.0, 20.0, 69.0, 60.0]] * 30, ["some long name"] * 30
    written: list[str] = []
    original = Places.of_note
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Places, "of_note", lambda self, note: written.append(note) or original(self, note)
        )
        for size_wh in ((300, 200), (90, 80), (40, 30)):
            drawn(gray(*size_wh), boxes, names)
    # In the second the long note is too wide, in the third either would hide too much.
    assert [note.startswith("+") for note in written] == [False, False, True, False, True]
    assert written[0].endswith(" of 30 boxes without a label")
    assert written[-2:] == ["30 of 30 boxes without a label", "+30"]


def test_no_note_where_nothing_is_left_out() -> None:
    pixels = np.asarray(drawn(gray(300, 200), [[100, 80, 200, 120]], ["cat"]))
    corners = (pixels[:30, :30], pixels[-30:, :30], pixels[:30, -30:], pixels[-30:, -30:])
    assert all((corner == 90).all() for corner in corners)


def test_letters_suit_the_picture_and_the_number_of_boxes() -> None:
    def size(count: int, *size_wh: int) -> int:
        return Lettering([Text("name", "0.5")] * count, size_wh).size  # type: ignore[arg-type]

    assert size(1, 64, 64) == size(1, 1, 5000) == size(10_000, 640, 480) == 9
    assert size(1, 640, 480) == 11
    assert size(1, 6000, 4000) == 95
    assert size(1, 6000, 4000) > size(500, 6000, 4000) > size(2000, 6000, 4000) > 9


def test_long_names_are_cut_and_keep_their_detail() -> None:
    text = Text.of("an extraordinarily long name of a category " * 100, "0.90")
    lettering = Lettering([text], (640, 480))
    for width in (90, 150, 300):
        label = lettering.fitted(text, width)
        assert label.endswith("… 0.90")
        assert width - 20 < lettering.width_of(label) <= width
    assert lettering.fitted(text, 30) == "0.90"
    assert lettering.fitted(Text("cat", ""), 5) == ""


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 5000), (5000, 1), (7, 300), (64, 64)])
@pytest.mark.parametrize("count", [0, 1, 200])
def test_tiny_and_narrow_pictures(size_wh: tuple[int, int], count: int) -> None:
    canvas = gray(*size_wh)
    boxes = random_boxes(count, size_wh, (0, 40))
    draw_boxes(canvas, boxes, ["name"] * count, range(count), details=["0.50"] * count)
    assert canvas.size == size_wh


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_text_can_be_drawn(texts: list[tuple[str, str]]) -> None:
    boxes = [[20.0 * row, 30.0, 20.0 * row + 60, 60.0] for row in range(len(texts))]
    names, details = ([text[part] for text in texts] for part in (0, 1))
    drawn(gray(160, 90), boxes, names, details=details)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("two\nlines\tof text ", "two lines of text"), ("\ud800half\x00\u202e", "half"), ("猫", "猫")],
)
def test_names_become_one_line_of_signs(name: str, shown: str) -> None:
    assert Text.of(name, "") == (shown, "")


def test_letters_of_other_languages_than_english_are_there() -> None:
    font = Lettering([], (640, 480)).font
    missing = bytes(font.getmask("\uffff"))
    for letter in "éïßñøčŁŷΣЖשب€°":
        assert bytes(font.getmask(letter)) != missing, letter


def test_a_label_is_as_high_as_its_letters() -> None:
    plain, high = (Lettering([Text(name, "")], (640, 480)) for name in ("cat", "ẤỌ"))
    assert high.height > plain.height
    assert Lettering([Text("cat", "")], (640, 480)).height == plain.height


def test_a_font_of_ones_own(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    bold = Path(spec.submodule_search_locations[0], "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf")  # type: ignore[index]
    boxes, names = [[10.0, 30.0, 90.0, 60.0]], ["cat"]
    usual = drawn(gray(160, 90), boxes, names)
    assert drawn(gray(160, 90), boxes, names, font=bold).tobytes() != usual.tobytes()
    (tmp_path / "text.ttf").write_text("no font")
    for wrong in (tmp_path / "text.ttf", tmp_path / "none.ttf", tmp_path):
        with pytest.raises(DetrKitError, match="cannot be read as a font") as caught:
            drawn(gray(160, 90), boxes, names, font=wrong)
        assert str(wrong) in str(caught.value)


def test_without_matplotlib_pillows_own_font_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, names = [[10.0, 30.0, 90.0, 60.0]], ["naïve"]
    usual = drawn(gray(160, 90), boxes, names)
    monkeypatch.setattr(labels, "find_spec", lambda name: None)
    assert drawn(gray(160, 90), boxes, names).tobytes() != usual.tobytes()


def test_ten_thousand_boxes_take_little_time_and_memory() -> None:
    boxes = random_boxes(10_000, (640, 480), (5, 150))
    names = [f"category {row % 91}" for row in range(10_000)]
    details = [f"{row / 10_000:.2f}" for row in range(10_000)]
    canvas = gray(640, 480)
    tracemalloc.start()
    start = time.process_time()
    draw_boxes(canvas, boxes, names, range(10_000), details=details)
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 10  # half a second, and three times that where memory is traced
    assert peak < 64 * 2**20


def test_nearly_all_boxes_of_real_pictures_get_a_label(shared_data: Path) -> None:
    for folder, least in (
        ("bccd/annotations/val", 0.99),
        ("coco_mini/annotations/instances_val2017", 0.9),
    ):
        content = json.loads((shared_data / f"{folder}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        num_boxes, num_left_out = 0, 0
        for image in content["images"]:
            own = [row for row in content["annotations"] if row["image_id"] == image["id"]]
            xywh = np.array([row["bbox"] for row in own]).reshape(-1, 4)
            corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
            size_wh = (image["width"], image["height"])
            boxes = corners.round().clip(0, np.array(size_wh * 2) - 1).astype(np.int64)
            _, places = placed(
                boxes, [Text(names[row["category_id"]], "0.50") for row in own], size_wh
            )
            num_boxes += len(own)
            num_left_out += places.num_left_out
        assert 1 - num_left_out / num_boxes > least
