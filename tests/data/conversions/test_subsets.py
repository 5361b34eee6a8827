"""Splits with every class's share, merges that lose nothing, subsets of classes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.data.annotations import load_annotations
from detr_kit.data.conversions.merging import merge
from detr_kit.data.conversions.stratification import part_sizes, stratify
from detr_kit.data.conversions.subsets import split, subset
from detr_kit.errors import DetrKitError
from tests.data.conversions.label_files import written

FIXED = settings(derandomize=True, deadline=None, max_examples=100)
FRACTIONS = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


def coco_file(path: Path, **changes: Any) -> Path:
    """Four pictures, the last without objects; keys that nobody knows in every kind of record."""
    content: dict[str, Any] = {
        "info": {"year": 2024},
        "licenses": [{"id": 1, "name": "CC BY"}],
        "images": [
            {
                "id": id_, "file_name": f"{id_}.png", "width": 40, "height": 20, "license": 1,
                "camera": {"iso": 100.50},
            }
            for id_ in (5, 6, 7, 8)
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 2, 3, 4.50], "note": "ö"},
            {"id": 2, "image_id": 6, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1,
             "segmentation": {"counts": [1, 2], "size": [20, 40]}},
            {"id": 3, "image_id": 6, "category_id": 9, "bbox": [1, 2, 3, 4], "attributes": {}},
            {"id": 4, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4]},
        ],
        "categories": [
            {"id": 9, "name": "star", "supercategory": "shape"}, {"id": 3, "name": "circle"},
        ],
        "odd key": [1, {"a": None}],
    }  # fmt: skip
    path.write_text(json.dumps({**content, **changes}, indent=2))
    return path


def by_id(records: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {record["id"]: record for record in records}


class TestPartSizes:
    @pytest.mark.parametrize(
        ("total", "fractions", "wanted"),
        [
            (10, [0.7, 0.3], [7, 3]),  # 0.7 * 10 is 7.000000000000001 or less
            (10, [1 / 3] * 3, [4, 3, 3]),
            (79, [0.8, 0.1, 0.1], [63, 8, 8]),
            (3, [0.9, 0.1], [3, 0]),
            (0, [0.5, 0.5], [0, 0]),
        ],
    )
    def test_the_largest_remainders_get_what_is_over(
        self, total: int, fractions: list[float], wanted: list[int]
    ) -> None:
        assert part_sizes(total, fractions) == wanted

    @FIXED
    @given(st.integers(0, 5000), FRACTIONS)
    def test_they_sum_up_and_are_less_than_one_off(
        self, total: int, fractions: list[float]
    ) -> None:
        sizes = part_sizes(total, fractions)
        assert sum(sizes) == total
        assert all(
            abs(size - part * total) < 1 for size, part in zip(sizes, fractions, strict=True)
        )


class TestStratify:
    @FIXED
    @given(st.lists(st.sets(st.integers(0, 5), max_size=3), max_size=60), FRACTIONS)
    def test_every_picture_is_in_one_part_of_exact_size(
        self, classes_of: list[set[int]], fractions: list[float]
    ) -> None:
        parts = stratify(classes_of, fractions, seed=3)
        counts = np.bincount(parts, minlength=len(fractions))
        assert counts.tolist() == part_sizes(len(classes_of), fractions)

    def test_classes_that_divide_evenly_are_divided_evenly(self) -> None:
        classes_of = [{0}] * 40 + [{1}] * 10 + [set()] * 30 + [{2, 3}] * 20
        for seed in range(20):
            second = stratify(classes_of, [0.8, 0.2], seed=seed) == 1
            counts = [part.sum() for part in np.split(second, [40, 50, 80])]
            assert counts == [8, 2, 6, 4]

    def test_a_class_of_one_picture_for_each_part_is_in_each(self) -> None:
        classes_of = [{0}] * 30 + [{1}] * 2
        for seed in range(20):
            parts = stratify(classes_of, [0.5, 0.5], seed=seed)
            assert sorted(parts[30:]) == [0, 1]


class TestSplit:
    def test_records_go_to_one_file_each_as_they_are(self, tmp_path: Path) -> None:
        source = coco_file(tmp_path / "in.json")
        outs = {tmp_path / "a.json": 0.75, tmp_path / "b.json": 0.25}
        reports = split(source, outs)
        before, parts = written(source), [written(path) for path in outs]
        assert [report.num_images for report in reports] == [3, 1]
        for section in ("images", "annotations"):
            together = [record for part in parts for record in part[section]]
            assert by_id(together) == by_id(before[section])
            assert len(together) == len(before[section])
        for part in parts:
            assert list(part) == list(before)
            for key in ("info", "licenses", "categories", "odd key"):
                assert part[key] == before[key]
            assert {one["image_id"] for one in part["annotations"]} <= by_id(part["images"]).keys()
        text = (tmp_path / "a.json").read_text() + (tmp_path / "b.json").read_text()
        assert '"iso":100.5' in text
        assert ": " not in text
        assert str(reports[1]).startswith(f"{tmp_path / 'b.json'}: 1 pictures, ")

    def test_a_seed_gives_the_same_files_and_another_gives_others(
        self, shared_data: Path, tmp_path: Path
    ) -> None:
        source = shared_data / "bccd/annotations/train.json"
        for name, seed in (("one", 4), ("two", 4), ("other", 5)):
            folder = tmp_path / name
            split(source, {folder / "a.json": 0.8, folder / "b.json": 0.2}, seed=seed)
        for name in ("a.json", "b.json"):
            one, two, other = (
                (tmp_path / folder / name).read_bytes() for folder in ("one", "two", "other")
            )
            assert one == two
            assert one != other

    def test_classes_have_their_shares_unlike_in_random_splits(
        self, shared_data: Path, tmp_path: Path
    ) -> None:
        source = shared_data / "coco_mini/annotations/instances_train2017.json"
        classes_of = classes_of_images(source)

        pictures = Counter(name for found in classes_of for name in found)

        def deviation(in_val: np.ndarray) -> float:
            """Mean over classes of how far the share of its pictures in val is from 0.2."""
            pairs = zip(classes_of, in_val, strict=True)
            val = Counter(name for found, inside in pairs if inside for name in found)
            return float(np.mean([abs(val[name] / pictures[name] - 0.2) for name in pictures]))

        # Whole pictures cannot do better: most classes have two or three.
        least = np.mean(
            [min(abs(k / count - 0.2) for k in range(count + 1)) for count in pictures.values()]
        )
        rng = np.random.default_rng(0)
        rows = np.arange(len(classes_of))
        chance = [deviation(np.isin(rows, rng.permutation(rows)[:16])) for _ in range(500)]
        ids = [image["id"] for image in written(source)["images"]]
        for seed in range(5):
            outs = {tmp_path / "train.json": 0.8, tmp_path / "val.json": 0.2}
            split(source, outs, seed=seed)
            inside = [image["id"] for image in written(tmp_path / "val.json")["images"]]
            assert len(inside) == 16
            found = deviation(np.isin(ids, inside))
            assert found < min(chance)
            assert found - least < 0.5 * (np.mean(chance) - least)

    def test_fractions_may_be_rounded(self, tmp_path: Path) -> None:
        source = coco_file(tmp_path / "in.json")
        outs = {tmp_path / f"{name}.json": 0.33 for name in "abc"}
        assert [report.num_images for report in split(source, outs)] == [2, 1, 1]

    @pytest.mark.parametrize(
        ("outs", "seed", "message"),
        [
            ({"a.json": 0.8, "b.json": 0.1}, 0, "must sum to 1, these sum to 0.9"),
            ({}, 0, "must sum to 1"),
            ({"a.json": 1.2, "b.json": -0.2}, 0, r"b.json=-0.2: a fraction must be more than 0"),
            ({"a.json": float("nan"), "b.json": 1}, 0, "a.json=nan: a fraction must be"),
            ({"a.json": 0.95, "b.json": 0.05}, 0, "b.json: no picture is left for it of the 4"),
            ({"in.json": 0.5, "b.json": 0.5}, 0, r"in.json: it is an input"),
            ({"a.json": 0.5, "x/../a.json": 0.5}, 0, r"a.json: named twice as a file to write"),
            ({"a.json": 0.5, "a.png": 0.5}, 0, r"a.png: it is there and no .json"),
            ({"a.json": 0.5, ".": 0.5}, 0, "it is a folder"),
            ({"a.json": 0.5, "b.json": 0.5}, -1, "seed=-1: expected a whole number"),
        ],
        ids=str,
    )
    def test_what_cannot_be_done_is_named(
        self, tmp_path: Path, outs: dict[str, float], seed: int, message: str
    ) -> None:
        source = coco_file(tmp_path / "in.json")
        (tmp_path / "a.png").touch()
        with pytest.raises(DetrKitError, match=message):
            split(source, {tmp_path / name: part for name, part in outs.items()}, seed=seed)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "in.json"]

    def test_what_would_be_lost_is_named(self, tmp_path: Path) -> None:
        stray = [{"id": 1, "image_id": 99, "category_id": 3, "bbox": [1, 2, 3, 4]}]
        source = coco_file(tmp_path / "in.json", annotations=stray)
        with pytest.raises(DetrKitError, match="annotation 1: no image has the id 99"):
            split(source, {tmp_path / "a.json": 1.0})


def classes_of_images(path: Path) -> list[set[int]]:
    annotations = load_annotations(path, on_bad_box="skip")
    return [{*annotations.objects_of(row)[1].tolist()} for row in range(len(annotations))]


class TestMerge:
    def test_parts_of_a_split_give_the_whole(self, shared_data: Path, tmp_path: Path) -> None:
        source = shared_data / "coco_mini/annotations/instances_train2017.json"
        outs = {tmp_path / "a.json": 0.6, tmp_path / "b.json": 0.4}
        split(source, outs)
        report = merge([*outs], tmp_path / "c.json")
        before, after = written(source), written(tmp_path / "c.json")
        assert report.notes == ()
        for section in ("images", "annotations"):
            assert by_id(after[section]) == by_id(before[section])
            assert len(after[section]) == len(before[section])
        for key in before.keys() - {"images", "annotations"}:
            assert after[key] == before[key]

    def test_taken_ids_change_and_nothing_else(self, tmp_path: Path) -> None:
        sources = [coco_file(tmp_path / "a.json"), coco_file(tmp_path / "b.json")]
        report = merge(sources, tmp_path / "c.json", prefixes=["a/", "b/"])
        before, after = written(sources[0]), written(tmp_path / "c.json")
        assert after["categories"] == before["categories"]
        assert after["licenses"] == before["licenses"]
        assert (after["info"], after["odd key"]) == (before["info"], before["odd key"])
        first, second = after["images"][:4], after["images"][4:]
        assert first == [
            {**image, "file_name": f"a/{image['file_name']}"} for image in before["images"]
        ]
        assert second == [
            {**image, "file_name": f"b/{image['file_name']}", "id": 9 + row}
            for row, image in enumerate(before["images"])
        ]
        new_id = {old["id"]: new["id"] for old, new in zip(before["images"], second, strict=True)}
        assert after["annotations"] == [
            *before["annotations"],
            *(
                {**one, "id": 5 + row, "image_id": new_id[one["image_id"]]}
                for row, one in enumerate(before["annotations"])
            ),
        ]
        assert report.notes == (
            f"{sources[1]}: 4 images have a new id, theirs was taken",
            f"{sources[1]}: 4 annotations have a new id, theirs was taken",
        )

    def test_categories_are_joined_by_name(self, tmp_path: Path) -> None:
        first = coco_file(tmp_path / "a.json")
        second = coco_file(
            tmp_path / "b.json",
            categories=[
                {"id": 9, "name": "circle", "extra": 1}, {"id": 3, "name": "cross", "extra": 2}
            ],
        )  # fmt: skip
        report = merge([first, second], tmp_path / "c.json", prefixes=["", "b/"])
        after = written(tmp_path / "c.json")
        assert after["categories"] == [
            {"id": 9, "name": "star", "supercategory": "shape"},
            {"id": 3, "name": "circle"},
            {"id": 10, "name": "cross", "extra": 2},
        ]
        assert [one["category_id"] for one in after["annotations"]] == [3, 3, 9, 9, 10, 10, 3, 3]
        assert f"{second}: category 'circle' has id 3, was 9" in report.notes
        assert f"{second}: category 'cross' has id 10, was 3" in report.notes
        counts = Counter(
            classes for found in classes_of_images(tmp_path / "c.json") for classes in found
        )
        assert sum(counts.values()) == 6

    def test_images_keep_their_licenses(self, tmp_path: Path) -> None:
        first = coco_file(tmp_path / "a.json")
        second = coco_file(
            tmp_path / "b.json",
            licenses=[{"id": 1, "name": "MIT"}, {"id": 2, "name": "CC BY"}, "no record"],
            info={"year": 1999},
        )
        third = coco_file(tmp_path / "d.json", licenses=[{"id": 7, "name": "CC BY"}], info={})
        report = merge([first, second, third], tmp_path / "c.json", prefixes=["a/", "b/", "d/"])
        after = written(tmp_path / "c.json")
        assert after["licenses"] == [
            {"id": 1, "name": "CC BY"}, {"id": 8, "name": "MIT"}, "no record"
        ]  # fmt: skip
        assert [image["license"] for image in after["images"]] == [1] * 4 + [8] * 4 + [1] * 4
        assert f"{second}: its 'info' is left out, the first one is kept" in report.notes
        assert not any("d.json: its 'info'" in note for note in report.notes)

    def test_records_without_ids_or_licenses_are_fine(self, tmp_path: Path) -> None:
        plain = {
            "images": [{"id": 1, "file_name": "z.png", "width": 4, "height": 4}],
            "annotations": [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}],
            "categories": [{"id": 3, "name": "circle"}],
        }
        (tmp_path / "b.json").write_text(json.dumps(plain))
        merge([coco_file(tmp_path / "a.json"), tmp_path / "b.json"], tmp_path / "c.json")
        assert written(tmp_path / "c.json")["annotations"][-1] == plain["annotations"][0]

    @pytest.mark.parametrize(
        ("names", "out", "prefixes", "message"),
        [
            (["a", "b"], "c", [], r"b.json: the file name '5.png' is in .*a.json too; give"),
            (["a", "a"], "c", [], r"a.json: the file name '5.png' is in .*a.json too"),
            (["a", "b"], "c", ["x/", "x/"], "the file name 'x/5.png' is in"),
            (["a"], "c", [], "two sources or more"),
            (["a", "b"], "c", ["x/"], "1 prefixes for 2 sources"),
            (["a", "b"], "c", ["../", "y/"], r"prefix '../': '../5.png' must stay inside"),
            (["a", "b"], "b", [], r"b.json: it is an input"),
        ],
    )
    def test_what_cannot_be_done_is_named(
        self, tmp_path: Path, names: list[str], out: str, prefixes: list[str], message: str
    ) -> None:
        for name in ("a", "b"):
            coco_file(tmp_path / f"{name}.json")
        sources = [tmp_path / f"{name}.json" for name in names]
        with pytest.raises(DetrKitError, match=message):
            merge(sources, tmp_path / f"{out}.json", prefixes=prefixes)
        assert not (tmp_path / "c.json").exists()


class TestSubset:
    def test_classes_keep_their_ids_and_records(self, tmp_path: Path) -> None:
        source = coco_file(tmp_path / "in.json")
        report = subset(source, tmp_path / "out.json", ["circle"])
        before, after = written(source), written(tmp_path / "out.json")
        assert after == {
            **before,
            "images": before["images"][:2],
            "annotations": before["annotations"][:2],
            "categories": before["categories"][1:],
        }
        assert (report.num_images, report.num_objects, report.num_categories) == (2, 2, 1)

    def test_pictures_without_the_classes_are_kept_on_request(self, tmp_path: Path) -> None:
        source = coco_file(tmp_path / "in.json")
        subset(source, tmp_path / "out.json", ["star"], keep_empty=True)
        assert written(tmp_path / "out.json")["images"] == written(source)["images"]
        assert load_annotations(tmp_path / "out.json").num_empty == 2

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            (["circel"], r"in.json: no class is called 'circel'; did you mean 'circle'"),
            (["STAR"], "did you mean 'star'"),
            (["circle", "lorry"], "no class is called 'lorry'; there are star, circle"),
            ([], "a subset needs the name of a class"),
        ],
    )
    def test_an_unknown_class_is_named(
        self, tmp_path: Path, classes: list[str], message: str
    ) -> None:
        with pytest.raises(DetrKitError, match=message):
            subset(coco_file(tmp_path / "in.json"), tmp_path / "out.json", classes)

    def test_the_input_is_not_written_over(self, tmp_path: Path) -> None:
        source = coco_file(tmp_path / "in.json")
        (tmp_path / "link.json").symlink_to(source)
        with pytest.raises(DetrKitError, match=r"link.json: it is an input"):
            subset(source, tmp_path / "link.json", ["star"])

    def test_a_file_that_cannot_be_written_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(28, "no space left")

        source = coco_file(tmp_path / "in.json")
        monkeypatch.setattr(Path, "write_bytes", refuse)
        with pytest.raises(DetrKitError, match=r"out.json: cannot write the file: no space left"):
            subset(source, tmp_path / "out.json", ["star"])
