from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_kit.demo import limits as limits_module
from detr_kit.demo.limits import Limits, read_limited
from detr_kit.errors import DetrKitError
from detr_kit.images import ImageError, read_image

LIMITS = Limits()


def jpeg(size_wh: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size_wh[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def refusal(path: Path, limits: Limits = LIMITS) -> str:
    with pytest.raises(ImageError) as error:
        read_limited(path, limits)
    return str(error.value)


def test_a_picture_is_read_as_everywhere_else(tmp_path: Path) -> None:
    path = tmp_path / "street.jpg"
    path.write_bytes(jpeg())
    assert np.array_equal(read_limited(path, LIMITS), read_image(path))


def test_too_many_pixels_are_refused_before_any_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (1001, 1000)).save(path)
    monkeypatch.setattr(limits_module, "read_image", lambda path: pytest.fail("decoded"))
    assert refusal(path, Limits(pixels=10**6)) == (
        "large.png: image too large: 1001 x 1000 pixels; at most 1 million are taken"
    )


def test_as_many_pixels_as_are_allowed_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (1000, 1000)).save(path)
    assert read_limited(path, Limits(pixels=10**6)).shape == (1000, 1000, 3)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert refusal(path, Limits(pixels=1000)) == (
        "bomb.png: image too large: far too many pixels; at most 0.001 million are taken"
    )


def test_pillow_s_warning_is_not_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        message = refusal(path, Limits(pixels=1000))
    assert message.endswith("40 x 40 pixels; at most 0.001 million are taken")
    assert caught == []


def test_more_pixels_than_pillow_decodes_cannot_be_allowed() -> None:
    assert Limits(pixels=89_000_000).pixels == 89_000_000
    with pytest.raises(
        DetrKitError,
        match=r"pixels must be at most 89,478,485, above which .*, got 200,000,000$",
    ):
        Limits(pixels=200_000_000)


def test_where_pillow_s_limit_is_lifted_any_number_of_pixels_can_be_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert Limits(pixels=10**9).pixels == 10**9


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.jpg", b"Dear model, what do you see?", "not a picture of a known format"),
        ("empty.png", b"", "not a picture of a known format"),
        ("cut.jpg", jpeg()[:900], "truncated"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture of a known"),
        (
            "program.eps",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "EPS is a program that draws",
        ),
    ],
)
def test_a_bad_picture_is_named_without_its_folder(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"{name}: ")
    assert reason in message
    assert str(tmp_path) not in message


def test_a_file_that_is_gone_is_named_without_its_folder(tmp_path: Path) -> None:
    message = refusal(tmp_path / "gone.jpg")
    assert message.startswith("gone.jpg: ")
    assert str(tmp_path) not in message


@pytest.mark.parametrize("name", ["file_bytes", "pixels", "waiting"])
def test_limits_leave_room_for_something(name: str) -> None:
    with pytest.raises(DetrKitError, match=f"{name} must be at least 1, got 0"):
        Limits(**{name: 0})
