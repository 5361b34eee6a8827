"""Columns that are kept on disk: the same ones, found again, by many processes at once."""

from __future__ import annotations

import json
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from detr_kit.data.annotations import (
    BoxFormatWarning,
    CocoAnnotations,
    IndexCacheWarning,
    load_annotations,
)
from detr_kit.errors import DetrKitError
from tests.data.coco_values import coco


class TestCache:
    IMAGES = (
        {"id": 7, "file_name": "b ä.jpg", "width": 100, "height": 80},
        {"id": 2, "file_name": "c.jpg", "width": 50, "height": 60},
    )

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(coco([[1, 2, 3, 4], [-1, 5, 6, 7]], images=list(self.IMAGES))))
        os.utime(path, (1_000_000_000, 1_000_000_000))
        return path

    @staticmethod
    def assert_equal(one: CocoAnnotations, two: CocoAnnotations) -> None:
        for column in fields(CocoAnnotations):
            if column.name in ("cached_at", "path"):
                continue
            left, right = getattr(one, column.name), getattr(two, column.name)
            if column.name == "file_names":
                assert list(left) == list(right)
            elif isinstance(left, np.ndarray):
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right)
            else:
                assert left == right

    def test_the_cache_holds_what_the_json_says(self, path: Path, tmp_path: Path) -> None:
        expected = load_annotations(path)
        for _ in range(2):
            cached = load_annotations(path, cache_dir=tmp_path / "cache")
            self.assert_equal(cached, expected)
            assert cached.num_clipped == 1

    def test_the_second_time_the_json_is_not_read(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = load_annotations(path, cache_dir=tmp_path)
        monkeypatch.setattr("detr_kit.data.annotations.read_bytes", pytest.fail)
        self.assert_equal(load_annotations(path, cache_dir=tmp_path), expected)

    def test_a_copy_elsewhere_is_known_by_its_content(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load_annotations(path, cache_dir=tmp_path / "cache")
        copy = tmp_path / "copy.json"
        copy.write_bytes(path.read_bytes())
        monkeypatch.setattr("detr_kit.data.annotations.columns_of", pytest.fail)
        assert load_annotations(copy, cache_dir=tmp_path / "cache").path == copy

    def test_another_content_of_the_same_size_and_time_is_noticed(
        self, path: Path, tmp_path: Path
    ) -> None:
        load_annotations(path, cache_dir=tmp_path / "cache")
        path.write_text(path.read_text().replace('"bbox": [1, 2', '"bbox": [4, 2'))
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert load_annotations(path, cache_dir=tmp_path / "cache").boxes_xyxy[0, 0] == 4

    def test_the_option_for_bad_boxes_is_part_of_the_key(self, path: Path, tmp_path: Path) -> None:
        path.write_text(json.dumps(coco([[1, 2, 3, 4], [1, 2, 0, 4]])))
        assert load_annotations(path, on_bad_box="skip", cache_dir=tmp_path).num_skipped == 1
        with pytest.raises(DetrKitError, match="annotation 11"):
            load_annotations(path, cache_dir=tmp_path)

    @pytest.mark.parametrize("damage", ["meta", "array", "missing", "empty", "short", "names"])
    def test_a_damaged_entry_is_made_anew(self, path: Path, tmp_path: Path, damage: str) -> None:
        cache = tmp_path / "cache"
        expected = load_annotations(path)
        folder = load_annotations(path, cache_dir=cache).cached_at
        assert folder is not None
        if damage == "meta":
            (folder / "meta.json").write_text("{")
        elif damage == "array":
            (folder / "boxes_xyxy.npy").write_bytes(b"\x93NUMPY")
        elif damage == "empty":
            (folder / "boxes_xyxy.npy").write_bytes(b"")
        elif damage == "short":
            np.save(folder / "labels.npy", np.zeros(1, np.int64))
        elif damage == "names":
            text = (folder / "meta.json").read_text()
            (folder / "meta.json").write_text(text.replace('"kind 7"', '"kind 3"'))
        else:
            (folder / "labels.npy").unlink()
        self.assert_equal(load_annotations(path, cache_dir=cache), expected)
        self.assert_equal(load_annotations(path, cache_dir=cache), expected)

    def test_processes_that_start_together_share_one_entry(
        self, path: Path, tmp_path: Path
    ) -> None:
        """Those of one run do: none may pull an entry away from under another."""
        values = coco([[1, 2, 3, 4]] * 3000, images=list(self.IMAGES))
        path.write_text(json.dumps(values))
        expected = load_annotations(path)

        def load(_: int) -> CocoAnnotations:
            return pickle.loads(pickle.dumps(load_annotations(path, cache_dir=cache)))

        for attempt in range(5):
            cache = tmp_path / f"cache {attempt}"
            with ThreadPoolExecutor(6) as pool:
                for loaded in pool.map(load, range(6)):
                    self.assert_equal(loaded, expected)
            assert len(list(cache.glob("*-raise-*"))) == 1
            assert list(cache.glob(".*")) == []

    def test_a_cache_that_cannot_be_written_is_done_without(
        self, path: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "taken").write_text("a file")
        with pytest.warns(IndexCacheWarning, match="taken: cannot keep the columns"):
            loaded = load_annotations(path, cache_dir=tmp_path / "taken")
        assert loaded.cached_at is None
        self.assert_equal(loaded, load_annotations(path))

    def test_what_a_killed_process_left_is_removed_in_time(
        self, path: Path, tmp_path: Path
    ) -> None:
        for name, age in ((".writing-old", 1e6), (".writing-new", 0)):
            (tmp_path / name).mkdir()
            moment = time.time() - age
            os.utime(tmp_path / name, (moment, moment))
        load_annotations(path, cache_dir=tmp_path)
        assert [entry.name for entry in tmp_path.glob(".writing-*")] == [".writing-new"]

    def test_pickles_of_cached_columns_are_names_of_files(self, path: Path, tmp_path: Path) -> None:
        values = coco([[1, 2, 3, 4]] * 500, images=list(self.IMAGES))
        path.write_text(json.dumps(values))
        plain, cached = load_annotations(path), load_annotations(path, cache_dir=tmp_path)
        assert len(pickle.dumps(cached)) < 1000 < len(pickle.dumps(plain))
        for loaded in (plain, cached):
            self.assert_equal(pickle.loads(pickle.dumps(loaded)), plain)

    def test_corners_are_warned_of_each_time(self, path: Path, tmp_path: Path) -> None:
        path.write_text(json.dumps(coco([[10, 10, 40, 30], [60, 50, 90, 75], [55, 5, 99, 80]])))
        for _ in range(2):
            with pytest.warns(BoxFormatWarning, match="corners"):
                load_annotations(path, cache_dir=tmp_path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DetrKitError, match=r"gone\.json: no such annotation file"):
            load_annotations(tmp_path / "gone.json", cache_dir=tmp_path / "cache")
