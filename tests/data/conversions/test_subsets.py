"""Splits with every class's share, subsets of classes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.data.annotations import load_annotations
from detr_kit.data.conversions.stratification import part_sizes, stratify
from detr_kit.data.conversions.subsets import split, subset
from detr_kit.errors import DetrKitError
from tests.data.conversions.coco_files import by_id, classes_of_images, coco_file
from tests.data.conversions.label_files import written

FIXED = settings(derandomize=True, deadline=None, max_examples=100)
FRACTIONS = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


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

    def test_the_class_furthest_from_its_share_is_told(self, tmp_path: Path) -> None:
        # Circles in pictures 0 to 3, stars in all of them but one, nothing else.
        pairs = [(row, 3) for row in range(4)] + [(row, 9) for row in range(9)]
        source = coco_file(
            tmp_path / "in.json",
            images=[
                {"id": row, "file_name": f"{row}.png", "width": 40, "height": 20}
                for row in range(10)
            ],
            annotations=[
                {"id": id_, "image_id": row, "category_id": category, "bbox": [1, 2, 3, 4]}
                for id_, (row, category) in enumerate(pairs)
            ],
        )
        outs = {tmp_path / "a.json": 0.8, tmp_path / "b.json": 0.2}
        for path, report in zip(outs, split(source, outs), strict=True):
            counts = Counter(name for found in classes_of_images(path) for name in found)
            # Columns: the circle has the id 3, the star 9.
            shares = {"circle": counts[0] / 4, "star": counts[1] / 9}
            off = {name: abs(share - outs[path]) for name, share in shares.items()}
            name = max(off, key=lambda name: off[name])
            assert report.class_name == name
            assert report.num_class_images / report.num_class_images_in_all == shares[name]
            assert f"; furthest from its share of {outs[path]:.1%}: {name!r} with " in str(report)
            assert str(report).endswith(f"pictures ({shares[name]:.1%})")

    def test_without_objects_no_class_is_told(self, tmp_path: Path) -> None:
        source = coco_file(tmp_path / "in.json", annotations=[])
        (report,) = split(source, {tmp_path / "a.json": 1.0})
        assert report.class_name is None
        assert str(report) == f"{tmp_path / 'a.json'}: 4 pictures, 0 annotations, 2 categories"

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

    @pytest.mark.parametrize(
        ("classes", "wanted"),
        [
            (["star, circle"], ["star", "circle"]),
            (["circle", "star"], ["star", "circle"]),
            (["lights, red"], ["lights, red"]),
            (["lights, red", "star,circle"], ["lights, red", "star", "circle"]),
        ],
    )
    def test_commas_part_names_unless_a_class_has_them(
        self, tmp_path: Path, classes: list[str], wanted: list[str]
    ) -> None:
        names = ("lights, red", "star", "circle", "lights")
        source = coco_file(
            tmp_path / "in.json",
            categories=[{"id": id_, "name": name} for id_, name in enumerate(names, 7)],
            annotations=[],
        )
        subset(source, tmp_path / "out.json", classes)
        assert [one["name"] for one in written(tmp_path / "out.json")["categories"]] == wanted

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
            (["star,lorry"], "no class is called 'lorry'"),
            ([], "a subset needs the name of a class"),
            ([" , "], "a subset needs the name of a class"),
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
