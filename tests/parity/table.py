"""Rows of the table of parity, and the bounds that they are held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Table:
    """Collects what one test compared; `tools/parity.py` prints it.

    `properties` is where rows are reported (a pytest item's `user_properties`).
    """

    properties: list[tuple[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def row(
        self,
        comparison: str,
        *,
        float64: float | None = None,
        float32: float | None = None,
        bound: float | None = None,
        float32_bound: float | None = None,
    ) -> None:
        """Record how far two sides are apart, and the bounds that `check` asserts.

        `bound` is for `float64`, `float32_bound` for `float32`; without one, a number is only
        shown. A difference that is not a number keeps no bound.
        """
        failures = [
            f"{comparison}, {kind}: {difference:.3g} is above {limit:.0e}"
            for kind, difference, limit in (
                ("float64", float64, bound),
                ("float32", float32, float32_bound),
            )
            if difference is not None and limit is not None and not difference <= limit
        ]
        self.failures += failures
        entry = {
            "comparison": comparison,
            "float64": _plain(float64),
            "float32": _plain(float32),
            "bound": _plain(bound),
            "float32_bound": _plain(float32_bound),
            "passed": not failures,
        }
        self.properties.append(("parity", entry))

    def fault(self, fault: str, *, comparison: str, difference: float, bound: float) -> None:
        """Record a planted fault, and the comparison that shows it."""
        entry = {
            "fault": fault,
            "comparison": comparison,
            "difference": _plain(difference),
            "bound": _plain(bound),
            "passed": not difference <= bound,
        }
        self.properties.append(("fault", entry))

    def check(self) -> None:
        """Raise AssertionError naming every row above its bound since the last check."""
        failures, self.failures = self.failures, []
        assert not failures, "\n".join(["", *failures])


def _plain(number: float | None) -> float | None:
    """Return a Python float: processes of a test run exchange nothing else."""
    return None if number is None else float(number)
