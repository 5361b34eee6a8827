"""Which query found each object: changes from epoch to epoch, over processes and after a stop."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from detr_kit.config import RunConfig
from detr_kit.structures import TargetBatch
from detr_kit.training.matching_record import MatchingRecord
from detr_kit.training.session import Session


def targets_of(rows: Sequence[int] | None) -> TargetBatch:
    count = 0 if rows is None else len(rows)
    known = None if rows is None else np.array(rows, dtype=np.int64)
    labels, boxes = torch.zeros(count, dtype=torch.int64), torch.zeros(count, 4)
    return TargetBatch(labels, boxes, (count,), (1,), known)


def add(record: MatchingRecord, queries: dict[int, int]) -> None:
    """Match each row to a query in the last of two layers, and to query 0 in the first."""
    query = np.array(list(queries.values()), dtype=np.int64)
    zeros, place = np.zeros_like(query), np.arange(len(query))
    pairs = np.stack([[zeros, zeros], [zeros, query], [place, place[::-1]]])
    record.add(pairs, targets_of(list(queries)[::-1]))


def test_the_first_epoch_has_nothing_to_compare_with() -> None:
    record = MatchingRecord(3, 5)
    add(record, {0: 1, 1: 2})
    assert record.finish_epoch() == {"query_changed": None, "queries_never_matched": 3}


def test_changes_are_counted_among_the_objects_of_both_epochs() -> None:
    record = MatchingRecord(5, 8)
    add(record, {0: 1, 1: 2, 2: 3, 4: 7})
    record.finish_epoch()
    add(record, {0: 1, 1: 6})
    add(record, {2: 4, 3: 5})  # object 3 is new, object 4 does not come again
    assert record.finish_epoch() == {"query_changed": 2 / 3, "queries_never_matched": 4}
    # compared with the last epoch, not with any before
    add(record, {1: 6, 4: 7})
    assert record.finish_epoch() == {"query_changed": 0.0, "queries_never_matched": 6}


def test_the_last_time_of_an_object_counts() -> None:
    record = MatchingRecord(2, 4)
    add(record, {0: 1})
    record.finish_epoch()
    add(record, {0: 3})
    add(record, {0: 1})
    assert record.finish_epoch() == {"query_changed": 0.0, "queries_never_matched": 2}


def test_objects_of_unknown_row_count_for_the_queries_only() -> None:
    record = MatchingRecord(2, 4)
    for _ in range(2):
        add(record, {-1: 3, 1: 0})
        pairs = np.array([[[0]], [[2]], [[0]]])
        record.add(pairs, targets_of(None))
        result = record.finish_epoch()
    assert result == {"query_changed": 0.0, "queries_never_matched": 1}


def test_batches_without_objects_change_nothing() -> None:
    record = MatchingRecord(2, 4)
    record.add(np.zeros((3, 6, 0), dtype=np.int64), targets_of([]))
    record.add(np.zeros((3, 6, 0), dtype=np.int64), targets_of(None))
    assert record.finish_epoch() == {"query_changed": None, "queries_never_matched": 4}


def test_processes_that_share_an_epoch_give_what_one_process_gives() -> None:
    """The objects are shared out anew in each epoch."""
    rng = np.random.default_rng(0)
    whole, parts = MatchingRecord(40, 10), [MatchingRecord(40, 10) for _ in range(2)]
    for _ in range(4):
        queries = dict(enumerate(rng.integers(9, size=40).tolist()))
        owner = rng.integers(2, size=40)
        add(whole, queries)
        for rank, part in enumerate(parts):
            add(part, {row: query for row, query in queries.items() if owner[row] == rank})
        seen = [(part._current.copy(), part._matched.copy()) for part in parts]
        results = [part.finish_epoch(lambda own, seen=seen: seen) for part in parts]
        assert results == [whole.finish_epoch()] * 2
    assert results[0]["query_changed"] > 0.5


def test_a_record_goes_on_in_mid_epoch() -> None:
    record, stopped = MatchingRecord(4, 6), MatchingRecord(4, 6)
    for each in (record, stopped):
        add(each, {0: 1, 1: 2, 2: 3})
        each.finish_epoch()
        add(each, {0: 1, 1: 4})
    file = io.BytesIO()
    torch.save(stopped.state(), file)
    file.seek(0)
    add(stopped, {2: 0})  # of no consequence for what was saved
    resumed = MatchingRecord(4, 6)
    resumed.restore(torch.load(file, weights_only=True))
    for each in (record, resumed):
        add(each, {2: 3, 3: 5})
    first = record.finish_epoch()
    assert first == resumed.finish_epoch() == {"query_changed": 1 / 3, "queries_never_matched": 2}
    for each in (record, resumed):
        add(each, {3: 1})
    assert record.finish_epoch() == resumed.finish_epoch()


@pytest.mark.parametrize("other", [MatchingRecord(3, 6), MatchingRecord(4, 7)])
def test_the_state_of_other_data_is_left_alone(other: MatchingRecord) -> None:
    record = MatchingRecord(4, 6)
    add(record, {0: 1})
    record.restore(other.state())
    assert record.finish_epoch()["queries_never_matched"] == 5


@pytest.mark.parametrize(
    ("family", "changes", "changed"),
    [
        ("detr", {}, 0.5),
        ("deformable", {"query_selection": "full"}, None),
        ("groups", {"query_selection": "mixed"}, None),
        ("groups", {"query_selection": "none"}, 0.5),
    ],
)
def test_ranks_of_selected_queries_are_not_compared(
    tiny_config: Callable[..., RunConfig],
    sample: Path,
    tmp_path: Path,
    family: str,
    changes: dict[str, str],
    changed: float | None,
) -> None:
    config = tiny_config(sample, tmp_path / "run", family=family)
    model = config.model.model_copy(update=changes)
    record = Session(config.model_copy(update={"model": model})).matching
    for queries in ({0: 1, 1: 2}, {0: 1, 1: 3}):
        add(record, queries)
        result = record.finish_epoch()
    assert result == {"query_changed": changed, "queries_never_matched": 4}


def test_many_queries_are_told_apart() -> None:
    record = MatchingRecord(1, 70_000)
    add(record, {0: 66_000})
    record.finish_epoch()
    add(record, {0: 66_000 - 2**16})
    assert record.finish_epoch()["query_changed"] == 1.0
