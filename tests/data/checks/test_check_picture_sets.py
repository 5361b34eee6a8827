"""What the check finds between the files of a data set, and how it goes through many."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_kit.data.checks.findings import Findings
from detr_kit.data.checks.pictures import check_pictures
from detr_kit.data.coco_file import read_columns
from detr_kit.errors import DetrKitError

WIDTH, HEIGHT = 40, 30


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


class TestDuplicates:
    def test_copies_and_links_are_named_with_the_first(
        self, tmp_path: Path, check_folder: Callable
    ) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for seed, name in enumerate(("a.png", "b.png")):
            Image.fromarray(noise(seed)).save(folder / name)
        shutil.copy(folder / "a.png", folder / "copy.png")
        (folder / "link.png").symlink_to("b.png")
        names = ["b.png", "copy.png", "link.png", "a.png", "./b.png", "b.png"]
        found, digests = check_folder(folder, [(name, WIDTH, HEIGHT) for name in names])
        assert found == {
            "duplicate_picture": [
                "link.png: the same content as b.png of image 100 (image 102)",
                "a.png: the same content as copy.png of image 101 (image 103)",
            ]
        }
        assert {len(digest) for digest in digests.values()} == {16}
        assert digests["a.png"] == digests["copy.png"] != digests["b.png"]

    def test_equal_pixels_of_other_bytes_and_empty_files_are_none(
        self, tmp_path: Path, check_folder: Callable
    ) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for level in (1, 9):
            Image.fromarray(noise()).save(folder / f"{level}.png", compress_level=level)
        for name in ("empty_1.png", "empty_2.png"):
            (folder / name).write_bytes(b"")
        names = ["1.png", "9.png", "empty_1.png", "empty_2.png", "nowhere.png"]
        found, digests = check_folder(folder, [(name, WIDTH, HEIGHT) for name in names])
        assert "duplicate_picture" not in found
        assert sorted(digests) == ["1.png", "9.png"]


class TestNames:
    def test_names_that_leave_the_folder_are_not_looked_at(
        self, tmp_path: Path, check_folder: Callable
    ) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        Image.fromarray(noise()).save(tmp_path / "outside.png")
        names = ["../outside.png", str(tmp_path / "outside.png"), "", "a\0b.png", "C:\\outside.png"]
        assert check_folder(folder, [(name, 1, 1) for name in names]) == ({}, {})

    def test_a_link_may_lead_anywhere(self, tmp_path: Path, check_folder: Callable) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        Image.fromarray(noise()).save(tmp_path / "outside.png")
        (folder / "linked.png").symlink_to(tmp_path / "outside.png")
        found, digests = check_folder(folder, [("linked.png", WIDTH, HEIGHT)])
        assert found == {}
        assert list(digests) == ["linked.png"]

    def test_similar_folders_are_searched_in_turn(
        self, tmp_path: Path, check_folder: Callable
    ) -> None:
        folder = tmp_path / "images"
        for name in ("ONE/other.png", "One/A.PNG"):
            (folder / name).parent.mkdir(parents=True)
            Image.fromarray(noise()).save(folder / name)
        found, _ = check_folder(
            folder, [("one/a.png", WIDTH, HEIGHT), ("one/b.png", WIDTH, HEIGHT)]
        )
        assert found == {
            "case_differs": ["one/a.png: the file is called One/A.PNG (image 100)"],
            "file_missing": ["one/b.png: no such file (image 101)"],
        }

    def test_a_missing_folder_is_named(self, tmp_path: Path, check_folder: Callable) -> None:
        with pytest.raises(DetrKitError, match="images: no such image folder"):
            check_folder(tmp_path / "images", [])

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
    def test_files_that_may_not_be_read_are_unreadable(
        self, tmp_path: Path, check_folder: Callable
    ) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for name in ("a.png", "b.jpg"):
            Image.fromarray(noise()).save(folder / name)
            (folder / name).chmod(0)
        found, _ = check_folder(folder, [(name, WIDTH, HEIGHT) for name in ("a.png", "b.jpg")])
        assert found["unreadable"] == [
            f"{name}: cannot be read: Permission denied (image {image_id})"
            for name, image_id in (("a.png", 100), ("b.jpg", 101))
        ]


class TestManyFiles:
    @staticmethod
    def folder_of(tmp_path: Path, count: int) -> tuple[Path, list[tuple[str, int, int]]]:
        folder = tmp_path / "images"
        folder.mkdir()
        for index in range(0, count, 2):
            Image.fromarray(noise(index)).save(folder / f"{index}.png")
        return folder, [(f"{index}.png", 1 + index, 1) for index in range(count)]

    def test_findings_come_in_the_order_of_the_file(
        self, tmp_path: Path, check_folder: Callable
    ) -> None:
        count = 700  # more than wait at a time
        folder, images = self.folder_of(tmp_path, count)
        found, digests = check_folder(folder, images)
        assert found["file_missing"] == [
            f"{index}.png: no such file (image {100 + index})" for index in range(1, count, 2)
        ]
        assert [line.split(":")[0] for line in found["size_differs"]] == list(digests)
        assert list(digests) == [f"{index}.png" for index in range(0, count, 2)]
        assert check_folder(folder, images) == (found, digests)

    def test_progress_sees_every_image_and_may_end_the_check(
        self, tmp_path: Path, check_folder: Callable
    ) -> None:
        folder, images = self.folder_of(tmp_path, 40)
        seen = []

        def counting(files: Iterable, total: int) -> Iterable:
            for file in files:
                seen.append((file.size_hw, total))
                yield file

        check_folder(folder, images, progress=counting)
        assert len(seen) == 40
        assert {total for _, total in seen} == {40}

        def stopping(files: Iterable, total: int) -> Iterable:
            yield from itertools.islice(files, 3)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            check_folder(folder, images, progress=stopping)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(
    ("annotations", "images", "count"),
    [
        ("bccd/annotations/train.json", "bccd/images", 205),
        ("bccd/annotations/val.json", "bccd/images", 87),
        ("bccd/annotations/test.json", "bccd/images", 72),
        ("coco_mini/annotations/instances_train2017.json", "coco_mini/train2017", 80),
        ("coco_mini/annotations/instances_val2017.json", "coco_mini/val2017", 79),
    ],
)
def test_real_pictures_are_without_fault(
    shared_data: Path, annotations: str, images: str, count: int, decode: bool
) -> None:
    path = shared_data / annotations
    findings = Findings(path)
    digests = check_pictures(read_columns(path), shared_data / images, findings, decode=decode)
    assert findings.listed() == ()
    assert len(digests) == len(set(digests.values())) == count
