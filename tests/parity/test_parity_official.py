"""Outputs, losses, gradients and detections equal the official code's, case by case."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.compare import Numbers, record, spread_over_queries
from tests.parity.official import CASES, SAMPLE, full_reference, sample_reference, weights
from tests.parity.ours import Run, Setup, gradient_numbers, run
from tests.parity.table import Table
from tools.parity_sample import write_sample

# Only their outputs, losses and detections in float64 are compared by default.
LARGE = ("detr_r101", "yolos_b")
REFERENCES = ("sample", "full")
Results = tuple[Run, Run | None, tuple[Numbers, Numbers] | None]


@lru_cache(maxsize=1)
def results(case: str, *, complete: bool) -> Results:
    """Run a case in float64; if `complete`, in float32 and with both backward passes too."""
    reference = sample_reference(case)
    setup = Setup.of(reference, weights(reference))
    float64 = run(setup, reference, backward=complete)
    if not complete:
        return float64, None, None
    setup.model.float()
    float32 = run(setup, reference, backward=True)
    exact, single = gradient_numbers([float64, float32])
    return float64, float32, (exact, single)


def compare(
    request: pytest.FixtureRequest, table: Table, case: str, kind: str, *, complete: bool
) -> Run:
    """Compare a case with the full reference or the committed part of it; return float64's run."""
    reference = sample_reference(case)
    if kind == "full":
        reference = full_reference(request.getfixturevalue("shared_fixtures"), case)
    float64, float32, gradients = results(case, complete=complete)
    record(table, f"official {case}, {kind}", reference, float64, float32, gradients)
    table.check()
    return float64


@pytest.mark.parametrize(("case", "kind"), [(case, kind) for case in CASES for kind in REFERENCES])
def test_a_case_equals_the_official_code(
    request: pytest.FixtureRequest, table: Table, case: str, kind: str
) -> None:
    found = compare(request, table, case, kind, complete=case not in LARGE)
    # Equal numbers say nothing where all queries answer alike.
    assert spread_over_queries(found.output.logits) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("case", "kind"), [(case, kind) for case in LARGE for kind in REFERENCES])
def test_a_large_case_equals_the_official_code_with_its_gradients(
    request: pytest.FixtureRequest, table: Table, case: str, kind: str
) -> None:
    compare(request, table, case, kind, complete=True)


def test_every_gradient_of_the_references_is_compared() -> None:
    for case in CASES:
        reference = sample_reference(case)
        trained = {
            key
            for key in reference.keys
            if not key.startswith(("backbone.0.body.conv1", "backbone.0.body.layer1."))
            and not (".bn" in key or ".downsample.1." in key)
        }
        assert reference.gradients.keys() == trained


def test_the_spread_over_queries_is_that_of_the_two_most_alike() -> None:
    values = torch.tensor(
        [[[0.0, 9.0], [4.0, 9.0], [4.5, 7.0]], [[1.0, 0.0], [5.0, 0.0], [9.0, 0.0]]]
    )
    assert spread_over_queries(values) == 2.0
    assert spread_over_queries(values[1]) == 4.0


def test_the_sample_is_what_the_tool_makes_of_the_references(
    shared_fixtures: Path, tmp_path: Path
) -> None:
    write_sample(shared_fixtures, tmp_path / SAMPLE.name)
    for suffix in (".json", ".safetensors"):
        written = (tmp_path / SAMPLE.name).with_suffix(suffix).read_bytes()
        assert written == SAMPLE.with_suffix(suffix).read_bytes()


@pytest.mark.parametrize("broken", [np.nan, np.inf, 2e-9])
def test_a_difference_above_the_bound_fails_the_table(broken: float) -> None:
    table = Table()
    table.row("something", float64=broken, bound=1e-9)
    assert not table.properties[0][1]["passed"]
    with pytest.raises(AssertionError, match="something, float64"):
        table.check()
    table.row("something", float64=1e-9, bound=1e-9)
    table.check()
