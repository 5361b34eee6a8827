"""The comparisons with the official code show faults that are planted on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import pytest
from torch import Tensor

from tests.parity.compare import record
from tests.parity.faults import FAULTS, Fault
from tests.parity.official import sample_reference, weights
from tests.parity.ours import Setup, gradient_numbers, run
from tests.parity.table import Table

BY_CASE = sorted(FAULTS, key=lambda fault: fault.case)


@lru_cache(maxsize=1)
def case_weights(case: str) -> Mapping[str, Tensor]:
    """Return a case's weights; faults of one case run one after another, and write into none."""
    return weights(sample_reference(case))


@pytest.mark.parametrize("fault", BY_CASE, ids=[fault.name for fault in BY_CASE])
def test_a_planted_fault_fails_the_comparison(
    monkeypatch: pytest.MonkeyPatch, table: Table, fault: Fault
) -> None:
    reference = sample_reference(fault.case)
    setup = Setup.of(reference, case_weights(fault.case), fault.architecture)
    fault.plant(setup, monkeypatch)
    found = run(setup, reference, backward=fault.backward)
    gradients = (gradient_numbers([found])[0], None) if fault.backward else None

    faulty = Table()
    record(faulty, fault.case, reference, found, gradients=gradients)
    expected = f"{fault.case}: {fault.shown_by}"
    rows = {entry["comparison"]: entry for _, entry in faulty.properties}
    table.fault(
        fault.name,
        comparison=expected,
        difference=rows[expected]["float64"],
        bound=rows[expected]["bound"],
    )
    with pytest.raises(AssertionError) as caught:
        faulty.check()
    assert f"{expected}, float64" in str(caught.value)


def test_faults_have_names_of_their_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
