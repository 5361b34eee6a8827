"""The weight of the class in the matching, where a config does not give it."""

from __future__ import annotations

import pytest

from detr_kit.config import parse_config
from detr_kit.training import session


@pytest.mark.parametrize(
    ("given", "scoring", "expected"),
    [(None, "softmax", 1.0), (None, "sigmoid", 2.0), (0.5, "softmax", 0.5), (0.0, "sigmoid", 0.0)],
)
def test_the_class_costs_what_the_scoring_was_published_with(
    given: float | None, scoring: str, expected: float
) -> None:
    values = {"epochs": 1, "model": {"name": "detr_small"}, "loss": {"class_cost": given}}
    config = parse_config(values, "test")
    assert session._criterion(config, 3, scoring).matcher.class_cost == expected  # type: ignore[arg-type]
