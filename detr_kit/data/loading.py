"""Batches: which pictures come together, how they are put together, and who reads them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from detr_kit.config import RunConfig
from detr_kit.data.annotations import CocoAnnotations
from detr_kit.data.augmentation import eval_pipeline, train_pipeline
from detr_kit.data.dataset import DetectionDataset, Sample, SampleKey
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import Preprocessing
from detr_kit.structures import CollatedImages, TargetBatch

Batch = tuple[CollatedImages, TargetBatch]

# Pictures whose aspect ratios differ by less than a bin of this width in log2 (19 %) mix freely.
ASPECT_BIN = 0.25
# Steps' worth of shuffled pictures that are sorted by aspect ratio at a time.
STEPS_A_CHUNK = 64


def collate(samples: Sequence[Sample]) -> Batch:
    """Put pictures into the top left of a common size, and their objects after each other."""
    images, targets, original_sizes_hw = zip(*samples, strict=True)
    image_ids = [target.image_id for target in targets]
    collated = CollatedImages.from_images(images, original_sizes_hw, image_ids)
    return collated, TargetBatch.from_targets(list(targets))


class AspectBatchSampler(Sampler[list[SampleKey]]):
    """Batches of (epoch, index) keys of pictures with similar aspect ratios.

    Each epoch, by `seed` and epoch, pictures are shuffled, sorted by bins of aspect ratio within
    large chunks and cut into steps of `batch_size * world_size`, which are shuffled; in a step,
    every rank takes a share of neighbours. Without `shuffle`, order is that of the file.

    Every rank gets the same number of batches. The last step holds the pictures that are left
    (drawn at random), spread evenly over the ranks: smaller batches, none lost. Only where fewer
    are left than there are ranks, pictures are seen twice, so that no rank comes away empty.
    """

    def __init__(
        self,
        sizes_hw: np.ndarray | Sequence[tuple[int, int]],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise DetrKitError(
                f"batch size {batch_size}, rank {rank} of {world_size}: not a valid combination"
            )
        sizes = np.asarray(sizes_hw, dtype=np.float64).reshape(-1, 2)
        self.aspect_bins = np.round(np.log2(sizes[:, 0] / sizes[:, 1]) / ASPECT_BIN)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of batches of each rank."""
        return -(-len(self.aspect_bins) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.epoch
        for step in self._steps(epoch):
            share = np.array_split(step, self.world_size)[self.rank]
            yield [(epoch, int(index)) for index in share]

    def _steps(self, epoch: int) -> list[np.ndarray]:
        """Return the indices of each step over all ranks."""
        total, step_size = len(self.aspect_bins), self.batch_size * self.world_size
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(total) if self.shuffle else np.arange(total)
        full = total // step_size * step_size
        steps: list[np.ndarray] = []
        for start in range(0, full, STEPS_A_CHUNK * step_size):
            chunk = order[start : min(start + STEPS_A_CHUNK * step_size, full)]
            if self.shuffle:
                # Stable: pictures of one bin stay shuffled.
                chunk = chunk[np.argsort(self.aspect_bins[chunk], kind="stable")]
            steps += np.split(chunk, len(chunk) // step_size)
        if self.shuffle:
            steps = [steps[place] for place in rng.permutation(len(steps))]
        left = order[full:]
        if len(left):
            # Sorted, so that neighbours in aspect ratio share a rank.
            left = left[np.argsort(self.aspect_bins[left], kind="stable")] if self.shuffle else left
            steps.append(np.resize(left, max(len(left), self.world_size)))
        return steps


class FileOrderBatchSampler(Sampler[list[SampleKey]]):
    """Batches in the order of the file; rank r takes every `world_size`-th, each picture once."""

    def __init__(
        self, num_images: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        starts = range(0, num_images, batch_size)[rank::world_size]
        self.batches = [
            [(0, index) for index in range(start, min(start + batch_size, num_images))]
            for start in starts
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)


def train_loader(
    config: RunConfig, annotations: CocoAnnotations, *, rank: int = 0, world_size: int = 1
) -> DataLoader[Any]:
    """Return the loader of the training split; call `loader.batch_sampler.set_epoch(epoch)`."""
    if config.data.train is None:
        raise DetrKitError("key 'data.train' is missing")
    dataset = DetectionDataset(
        annotations,
        config.data.train.images,
        train_pipeline(config.data.augmentation, config.image_size),
        seed=config.seed,
    )
    sampler = AspectBatchSampler(
        annotations.sizes_hw,
        config.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
    )
    return _loader(dataset, sampler, config.data.num_workers)


def eval_loader(
    annotations: CocoAnnotations,
    image_dir: str | Path,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Any]:
    """Return the loader that gives each picture once, over all ranks, resized only."""
    dataset = DetectionDataset(annotations, image_dir, eval_pipeline(preprocessing))
    sampler = FileOrderBatchSampler(len(dataset), batch_size, rank=rank, world_size=world_size)
    return _loader(dataset, sampler, num_workers)


def _loader(
    dataset: DetectionDataset, sampler: Sampler[list[SampleKey]], num_workers: int
) -> DataLoader[Any]:
    workers: dict[str, Any] = {}
    if num_workers:
        workers = {
            "num_workers": num_workers,
            "persistent_workers": True,
            "multiprocessing_context": worker_context(),
            "worker_init_fn": _start_worker,
        }
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        # Its own, or each epoch would take a number from the stream that dropout draws from, and
        # a resumed run would draw others.
        generator=torch.Generator().manual_seed(0),
        **workers,
    )


def worker_context() -> BaseContext:
    """Return the safe way to start workers on this system.

    A fork copies a process whose threads and CUDA context do not survive it. The fork server is
    a clean process that imports what workers need once, and forks from there.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["detr_kit.data.loading", "detr_kit.data.transforms"])
    return context


def _start_worker(worker_id: int) -> None:
    # Parallelism comes from the workers: threads of their own would compete with the training.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
