"""The map from columns to categories (A1)."""

from __future__ import annotations

import json

import pytest

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError


@pytest.mark.parametrize("ids", [[0], list(range(1, 11)), [3, 7, 91], [91, 3, 7]])
def test_columns_follow_the_ids_and_travel(ids: list[int]) -> None:
    table = CategoryTable.from_coco([{"id": id_, "name": f"c{id_}"} for id_ in ids])
    assert table.ids == tuple(sorted(ids))
    assert [table.column_of[id_] for id_ in sorted(ids)] == list(range(len(ids)))
    assert CategoryTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_unused_columns_stand_for_no_category() -> None:
    table = CategoryTable((1, 2, 3), ("a", "gap", "c"), (True, False, True))
    assert table.column_of == {1: 0, 3: 2}
    assert CategoryTable.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no category"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "id 1 appears twice"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "name a appears twice"),
    ],
)
def test_tables_that_map_nothing_are_refused(rows: list[dict], message: str) -> None:
    with pytest.raises(DetrKitError, match=message):
        CategoryTable.from_coco(rows)


def test_the_first_difference_of_two_tables_is_named() -> None:
    ours = CategoryTable((1, 2), ("a", "b"))
    ours.require_same(CategoryTable((1, 2), ("a", "b")), "train.json", "val.json")
    with pytest.raises(DetrKitError, match=r"val\.json: categories differ .* id 2 is 'c' there"):
        ours.require_same(CategoryTable((1, 2), ("a", "c")), "train.json", "val.json")
