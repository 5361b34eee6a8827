"""What is compared between splits: their categories and the content of their pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detr_kit.data.checks.findings import MAX_CASES, Findings
from detr_kit.data.checks.splits import check_categories, check_shared_pictures
from detr_kit.data.coco_file import CocoColumns, read_columns
from tests.data.checks.corpus import coco


@pytest.fixture
def split(tmp_path: Path) -> Any:
    def build(
        name: str, categories: list[tuple[int, str]] | None = None, files: tuple[str, ...] = ()
    ) -> CocoColumns:
        content = coco()
        if categories is not None:
            content["categories"] = [{"id": id_, "name": text} for id_, text in categories]
        if files:
            content["images"] = [
                {"id": 1 + row, "file_name": file, "width": 9, "height": 9}
                for row, file in enumerate(files)
            ]
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return read_columns(path)

    return build


def lines(kind: str, findings: list[Findings]) -> list[list[str]]:
    """Return the cases of each split."""
    return [
        [case.text for finding in found.listed() if finding.kind == kind for case in finding.cases]
        for found in findings
    ]


def categories_of(*splits: CocoColumns) -> list[list[str]]:
    findings = [Findings(columns.path) for columns in splits]
    check_categories(splits, findings)
    return lines("categories_differ", findings)


class TestCategories:
    def test_the_same_ids_and_names_in_any_order_agree(self, split: Any) -> None:
        train = split("train.json", [(3, "cat"), (7, "dog")])
        assert categories_of(train, split("val.json", [(7, "dog"), (3, "cat")])) == [[], []]

    def test_what_differs_is_named_in_the_later_split_by_the_order_of_ids(self, split: Any) -> None:
        train = split("train.json", [(3, "cat"), (7, "dog"), (8, "cow")])
        val = split("val.json", [(9, "pig"), (3, "cat"), (7, "[red]dog")])
        assert categories_of(train, val) == [
            [],
            [
                "category 7: '[red]dog' here, 'dog' in train.json",
                "category 8: missing here, 'cow' in train.json",
                "category 9: 'pig' here, missing in train.json",
            ],
        ]

    def test_every_split_is_compared_with_the_first(self, split: Any) -> None:
        splits = [split("a.json", [(1, "x")]), split("b.json", [(1, "x")]), split("c.json", [])]
        assert [len(found) for found in categories_of(*splits)] == [0, 0, 1]

    def test_ids_shifted_by_one_are_all_counted(self, split: Any) -> None:
        names = [f"name {row}" for row in range(80)]
        train = split("train.json", list(enumerate(names, 1)))
        val = split("val.json", list(enumerate(names)))
        findings = [Findings(train.path), Findings(val.path)]
        check_categories([train, val], findings)
        (finding,) = findings[1].listed()
        assert (finding.count, len(finding.cases)) == (81, MAX_CASES)

    def test_one_split_and_none_agree_with_themselves(self, split: Any) -> None:
        assert categories_of(split("a.json")) == [[]]
        assert categories_of() == []


class TestSharedPictures:
    def shared(self, splits: list[CocoColumns], digests: list[dict[str, bytes]]) -> list[list[str]]:
        findings = [Findings(columns.path) for columns in splits]
        check_shared_pictures(splits, digests, findings)
        return lines("shared_picture", findings)

    def test_the_same_content_is_found_under_any_name(self, split: Any) -> None:
        splits = [
            split("train.json", files=("a.jpg", "b.jpg")),
            split("val.json", files=("c.jpg",)),
        ]
        digests = [{"a.jpg": b"1", "b.jpg": b"2"}, {"c.jpg": b"2"}]
        assert self.shared(splits, digests) == [
            [],
            ["image 1 'c.jpg': the same content as 'b.jpg' of train.json"],
        ]

    def test_the_same_name_with_another_content_is_not_shared(self, split: Any) -> None:
        splits = [split("train.json", files=("a.jpg",)), split("val.json", files=("a.jpg",))]
        assert self.shared(splits, [{"a.jpg": b"1"}, {"a.jpg": b"2"}]) == [[], []]

    def test_twice_in_one_split_is_not_shared(self, split: Any) -> None:
        splits = [
            split("train.json", files=("a.jpg", "b.jpg")),
            split("val.json", files=("c.jpg",)),
        ]
        assert self.shared(splits, [{"a.jpg": b"1", "b.jpg": b"1"}, {"c.jpg": b"3"}]) == [[], []]

    def test_files_without_a_digest_are_passed_over(self, split: Any) -> None:
        splits = [split("train.json", files=("a.jpg",)), split("val.json", files=("a.jpg",))]
        assert self.shared(splits, [{}, {}]) == [[], []]

    def test_a_third_split_is_compared_with_both(self, split: Any) -> None:
        splits = [split(f"{name}.json", files=(f"{name}.jpg",)) for name in "abc"]
        digests = [{"a.jpg": b"1"}, {"b.jpg": b"2"}, {"c.jpg": b"2"}]
        assert self.shared(splits, digests) == [
            [],
            [],
            ["image 1 'c.jpg': the same content as 'b.jpg' of b.json"],
        ]

    def test_all_are_counted(self, split: Any) -> None:
        files = tuple(f"{row}.jpg" for row in range(MAX_CASES + 5))
        splits = [split("train.json", files=files), split("val.json", files=files)]
        digests = {name: name.encode() for name in files}
        findings = [Findings(columns.path) for columns in splits]
        check_shared_pictures(splits, [digests, digests], findings)
        (finding,) = findings[1].listed()
        assert (finding.count, len(finding.cases)) == (MAX_CASES + 5, MAX_CASES)
