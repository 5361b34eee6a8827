"""Batches: which pictures come together, how they are put together, and who reads them."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any
from weakref import WeakSet

import cv2
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from detr_kit.config import RunConfig
from detr_kit.data.annotations import CocoAnnotations
from detr_kit.data.augmentation import eval_pipeline, train_pipeline
from detr_kit.data.dataset import DetectionDataset, Missing, OnBadImage, Sample, SampleKey
from detr_kit.data.samplers import AspectBatchSampler, FileOrderBatchSampler, repeat_factors
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import Preprocessing
from detr_kit.structures import CollatedImages, TargetBatch

Batch = tuple[CollatedImages, TargetBatch]

# How long a worker that was told to end lives on for the batches that are still wanted.
WORKER_GRACE_SECONDS = 10.0
_loaders: WeakSet[DataLoader[Any]] = WeakSet()  # those that may have workers


def collate(samples: Sequence[Sample | Missing]) -> Batch:
    """Put pictures into the top left of a common size, and their objects after each other."""
    present = [sample for sample in samples if isinstance(sample, Sample)]
    images = CollatedImages.from_images(
        [sample.image for sample in present],
        [sample.original_size_hw for sample in present],
        [sample.target.image_id for sample in present],
        skipped=[reason for sample in samples for reason in sample.skipped],
    )
    return images, TargetBatch.from_targets([sample.target for sample in present])


def train_loader(
    config: RunConfig,
    annotations: CocoAnnotations,
    *,
    step_images: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Any]:
    """Return the loader of the training split; call `loader.batch_sampler.set_epoch(epoch)`.

    `step_images` is what a step holds over all processes, see `images_a_step`.
    """
    if config.data.train is None:
        raise DetrKitError("key 'data.train' is missing")
    dataset = DetectionDataset(
        annotations,
        config.data.train.images,
        train_pipeline(config.data.augmentation, config.image_size),
        seed=config.seed,
        on_bad_image="replace" if config.data.on_bad_image == "skip" else "raise",
    )
    sampler = AspectBatchSampler(
        annotations.sizes_hw,
        config.pictures_a_batch,
        step_images=step_images or images_a_step(config, world_size),
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        repeats=repeat_factors(annotations, config.data.repeat_threshold),
    )
    return _loader(dataset, sampler, config.data.num_workers)


def images_a_step(config: RunConfig, world_size: int) -> int:
    """Return the number of pictures that a config asks for in a step over all processes."""
    return config.pictures_a_batch * config.accumulate * world_size


def eval_loader(
    annotations: CocoAnnotations,
    image_dir: str | Path,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    on_bad_image: OnBadImage = "raise",
) -> DataLoader[Any]:
    """Return the loader that gives each picture once, over all ranks, resized only."""
    dataset = DetectionDataset(
        annotations, image_dir, eval_pipeline(preprocessing), on_bad_image=on_bad_image
    )
    sampler = FileOrderBatchSampler(len(dataset), batch_size, rank=rank, world_size=world_size)
    return _loader(dataset, sampler, num_workers)


def noting_skipped(loader: Iterable[Batch], skipped: list[str]) -> Iterator[CollatedImages]:
    """Yield the images of each batch; add to `skipped` why pictures are missing."""
    for images, _ in loader:
        skipped += images.skipped
        yield images


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
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        # Its own, or each epoch would take a number from the stream that dropout draws from, and
        # a resumed run would draw others.
        generator=torch.Generator().manual_seed(0),
        **workers,
    )
    if num_workers:
        _loaders.add(loader)
    return loader


def end_workers(loader: DataLoader[Any]) -> None:
    """End a loader's worker processes now, instead of with the interpreter."""
    loader._iterator = None


@atexit.register
def end_all_workers() -> None:
    """End workers that wait for someone who holds a loader's iterator to the end of the program.

    Before multiprocessing sends SIGTERM, which they take for a scheduler's and outlive for a while.
    """
    for loader in list(_loaders):
        if isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
            loader._iterator._shutdown_workers()


def worker_context() -> BaseContext:
    """Return the safe way to start workers on this system.

    A fork copies a process whose threads and CUDA context do not survive it. The fork server is
    a clean process that imports what workers need once, and forks from there.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    modules = ("worker_start", "loading", "compose")
    context.set_forkserver_preload([f"detr_kit.data.{module}" for module in modules])
    return context


def _start_worker(worker_id: int) -> None:
    threading.Thread(target=_end_with_training, daemon=True).start()
    # A wish to stop reaches every process of a job, but the training still needs its workers to
    # finish the step. They end with it, or by the alarm's own doing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.signal(
            signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, WORKER_GRACE_SECONDS)
        )
    # Parallelism comes from the workers: threads of their own would compete with the training.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _end_with_training() -> None:
    """End a worker whose training was killed; PyTorch watches over the fork server only."""
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)
