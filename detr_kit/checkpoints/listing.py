"""Names in one line of a message."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], shown: int = 10) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
