"""Reading values out of the rows of a `metrics.jsonl`, see `detr_kit.training.run_files`.

A row may be of another version, or hold null: what is no number is nan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def value_of(row: Mapping[str, Any], *keys: str) -> float:
    """Return the number under nested keys, nan where there is none."""
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def values_of(rows: Sequence[Mapping[str, Any]], *keys: str) -> np.ndarray:
    """Return the numbers under nested keys of each row, (N,) float64."""
    return np.array([value_of(row, *keys) for row in rows], dtype=np.float64)
