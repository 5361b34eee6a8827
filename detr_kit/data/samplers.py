"""Which pictures come together in a batch, in which order, and how often in an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from detr_kit.data.annotations import CocoAnnotations
from detr_kit.data.dataset import SampleKey
from detr_kit.errors import DetrKitError

# Pictures whose aspect ratios differ by less than a bin of this width in log2 (19 %) mix freely.
ASPECT_BIN = 0.25
# Steps' worth of shuffled pictures that are sorted by aspect ratio at a time.
STEPS_A_CHUNK = 64


def repeat_factors(annotations: CocoAnnotations, threshold: float) -> np.ndarray | None:
    """Return how often each picture comes in an epoch on average, (I,) float64, at least 1.

    The factor of a category that a share f of the pictures has is max(1, sqrt(threshold / f)), a
    picture's is the largest of its categories'. None with a `threshold` of 0: each comes once.
    Source: LVIS (Gupta et al. 2019), appendix B; there the threshold is 0.001.
    """
    if not threshold:
        return None
    counts = np.diff(annotations.offsets)
    images = np.repeat(np.arange(len(annotations)), counts)
    pairs = np.unique(np.stack([images, annotations.labels]), axis=1)
    share = np.bincount(pairs[1], minlength=len(annotations.categories)) / max(len(annotations), 1)
    with np.errstate(divide="ignore"):
        of_category = np.maximum(1.0, np.sqrt(threshold / share))
    factors = np.ones(len(annotations))
    np.maximum.at(factors, pairs[0], of_category[pairs[1]])
    return factors


def epoch_length(repeats: np.ndarray) -> int:
    """Return the number of pictures in an epoch, with their repetitions.

    Rounded up, so that no picture falls below its factor, and each comes at least once.
    """
    return math.ceil(repeats.sum() - 1e-6)


class AspectBatchSampler(Sampler[list[SampleKey]]):
    """Batches of (epoch, index) keys of pictures with similar aspect ratios.

    Each epoch, by `seed` and epoch, pictures are shuffled, sorted by bins of aspect ratio within
    large chunks and cut into steps of `step_images` (`batch_size * world_size` unless given),
    which are shuffled; in a step, every rank takes an even share of neighbours, and cuts it into
    batches of at most `batch_size`. Without `shuffle`, order is that of the file.

    Which pictures a step holds does not depend on how many ranks and batches it is split into.
    Every rank has the same number of steps, `num_steps`, and up to `batches_a_step` batches in
    each. The last step holds the pictures that are left (drawn at random), spread evenly over the
    ranks: smaller batches, none lost. Only where fewer are left than there are ranks, pictures are
    seen twice, so that no rank comes away empty.

    With `repeats` (I,), picture i comes `repeats[i]` times an epoch on average, the fractions by
    chance, and the same number in all each epoch; the keys of a picture's repetitions differ.
    """

    def __init__(
        self,
        sizes_hw: np.ndarray | Sequence[tuple[int, int]],
        batch_size: int,
        *,
        step_images: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        repeats: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise DetrKitError(
                f"batch size {batch_size}, rank {rank} of {world_size}: not a valid combination"
            )
        self.step_images = batch_size * world_size if step_images is None else step_images
        if self.step_images < world_size:
            raise DetrKitError(
                f"a step of {self.step_images} pictures cannot be shared by {world_size} processes"
            )
        sizes = np.asarray(sizes_hw, dtype=np.float64).reshape(-1, 2)
        self.aspect_bins = np.round(np.log2(sizes[:, 0] / sizes[:, 1]) / ASPECT_BIN)
        self.repeats = repeats
        self.total = len(sizes) if repeats is None else epoch_length(repeats)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.epoch = 0
        self.first_step = 0

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Choose the epoch of the next iteration, and the step of it to begin with."""
        self.epoch = epoch
        self.first_step = first_step

    @property
    def num_steps(self) -> int:
        """The number of steps of an epoch."""
        return -(-self.total // self.step_images)

    @property
    def batches_a_step(self) -> int:
        """The number of this rank's batches in every step but the last, which may have fewer."""
        return self._batches_of(self.step_images, self.rank)

    def most_batches(self, step: int) -> int:
        """Return the most batches that a rank has in a step of the epoch."""
        full = self.total // self.step_images
        images = self.step_images if step < full else self.total % self.step_images
        return self._batches_of(images, rank=0)

    def __len__(self) -> int:
        """The number of this rank's batches of an epoch."""
        full, left = divmod(self.total, self.step_images)
        return full * self.batches_a_step + (self._batches_of(left, self.rank) if left else 0)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.epoch
        for step in self._steps(epoch)[self.first_step :]:
            share = np.array_split(step, self.world_size)[self.rank]
            for batch in np.array_split(share, self._batches_of(len(step), self.rank)):
                yield [_key(epoch, int(place), len(self.aspect_bins)) for place in batch]

    def _batches_of(self, images: int, rank: int) -> int:
        """Return how many batches a rank's share of a step of so many pictures makes."""
        share = max(images // self.world_size + (rank < images % self.world_size), 1)
        return -(-share // self.batch_size)

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """Return what an epoch is made of: index + I * repetition, in the order of the file."""
        images = len(self.aspect_bins)
        if self.repeats is None:
            return np.arange(images)
        # Steps of 1 along the sum of all factors hit a picture as often as its factor says.
        ends = np.cumsum(self.repeats) * (self.total / max(self.repeats.sum(), 1))
        ends[-1:] = self.total
        hits = np.floor(ends + rng.random())
        times = np.diff(hits, prepend=0).astype(np.int64)
        repetition = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        return np.repeat(np.arange(images), times) + images * repetition

    def _steps(self, epoch: int) -> list[np.ndarray]:
        """Return the places, see `_drawn`, of each step over all ranks."""
        step_size = self.step_images
        rng = np.random.default_rng((self.seed, epoch))
        order = self._drawn(rng)
        total = len(order)
        if self.shuffle:
            order = order[rng.permutation(total)]
        bins = self.aspect_bins
        full = total // step_size * step_size
        steps: list[np.ndarray] = []
        for start in range(0, full, STEPS_A_CHUNK * step_size):
            chunk = order[start : min(start + STEPS_A_CHUNK * step_size, full)]
            if self.shuffle:
                # Stable: pictures of one bin stay shuffled.
                chunk = chunk[np.argsort(bins[chunk % len(bins)], kind="stable")]
            steps += np.split(chunk, len(chunk) // step_size)
        if self.shuffle:
            steps = [steps[place] for place in rng.permutation(len(steps))]
        left = order[full:]
        if len(left):
            # Sorted, so that neighbours in aspect ratio share a rank.
            left = left[np.argsort(bins[left % len(bins)], kind="stable")] if self.shuffle else left
            steps.append(np.resize(left, max(len(left), self.world_size)))
        return steps


def _key(epoch: int, place: int, images: int) -> SampleKey:
    repetition, index = divmod(place, images)
    return (epoch, index, repetition) if repetition else (epoch, index)


class FileOrderBatchSampler(Sampler[list[SampleKey]]):
    """Batches in the order of the file; rank r takes every `world_size`-th, each picture once."""

    def __init__(
        self, num_images: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        starts = range(0, num_images, batch_size)[rank::world_size]
        self.batches: list[list[SampleKey]] = [
            [(0, index) for index in range(start, min(start + batch_size, num_images))]
            for start in starts
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)
