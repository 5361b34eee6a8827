"""Texts of any origin made fit for a page: no control characters, never too long."""

from __future__ import annotations

import re
import unicodedata

_SPACE = re.compile(r"[\t\n\r]")
# Control characters, halves of surrogate pairs and what is no character; and those that turn the
# direction of all that follows, also of our own words.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")


def readable(text: object, limit: int = 300) -> str:
    """Return `text` in one line of at most `limit` characters; what has no sign becomes U+FFFD.

    The end of longer texts is replaced by an ellipsis.
    """
    text = str(text)
    shown = _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", _SPACE.sub(" ", text[:limit]))
    return shown if len(text) <= limit else f"{shown[: limit - 1].rstrip()}…"


def width_of(text: str, size: float) -> float:
    """Estimate the width of `text` in a sans-serif font of `size`; rather too wide than too narrow.

    Which font a reader has is not known.
    """
    return size * sum(map(_advance, text))


def _advance(sign: str) -> float:
    if unicodedata.combining(sign):
        return 0.0
    if ord(sign) > 0x2E80 or unicodedata.east_asian_width(sign) in "WF":
        return 1.1
    if sign in "iIjl.,:;!|'()[]/ -":
        return 0.35
    if sign in "mwMW@%—":
        return 0.92
    if sign.isdigit():
        return 0.64
    return 0.7 if sign.isupper() else 0.6


def fitted(text: str, width: float, size: float) -> str:
    """Cut `text` with an ellipsis where it is wider than `width`."""
    text = readable(text, 200)
    if width_of(text, size) <= width:
        return text
    room = width - width_of("…", size)
    kept = 0
    while kept < len(text) and (room := room - size * _advance(text[kept])) >= 0:
        kept += 1
    return f"{text[:kept].rstrip()}…"


def grouped(value: float) -> str:
    """Write an integer as 12,345."""
    return f"{int(value):,}"


def counted(value: float, noun: str, plural: str = "") -> str:
    """Write 1 object or 12,345 objects."""
    return f"{grouped(value)} {noun if value == 1 else plural or f'{noun}s'}"


def compact(value: float) -> str:
    """Write a number for an axis, where there is little room: 950, 1.2k, 86k, 3M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:g}"


def decimal(value: float, places: int = 3) -> str:
    """Write 0.123, and numbers that would become long as 1.234e+05."""
    return f"{value:.{places}f}" if abs(value) < 1000 else f"{value:.4g}"


def percent(part: float, whole: float) -> str:
    """Write a share as 41 %, and what rounds to nothing as < 1 %."""
    if not part or not whole:
        return "0 %"
    share = 100 * part / whole
    return "< 1 %" if share < 1 else f"{share:.0f} %" if share <= 99 or part == whole else "> 99 %"
