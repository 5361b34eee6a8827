"""Data sets, batches, samplers over epochs and ranks, workers."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_kit.config import ImageSizeConfig, RunConfig, parse_config
from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.data.augmentation import eval_pipeline, train_pipeline
from detr_kit.data.dataset import DetectionDataset, Sample, SampleError, sample_seed
from detr_kit.data.loading import (
    WORKER_GRACE_SECONDS,
    collate,
    end_all_workers,
    eval_loader,
    train_loader,
)
from detr_kit.data.pictures import PictureFolder
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import preprocessing_from

SIZES_WH = ((60, 40), (40, 60), (64, 48), (50, 50), (60, 40), (48, 64), (80, 40))
SMALL = ImageSizeConfig(short_side=32, long_side=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures; picture i has i objects, the category ids are 3 and 7."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for row, (width, height) in enumerate(SIZES_WH):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        images.append(
            {"id": 100 + row, "file_name": f"{row}.png", "width": width, "height": height}
        )
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": 100 + row,
                "category_id": (3, 7)[number % 2],
                "bbox": [number, 2 * number, 10, 20],
            }
            for number in range(row)
        ]
    categories = [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "labels.json").write_text(json.dumps(values))
    return tmp_path


@pytest.fixture
def annotations(folder: Path) -> CocoAnnotations:
    return load_annotations(folder / "labels.json")


def run_config(folder: Path, **data: Any) -> RunConfig:
    return parse_config(
        {
            "epochs": 1,
            "batch_size": 2,
            "seed": 4,
            "model": {"name": "any"},
            "image_size": SMALL.model_dump(),
            "data": {
                "train": {"annotations": str(folder / "labels.json"), "images": str(folder)},
                "num_workers": 0,
                "augmentation": "small_data",
                **data,
            },
        },
        source="test",
    )


def as_numbers(batches: Any) -> list[Any]:
    """Return everything in the batches in a form that compares by value."""
    return [
        (
            images.pixels.numpy().tobytes(),
            tuple(images.pixels.shape),
            images.sizes_hw,
            images.original_sizes_hw,
            images.image_ids,
            targets.labels.tolist(),
            targets.boxes_cxcywh.tolist(),
            targets.counts,
        )
        for images, targets in batches
    ]


class TestDataset:
    def test_a_sample(self, folder: Path, annotations: CocoAnnotations) -> None:
        dataset = DetectionDataset(annotations, folder, eval_pipeline(preprocessing_from(SMALL)))
        assert len(dataset) == 7
        sample = dataset[2]
        image, target = sample.image, sample.target
        assert image.dtype == torch.uint8
        assert tuple(image.shape) == (32, 42, 3)
        assert sample.original_size_hw == (48, 64)
        assert target.image_id == 102
        assert target.labels.tolist() == [0, 1]
        assert target.labels.dtype == torch.int64
        assert target.boxes_cxcywh.dtype == torch.float32
        expected = [[5 / 64, 10 / 48, 10 / 64, 20 / 48], [6 / 64, 12 / 48, 10 / 64, 20 / 48]]
        torch.testing.assert_close(target.boxes_cxcywh, torch.tensor(expected))

    def test_pictures_without_objects_are_kept(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        for name in ("none", "small_data"):
            dataset = DetectionDataset(annotations, folder, train_pipeline(name, SMALL))
            target = dataset[0].target
            assert tuple(target.boxes_cxcywh.shape) == (0, 4)
            assert tuple(target.labels.shape) == (0,)

    def test_augmentation_depends_on_seed_epoch_and_index_alone(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        def draw(seed: int, *keys: tuple[int, int]) -> list[bytes]:
            pipeline = train_pipeline("small_data", SMALL)
            dataset = DetectionDataset(annotations, folder, pipeline, seed=seed)
            return [dataset[key].image.numpy().tobytes() for key in keys]

        assert draw(0, (0, 3), (1, 3)) == draw(0, (1, 3), (0, 3))[::-1]
        assert len(set(draw(0, *((epoch, 3) for epoch in range(8))))) > 5
        assert draw(0, (0, 3)) != draw(1, (0, 3))
        assert len({sample_seed(key[0], key[1:]) for key in np.ndindex(4, 5, 6)}) == 120

    def test_labels_follow_their_boxes(self, folder: Path, annotations: CocoAnnotations) -> None:
        """Label 1 lies under label 0, which no flip to the side and no crop changes."""
        low = annotations.labels == 1
        annotations.boxes_xyxy[low] = [2, 30, 40, 50]
        annotations.boxes_xyxy[~low] = [2, 2, 40, 20]
        for name in ("detr", "small_data"):
            dataset = DetectionDataset(annotations, folder, train_pipeline(name, SMALL))
            together = 0
            for epoch in range(20):
                target = dataset[epoch, 5].target
                low_y, high_y = (target.boxes_cxcywh[target.labels == label, 1] for label in (1, 0))
                if len(low_y) and len(high_y):
                    assert low_y.min() > high_y.max()
                    together += 1
            assert together > 5

    def test_missing_folder_and_pictures_are_named(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        pipeline = eval_pipeline(preprocessing_from(SMALL))
        with pytest.raises(DetrKitError, match="nowhere: no such image folder"):
            DetectionDataset(annotations, folder / "nowhere", pipeline)
        (folder / "3.png").unlink()
        with pytest.raises(DetrKitError, match=r"3\.png: no such image file \(on_bad"):
            DetectionDataset(annotations, folder, pipeline)[3]

    def test_missing_files_are_listed_without_opening_any(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        pictures = PictureFolder(annotations, folder)
        assert pictures.missing_files() == []
        (folder / "4.png").unlink()
        (folder / "2.png").unlink()
        assert pictures.missing_files() == ["2.png", "4.png"]

    def test_other_sizes_than_the_json_says_are_named(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        Image.new("RGB", (40, 60)).save(folder / "0.png")
        dataset = DetectionDataset(annotations, folder, eval_pipeline(preprocessing_from(SMALL)))
        with pytest.raises(DetrKitError, match=r"0\.png: the image is 40x60 .* says 60x40"):
            dataset[0]

    def test_an_unreadable_picture_is_replaced_by_another_if_asked(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        (folder / "3.png").write_bytes(b"")
        pipeline = train_pipeline("small_data", SMALL)
        strict = DetectionDataset(annotations, folder, pipeline, seed=2)
        lenient = DetectionDataset(annotations, folder, pipeline, seed=2, on_bad_image="replace")
        with pytest.raises(DetrKitError, match=r"3\.png: cannot read"):
            strict[1, 3]
        chosen = set()
        for epoch in range(12):
            sample = lenient[epoch, 3]
            assert isinstance(sample, Sample)
            assert all("3.png: cannot read the image" in reason for reason in sample.skipped)
            assert len(sample.skipped) >= 1
            chosen.add(sample.target.image_id)
            assert torch.equal(sample.image, lenient[epoch, 3].image)
        assert len(chosen) > 3
        assert 103 not in chosen
        # The other pictures are what they are without the option.
        assert torch.equal(lenient[1, 4].image, strict[1, 4].image)
        assert lenient[1, 4].skipped == ()

    def test_a_folder_of_unreadable_pictures_ends_the_run(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        for path in folder.glob("*.png"):
            path.unlink()
        pipeline = train_pipeline("none", SMALL)
        dataset = DetectionDataset(annotations, folder, pipeline, on_bad_image="replace")
        with pytest.raises(DetrKitError, match=r"png: no such image file \(the last of 20"):
            dataset[0]

    def test_an_unreadable_picture_is_left_out_of_its_batch_if_asked(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        for row in (2, 3, 5):
            (folder / f"{row}.png").unlink()
        loader = eval_loader(
            annotations,
            folder,
            preprocessing_from(SMALL),
            batch_size=2,
            on_bad_image="leave_out",
            num_workers=1,
        )
        batches = list(loader)
        assert [images.image_ids for images, _ in batches] == [(100, 101), (), (104,), (106,)]
        assert [len(images.skipped) for images, _ in batches] == [0, 2, 1, 0]
        empty, targets = batches[1]
        assert tuple(empty.pixels.shape) == (0, 0, 0, 3)
        assert targets.counts == ()
        assert tuple(targets.boxes_cxcywh.shape) == (0, 4)

    def test_repetitions_of_a_picture_differ(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        dataset = DetectionDataset(annotations, folder, train_pipeline("small_data", SMALL))
        drawn = [dataset[key].image.numpy().tobytes() for key in ((0, 3), (0, 3, 1), (0, 3, 2))]
        assert len(set(drawn)) == 3

    def test_no_float64_reaches_a_device(self, folder: Path, annotations: CocoAnnotations) -> None:
        """Some accelerators have no float64 at all (F6)."""
        for name in ("none", "detr", "small_data", "strong"):
            dataset = DetectionDataset(annotations, folder, train_pipeline(name, SMALL))
            images, targets = collate([dataset[index] for index in range(3, 7)])
            assert images.pixels.dtype == torch.uint8
            assert targets.boxes_cxcywh.dtype == torch.float32
            assert targets.labels.dtype == torch.int64
            assert images.normalized((0.5,) * 3, (0.2,) * 3).pixels.dtype == torch.float32

    def test_the_error_of_a_worker_is_its_last_line(self) -> None:
        assert str(SampleError("a.jpg: broken")) == "a.jpg: broken"
        wrapped = (
            "Caught SampleError in DataLoader worker process 0.\nOriginal Traceback:\n  File\n"
            "detr_kit.data.dataset.SampleError: a.jpg: broken\n"
        )
        assert str(SampleError(wrapped)) == "a.jpg: broken"


class TestCollate:
    def test_pictures_are_padded_to_the_largest(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        dataset = DetectionDataset(annotations, folder, eval_pipeline(preprocessing_from(SMALL)))
        samples = [dataset[0], dataset[1], dataset[6]]
        images, targets = collate(samples)
        assert tuple(images.pixels.shape) == (3, 48, 64, 3)
        assert images.pixels.dtype == torch.uint8
        assert images.sizes_hw == ((32, 48), (48, 32), (32, 64))
        assert images.original_sizes_hw == ((40, 60), (60, 40), (40, 80))
        assert images.image_ids == targets.image_ids == (100, 101, 106)
        assert targets.counts == (0, 1, 6)
        for row, image in enumerate(sample.image for sample in samples):
            height, width = images.sizes_hw[row]
            assert torch.equal(images.pixels[row, :height, :width], image)

    def test_a_batch_of_empty_pictures(self, folder: Path, annotations: CocoAnnotations) -> None:
        dataset = DetectionDataset(annotations, folder, eval_pipeline(preprocessing_from(SMALL)))
        images, targets = collate([dataset[0], dataset[0]])
        assert tuple(targets.boxes_cxcywh.shape) == (0, 4)
        assert targets.counts == (0, 0)
        assert len(images) == 2


class TestLoaders:
    def test_evaluation_reads_each_picture_once(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        ids = []
        for rank in range(2):
            loader = eval_loader(
                annotations,
                folder,
                preprocessing_from(SMALL),
                batch_size=2,
                rank=rank,
                world_size=2,
            )
            ids += [id_ for images, _ in loader for id_ in images.image_ids]
        assert sorted(ids) == list(range(100, 107))

    def test_loading_leaves_the_random_stream_of_training_alone(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        list(train_loader(run_config(folder), annotations))
        assert torch.equal(torch.rand(3), expected)

    def test_the_number_of_workers_changes_nothing(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        """Two runs with workers, and one without, over two epochs of persistent workers (B7)."""
        runs = []
        for num_workers in (0, 2, 2):
            loader = train_loader(run_config(folder, num_workers=num_workers), annotations)
            batches = []
            for epoch in range(2):
                loader.batch_sampler.set_epoch(epoch)
                batches += as_numbers(loader)
            runs.append(batches)
            del loader
        assert runs[0] == runs[1] == runs[2]
        assert len({batch[0] for batch in runs[0]}) == 8

    def test_workers_that_start_from_nothing_give_the_same(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on systems without fork, where data sets are sent as pickles (F5)."""
        annotations = load_annotations(folder / "labels.json", cache_dir=tmp_path / "cache")
        config = run_config(folder, augmentation="strong")
        expected = as_numbers(train_loader(config, annotations))
        spawn = multiprocessing.get_context("spawn")
        monkeypatch.setattr("detr_kit.data.loading.worker_context", lambda: spawn)
        config = run_config(folder, augmentation="strong", num_workers=1)
        loader = train_loader(config, annotations)
        held = iter(loader)
        assert as_numbers([next(held) for _ in range(len(loader))]) == expected
        # What the program's end does to workers that someone still holds.
        workers = multiprocessing.active_children()
        assert any(worker.is_alive() for worker in workers)
        began = time.monotonic()
        end_all_workers()
        for worker in workers:
            worker.join(timeout=WORKER_GRACE_SECONDS)
        assert not any(worker.is_alive() for worker in workers)
        assert time.monotonic() - began < WORKER_GRACE_SECONDS / 2

    def test_a_broken_picture_in_a_worker_is_one_line(
        self, folder: Path, annotations: CocoAnnotations
    ) -> None:
        (folder / "3.png").write_bytes(b"")
        loader = eval_loader(
            annotations, folder, preprocessing_from(SMALL), batch_size=2, num_workers=1
        )
        with pytest.raises(DetrKitError) as raised:
            list(loader)
        message = f"{folder / '3.png'}: cannot read the image: not a picture of a known format"
        assert str(raised.value) == f"{message} (on_bad_image=skip goes on without it)"

    @pytest.mark.parametrize("name", ["detr", "yolos", "small_data", "strong", "none"])
    def test_data_sets_can_be_sent_to_a_fresh_process(
        self, folder: Path, annotations: CocoAnnotations, name: str
    ) -> None:
        dataset = DetectionDataset(annotations, folder, train_pipeline(name, SMALL), seed=1)
        again = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(again[2, 3].image, dataset[2, 3].image)

    def test_a_run_without_training_data_is_named(self, annotations: CocoAnnotations) -> None:
        config = RunConfig(epochs=1, model={"name": "any"})
        with pytest.raises(DetrKitError, match=r"data\.train"):
            train_loader(config, annotations)
