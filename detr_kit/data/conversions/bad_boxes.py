"""Objects of label files whose box cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

from detr_kit.data.soundness import OnBadBox
from detr_kit.errors import DetrKitError


class BadBoxError(ValueError):
    """The box of an object has no side, lies outside its picture or is not finite."""


def require_no_bad_boxes(found: Sequence[str], what: str, on_bad_box: OnBadBox) -> None:
    """Raise DetrKitError with the first of the faults that were found, unless to be skipped.

    Each names its place; `what` says what there are several of, such as "lines".
    """
    if found and on_bad_box == "raise":
        raise DetrKitError(
            f"{found[0]} ({len(found)} such {what}; --on-bad-box skip leaves them out)"
        )
