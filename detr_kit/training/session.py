"""Everything that a training run works with, built from its config and checked first."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader

from detr_kit.checkpoints.detector import MODEL_FILE, DetectorSpec, read_spec, save_detector
from detr_kit.checkpoints.reading import read_tensors
from detr_kit.config import RunConfig, SplitConfig, dump_config
from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.data.dataset import warn_of_skipped
from detr_kit.data.loading import Batch, eval_loader, noting_skipped, train_loader
from detr_kit.data.pictures import PictureFolder
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.coco import CocoMetrics, evaluate_results
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import load_ground_truth
from detr_kit.evaluation.results import joined, result_columns, write_results
from detr_kit.files import atomic_folder, atomic_write
from detr_kit.losses import SetCriterion
from detr_kit.matching import HungarianMatcher
from detr_kit.prediction import predict_batches
from detr_kit.preprocess import preprocessing_from
from detr_kit.training.optimizer import build_optimizer, freeze_backbone_if_asked
from detr_kit.training.recorder import Recorder
from detr_kit.training.run_files import CONFIG_FILE, RESULTS_FILE
from detr_kit.training.schedule import Schedule
from detr_kit.training.startup import initial_model, resumed_model, setup_rows
from detr_kit.training.state import Progress, load_training_state, save_training_state
from detr_kit.training.trainer import Trainer

# Beside the run: columns of annotation files, for the workers and for the next run.
INDEX_FOLDER = ".annotation_index"


class Session:
    """The parts of a run, built and wired; lives as long as the training does."""

    def __init__(self, config: RunConfig, *, resumed: bool) -> None:
        self.config = config
        train_split, val_split = _required_splits(config)
        self.train_set = _load(config, train_split)
        self.val_set = _load(config, val_split)
        _check_data(self.train_set, self.val_set, train_split, val_split)
        self.truth = load_ground_truth(val_split.annotations, on_bad_box=config.data.on_bad_box)

        precision = {"fp32": "no"}.get(config.precision, config.precision)
        # Accelerate keeps one precision a process; a notebook may train twice with different ones.
        AcceleratorState._reset_state()
        # Without `cpu`, Accelerate takes processes that have no accelerator for unrelated ones.
        self.accelerator = Accelerator(
            mixed_precision=precision, cpu=not torch.accelerator.is_available()
        )
        set_seed(config.seed)  # the same initial weights in every process
        categories = self.train_set.categories
        if resumed:
            start = resumed_model(config.output / "last", categories)
        else:
            start = initial_model(config, categories)
        freeze_backbone_if_asked(start.model, config.optimizer)
        self.spec = DetectorSpec(
            start.architecture,
            categories,
            preprocessing_from(config.image_size),
            origin=start.origin,
        )
        self.loader, self.val_loader = self._loaders(val_split)
        self.steps_per_epoch = -(-len(self.loader) // config.accumulate)
        self.setup_rows = setup_rows(
            config,
            start,
            self.train_set,
            self.val_set,
            world_size=self.accelerator.num_processes,
            device=self.accelerator.device,
        )
        optimizer = build_optimizer(start.model, config.optimizer)
        self.model, self.optimizer = self.accelerator.prepare(start.model, optimizer)
        # Takes off Accelerate's autocast around the model's forward: the trainer has its own, and
        # evaluation must give what the saved detector gives, in full precision.
        self.bare_model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.recorder: Recorder | None = None
        # what the last evaluation found in the whole validation split
        self.found: ResultColumns | None = None
        self.trainer = self._build_trainer(start.architecture)

    def _loaders(self, val_split: SplitConfig) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
        """Return this process's share of the training and of the validation split."""
        config = self.config
        share = {
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
        }
        return train_loader(config, self.train_set, **share), eval_loader(
            self.val_set,
            val_split.images,
            self.spec.preprocessing,
            batch_size=config.evaluation.batch_size or config.pictures_a_batch,
            num_workers=config.data.num_workers,
            on_bad_image="leave_out" if config.data.on_bad_image == "skip" else "raise",
            **share,
        )

    def _build_trainer(self, architecture: dict[str, Any]) -> Trainer:
        config = self.config
        loss = config.loss
        criterion = SetCriterion(
            len(self.spec.categories),
            HungarianMatcher(loss.class_cost, loss.l1_cost, loss.giou_cost),
            class_weight=loss.class_weight,
            l1_weight=loss.l1_weight,
            giou_weight=loss.giou_weight,
            no_object_weight=loss.no_object_weight,
        )
        schedule = Schedule(
            self.optimizer,
            config.schedule,
            steps_per_epoch=self.steps_per_epoch,
            epochs=config.epochs,
        )
        return Trainer(
            self.model,
            criterion,
            self.optimizer,
            schedule,
            self.loader,
            self.accelerator,
            self.spec.preprocessing,
            num_queries=architecture["num_queries"],
            seed=config.seed,
            accumulate=config.accumulate,
            clip=config.optimizer.clip,
            official_normalizer=loss.normalizer == "official",
        )

    def open_folder(self, progress: Progress) -> None:
        folder = self.config.output
        with atomic_write(folder / CONFIG_FILE) as path:
            path.write_text(dump_config(self.config), encoding="utf-8")
        self.recorder = Recorder(folder, after_epoch=progress.epoch)

    def restore(self) -> Progress:
        """Load weights, optimiser and scaler of the last finished epoch."""
        last = self.config.output / "last"
        progress, optimizer_state, scaler_state = load_training_state(last)
        if read_spec(last) != self.spec:
            raise DetrKitError(
                f"{last}: its categories or preprocessing are not those of "
                f"{self.config.output / CONFIG_FILE} and its data: it cannot be continued"
            )
        if progress.step != progress.epoch * self.steps_per_epoch:
            raise DetrKitError(
                f"{last}: {progress.step} steps in {progress.epoch} epochs, but now an epoch has "
                f"{self.steps_per_epoch}: batch size, accumulation, number of processes and of "
                f"training images must stay as they were"
            )
        self.bare_model.load_state_dict(read_tensors(last / MODEL_FILE))
        self.optimizer.load_state_dict(optimizer_state)
        if self.accelerator.scaler is not None and scaler_state is not None:
            self.accelerator.scaler.load_state_dict(scaler_state)
        return progress

    def evaluate(self, epoch: int) -> CocoMetrics | None:
        """Score the validation split; every process predicts its share, all get the metrics."""
        if epoch % self.config.evaluation.every and epoch != self.config.epochs:
            return None
        if self.accelerator.num_processes > 1:
            share_buffers(self.bare_model)
        skipped: list[str] = []
        found = predict_batches(
            self.bare_model,
            noting_skipped(self.val_loader, skipped),
            categories=self.spec.categories,
            preprocessing=self.spec.preprocessing,
            device=self.accelerator.device,
        )
        own = result_columns(dict(found))
        warn_of_skipped(skipped)
        parts = gather_object([own]) if self.accelerator.num_processes > 1 else [own]
        self.found = joined(parts)
        # An untrained detector may well find nothing; the table of the epoch says so.
        return evaluate_results(self.found, self.truth, warn=False)

    def finish_epoch(self, row: dict[str, Any], progress: Progress, *, is_best: bool) -> None:
        if self.recorder is None:
            self.accelerator.wait_for_everyone()
            return
        folder = self.config.output
        # `last` comes last: if the process ends before it, the epoch is trained again and gives
        # the same row and the same `best`.
        self.recorder.write(row)
        if is_best:
            assert self.found is not None
            with atomic_folder(folder / "best") as checkpoint:
                save_detector(checkpoint, self.bare_model, self.spec)
            write_results(folder / RESULTS_FILE, self.found)
        with atomic_folder(folder / "last") as checkpoint:
            save_detector(checkpoint, self.bare_model, self.spec)
            scaler = self.accelerator.scaler
            save_training_state(
                checkpoint,
                progress,
                self.optimizer.state_dict(),
                None if scaler is None else scaler.state_dict(),
            )
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        if self.recorder is not None:
            self.recorder.close()


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the first.

    Batch norms that train gather statistics of their own in every process. The first one's are
    saved, so all must predict with them.
    """
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)


def _required_splits(config: RunConfig) -> tuple[SplitConfig, SplitConfig]:
    for name, split in (("train", config.data.train), ("val", config.data.val)):
        if split is None:
            raise DetrKitError(
                f"key 'data.{name}' is missing: give data.{name}.annotations=FILE.json and "
                f"data.{name}.images=FOLDER"
            )
        if not split.images.is_dir():
            raise DetrKitError(f"{split.images}: no such image folder (data.{name}.images)")
    assert config.data.train is not None
    assert config.data.val is not None
    return config.data.train, config.data.val


def _load(config: RunConfig, split: SplitConfig) -> CocoAnnotations:
    loaded = load_annotations(
        split.annotations,
        on_bad_box=config.data.on_bad_box,
        cache_dir=config.output.parent / INDEX_FOLDER,
    )
    if config.data.on_bad_image == "raise":
        _require_files(loaded, split)
    return loaded


def _check_data(
    train_set: CocoAnnotations,
    val_set: CocoAnnotations,
    train_split: SplitConfig,
    val_split: SplitConfig,
) -> None:
    for loaded, split in ((train_set, train_split), (val_set, val_split)):
        if len(loaded) == 0:
            raise DetrKitError(f"{split.annotations}: holds no images")
    if train_set.num_objects == 0:
        raise DetrKitError(f"{train_split.annotations}: holds no objects to learn from")
    train_set.categories.require_same(
        val_set.categories, str(train_split.annotations), str(val_split.annotations)
    )


def _require_files(annotations: CocoAnnotations, split: SplitConfig) -> None:
    """Name a picture that does not exist now, not when its turn comes."""
    missing = PictureFolder(annotations, split.images).missing_files()
    if missing:
        raise DetrKitError(
            f"{split.images / missing[0]}: no such image file ({len(missing)} of the "
            f"{len(annotations)} images of {split.annotations} are missing; `detr-kit check` lists "
            "them, data.on_bad_image=skip does without)"
        )
