"""What the parity tests share: the table that `tools/parity.py` prints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.parity.table import Table


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Collect rows with `table.row(...)`; the test fails at its end where one is above its bound.

    A test that calls `table.check()` itself fails there.
    """
    rows = Table(request.node.user_properties)
    yield rows
    rows.check()
