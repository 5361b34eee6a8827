"""Which pictures come together, over epochs and ranks, and how often."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.data.samplers import AspectBatchSampler, FileOrderBatchSampler, repeat_factors
from detr_kit.errors import DetrKitError


class TestAspectBatchSampler:
    @settings(derandomize=True, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), max_size=60),
        st.integers(1, 7),
        st.integers(1, 4),
        st.integers(0, 3),
        st.booleans(),
    )
    def test_every_picture_is_seen_and_ranks_keep_step(
        self,
        sizes_hw: list[tuple[int, int]],
        batch_size: int,
        world_size: int,
        epoch: int,
        shuffle: bool,
    ) -> None:
        keys, lengths, sizes = [], set(), []
        for rank in range(world_size):
            sampler = AspectBatchSampler(
                sizes_hw, batch_size, rank=rank, world_size=world_size, shuffle=shuffle
            )
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            lengths.add(len(batches))
            sizes += [len(batch) for batch in batches]
            keys += [key for batch in batches for key in batch]
        assert len(lengths) == 1
        assert {epoch_ for epoch_, _ in keys} <= {epoch}
        seen = [index for _, index in keys]
        assert set(seen) == set(range(len(sizes_hw)))
        # Twice only where the last step has fewer pictures than ranks.
        assert len(seen) - len(sizes_hw) < world_size
        assert all(1 <= size <= batch_size for size in sizes)
        if len(sizes_hw) % (batch_size * world_size) == 0:
            assert len(seen) == len(sizes_hw)
            assert set(sizes) <= {batch_size}

    def test_epochs_differ_and_repeat(self) -> None:
        def epoch_of(sampler: AspectBatchSampler, epoch: int) -> list[list[int]]:
            sampler.set_epoch(epoch)
            return [[index for _, index in batch] for batch in sampler]

        sizes_hw = np.tile([[40, 60]], (40, 1))
        one, two = (AspectBatchSampler(sizes_hw, 4, seed=1) for _ in range(2))
        first = epoch_of(one, 0)
        assert epoch_of(one, 1) != first
        assert epoch_of(one, 0) == epoch_of(two, 0) == first
        assert epoch_of(AspectBatchSampler(sizes_hw, 4, seed=2), 0) != first

    def test_little_is_padded(self) -> None:
        """Portraits and landscapes are kept apart: padding falls to a third or less."""
        rng = np.random.default_rng(0)
        turned = rng.random(400) < 0.5
        sizes_hw = np.where(turned[:, None], (640, 480), (480, 640))

        def padded_share(batches: Any) -> float:
            used = padded = 0
            for batch in batches:
                sizes = sizes_hw[[index for _, index in batch]]
                used += sizes.prod(axis=1).sum()
                padded += sizes.max(axis=0).prod() * len(sizes)
            return 1 - used / padded

        mixed = padded_share([[(0, i) for i in range(s, s + 8)] for s in range(0, 400, 8)])
        for rank in range(2):
            grouped = AspectBatchSampler(sizes_hw, 8, rank=rank, world_size=2)
            assert padded_share(grouped) < mixed / 3

    def test_without_shuffle_the_order_is_that_of_the_file(self) -> None:
        sampler = AspectBatchSampler([(1, 2), (2, 1)] * 4, 3, shuffle=False)
        assert [index for batch in sampler for _, index in batch] == list(range(8))

    def test_impossible_numbers_are_refused(self) -> None:
        with pytest.raises(DetrKitError, match="rank 2 of 2"):
            AspectBatchSampler([(1, 1)], 1, rank=2, world_size=2)


class TestFileOrderBatchSampler:
    @pytest.mark.parametrize("world_size", [1, 2, 3])
    def test_each_picture_once_over_ranks(self, world_size: int) -> None:
        shares = [
            list(FileOrderBatchSampler(7, 2, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        seen = [index for share in shares for batch in share for _, index in batch]
        assert sorted(seen) == list(range(7))
        if world_size == 1:
            assert seen == list(range(7))


class TestRepeatFactors:
    @pytest.fixture
    def annotations(self, tmp_path: Path) -> CocoAnnotations:
        """100 pictures: all have category 1, four have 2 (one of them twice), none has 3."""
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in range(100)]
        pairs = [(i, 1) for i in range(99)] + [(3, 2), (3, 2), (7, 2), (50, 2), (60, 2)]
        objects = [
            {"id": n, "image_id": image, "category_id": category, "bbox": [1, 2, 3, 4]}
            for n, (image, category) in enumerate(pairs)
        ]
        categories = [{"id": i, "name": str(i)} for i in (1, 2, 3)]
        path = tmp_path / "labels.json"
        path.write_text(
            json.dumps({"images": images, "annotations": objects, "categories": categories})
        )
        return load_annotations(path)

    def test_factors_are_those_of_the_rarest_category(self, annotations: CocoAnnotations) -> None:
        assert repeat_factors(annotations, 0.0) is None
        factors = repeat_factors(annotations, 0.25)
        assert factors is not None
        rare = [3, 7, 50, 60]
        assert factors[rare] == pytest.approx([2.5] * 4)  # sqrt(0.25 / 0.04)
        assert np.delete(factors, rare).tolist() == [1.0] * 96

    def test_pictures_come_as_often_as_their_factors_say(self) -> None:
        repeats = np.ones(50)
        repeats[[4, 30]] = 2.5, 1.25
        sampler = AspectBatchSampler([(30, 40)] * 50, 4, repeats=repeats)
        counts = np.zeros(50)
        for epoch in range(200):
            sampler.set_epoch(epoch)
            batches = list(sampler)
            keys = [key for batch in batches for key in batch]
            assert len(batches) == len(sampler) == 13
            assert len(keys) == len(set(keys)) == sampler.total == 52
            seen = np.bincount([key[1] for key in keys], minlength=50)
            assert seen[4] in (2, 3)
            assert seen.min() >= 1
            counts += seen
        assert counts[4] / 200 == pytest.approx(2.5 * 52 / 51.75, rel=0.05)
        assert counts[30] / 200 == pytest.approx(1.25, rel=0.1)

    @settings(derandomize=True, deadline=None)
    @given(
        st.lists(st.floats(1, 6), min_size=1, max_size=40),
        st.integers(1, 5),
        st.integers(1, 3),
        st.integers(0, 3),
    )
    def test_ranks_keep_step_and_miss_nothing(
        self, repeats: list[float], batch_size: int, world_size: int, epoch: int
    ) -> None:
        sizes_hw = [(30 + i, 40) for i in range(len(repeats))]
        keys, lengths = [], set()
        for rank in range(world_size):
            sampler = AspectBatchSampler(
                sizes_hw, batch_size, rank=rank, world_size=world_size, repeats=np.array(repeats)
            )
            sampler.set_epoch(epoch)
            batches = list(sampler)
            lengths.add(len(batches))
            assert len(batches) == len(sampler)
            keys += [key for batch in batches for key in batch]
        assert len(lengths) == 1
        assert len(set(keys)) == sampler.total == math.ceil(sum(repeats) - 1e-6)
        assert {key[1] for key in keys} == set(range(len(repeats)))
        assert len(keys) - len(set(keys)) < world_size
