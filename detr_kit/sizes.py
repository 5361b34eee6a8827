"""Which size a picture is resized to: the rules of the official recipes and of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from detr_kit.errors import DetrKitError

SizeHW = tuple[int, int]

USUAL_SIZE_HW: SizeHW = (480, 640)  # COCO's most frequent one


@dataclass(frozen=True)
class SizeRule:
    """Which size a picture is resized to.

    - `detr`: the short side becomes `short_side`; where the long side would pass `long_side`, the
      short side is round(long_side * short / long) first; the other side is int(side * ratio).
    - `yolos_16`: the same, then both sides are floored to multiples of 16.
    - `huggingface`: as DETR's image processor in transformers: the other side is computed from
      the capped short side before its rounding, so that the long side meets the cap.
    - `huggingface_16`: as YOLOS's image processor there: the same, floored to multiples of 16.
    - `fit`: scaled, up too, until a side meets `short_side` and the other is at most that.
    - `square`: both sides become `short_side`; the aspect ratio is not kept.

    `long_side` None is no cap; `fit` and `square` do not use it.
    """

    rule: str
    short_side: int
    long_side: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in _SIZE_RULES:
            raise DetrKitError(f"unknown size rule {self.rule!r}; one of {', '.join(_SIZE_RULES)}")
        if self.short_side < 1 or (self.long_side is not None and self.long_side < 1):
            raise DetrKitError("the sides of a size rule must be at least 1")
        if self.rule.endswith("_16") and min(self.short_side, self.long_side or 16) < 16:
            raise DetrKitError(f"the sides of the size rule {self.rule} must be at least 16")

    def target_hw(self, size_hw: SizeHW) -> SizeHW:
        """Return the (height, width) that a picture of `size_hw` is resized to."""
        return _SIZE_RULES[self.rule](size_hw, self.short_side, self.long_side)


def _detr_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    exact = _capped_side(size_hw, short_side, long_side)
    # A stripe whose short side rounds to 0 keeps the cap on its long side.
    return _around(size_hw, round(exact), round(exact) or exact)


def _huggingface_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    exact = _capped_side(size_hw, short_side, long_side)
    return _around(size_hw, round(exact), exact)


def _capped_side(size_hw: SizeHW, short_side: int, long_side: int | None) -> float:
    """Return the short side at which the long side keeps the cap, at most `short_side`."""
    low, high = min(size_hw), max(size_hw)
    if long_side is not None and high / low * short_side > long_side:
        return long_side * low / high
    return short_side


def _around(size_hw: SizeHW, short_side: int, factor: float) -> SizeHW:
    """Give the short side `short_side` and the other int(factor * ratio), each at least 1."""
    height, width = size_hw
    if min(size_hw) == short_side:
        return size_hw
    if width < height:
        return max(int(factor * height / width), 1), max(short_side, 1)
    return max(short_side, 1), max(int(factor * width / height), 1)


def _yolos_16_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    return _floored_16(*_detr_hw(size_hw, short_side, long_side))


def _huggingface_16_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    height, width = size_hw
    if width >= height:
        return _floored_16(*_huggingface_hw(size_hw, short_side, long_side))
    # Unlike DETR's, YOLOS's processor has no exception for upright pictures of the right width.
    exact = _capped_side(size_hw, short_side, long_side)
    return _floored_16(int(exact * height / width), round(exact))


def _floored_16(height: int, width: int) -> SizeHW:
    return max(height // 16 * 16, 16), max(width // 16 * 16, 16)


def _fit_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    height, width = size_hw
    scale = min(short_side / height, short_side / width)
    return max(int(height * scale), 1), max(int(width * scale), 1)


def _square_hw(size_hw: SizeHW, short_side: int, long_side: int | None) -> SizeHW:
    return short_side, short_side


_SIZE_RULES: dict[str, Callable[[SizeHW, int, int | None], SizeHW]] = {
    "detr": _detr_hw,
    "yolos_16": _yolos_16_hw,
    "huggingface": _huggingface_hw,
    "huggingface_16": _huggingface_16_hw,
    "fit": _fit_hw,
    "square": _square_hw,
}
