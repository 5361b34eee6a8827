"""Everything that a training run works with, built from its config and checked first."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch.utils.data import DataLoader

from detr_kit.checkpoints.detector import DetectorSpec
from detr_kit.config import RunConfig
from detr_kit.data.loading import Batch, end_workers, eval_loader, images_a_step, train_loader
from detr_kit.evaluation.ground_truth import load_ground_truth
from detr_kit.losses import SetCriterion, class_loss_for
from detr_kit.matching import CLASS_COSTS, HungarianMatcher
from detr_kit.models.compiled import compile_model
from detr_kit.models.zoo import completed
from detr_kit.preprocess import preprocessing_from
from detr_kit.structures import Scoring
from detr_kit.training.average import WeightAverage
from detr_kit.training.batch_size import largest_batch, worst_case
from detr_kit.training.checkpointing import Checkpoints
from detr_kit.training.matching_record import MatchingRecord
from detr_kit.training.optimizer import build_optimizer, freeze_backbone_if_asked
from detr_kit.training.processes import Processes
from detr_kit.training.schedule import Schedule
from detr_kit.training.sharding import require_shardable, shard
from detr_kit.training.splits import check_data, digest_of, load_split, required_splits
from detr_kit.training.startup import InitialModel, initial_model, resumed_model
from detr_kit.training.state import EpochRecord, TrainingState
from detr_kit.training.step import TrainingStep
from detr_kit.training.summary import setup_rows
from detr_kit.training.tracking import require_trackers
from detr_kit.training.validation import Validation, require_metric


class Session:
    """The parts of a run, built and wired; lives as long as the training does.

    With `resumed`, the state that the run's folder holds, it goes on from there.
    """

    def __init__(self, config: RunConfig, *, resumed: TrainingState | None = None) -> None:
        self.notes: list[str] = []  # what a user should see besides `setup_rows`
        self.train_split, self.val_split = required_splits(config)
        self.train_set = load_split(config, self.train_split)
        self.val_set = load_split(config, self.val_split)
        check_data(self.train_set, self.val_set, self.train_split, self.val_split)
        annotations = self.val_split.annotations
        self.truth = load_ground_truth(annotations, on_bad_box=config.data.on_bad_box)
        if config.evaluation.metric != "ap" or config.evaluation.patience is not None:
            require_metric(config.evaluation.metric, self.truth, annotations)
        require_trackers(config.trackers)
        require_shardable(config)

        self.accelerator = _accelerator(config)
        self.processes = Processes(self.accelerator)
        set_seed(config.seed)  # the same initial weights in every process
        if resumed is None:
            start = initial_model(config, self.train_set.categories)
        else:
            start = resumed_model(config.output / "last", self.train_set.categories)
        # A loss that does not fit is refused before anything is prepared for it.
        class_loss_for(config.loss.classification, _scoring(start))
        freeze_backbone_if_asked(start.model, config.optimizer)
        self.config = config = self._with_batch_size(config, start)
        self.spec = DetectorSpec(
            start.architecture,
            self.train_set.categories,
            preprocessing_from(config.image_size),
            origin=start.origin,
        )
        self.step_images = images_a_step(config, self.processes.count)
        if resumed is not None:
            self.step_images = resumed.step_images
            share = -(-self.step_images // self.processes.count)
            split = {"accumulate": -(-share // config.pictures_a_batch)}
            self.config = config = config.model_copy(update=split)
        self.loader, val_loader = self._loaders()
        sampler: Any = self.loader.batch_sampler
        self.steps_per_epoch: int = sampler.num_steps
        self.setup_rows = setup_rows(
            config,
            start,
            self.train_set,
            self.val_set,
            world_size=self.processes.count,
            device=self.accelerator.device,
            step_images=self.step_images,
        )
        self._wire(start, val_loader)

    def _with_batch_size(self, config: RunConfig, start: InitialModel) -> RunConfig:
        """Find out what `batch_size: auto` comes to, the same in all processes."""
        if config.batch_size != "auto":
            return config
        image_hw, objects = worst_case(config, self.train_set)
        weights = sum(p.numel() * p.element_size() for p in start.model.parameters())
        copies = bool(config.average.decay) + (self.processes.count > 1)
        choice = largest_batch(
            start.model.to(self.accelerator.device),
            _criterion(config, len(self.train_set.categories), _scoring(start)),
            image_hw=image_hw,
            objects=objects,
            preprocessing=preprocessing_from(config.image_size),
            device=self.accelerator.device,
            autocast=self.accelerator.autocast,
            limit=-(-len(self.train_set) // self.processes.count),
            extra_bytes=copies * weights,
            processes=self.processes.count,
        )
        choice = min(self.processes.gather(choice), key=lambda choice: choice.batch_size)
        unscaled = ""
        if config.optimizer.scale_lr == "none":
            unscaled = "; rates are not scaled to it, see optimizer.recipe_batch"
        self.notes.append(f"batch_size: {choice.batch_size}, {choice.reason}{unscaled}")
        return config.model_copy(update={"batch_size": choice.batch_size})

    def _loaders(self) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
        """Return this process's share of the training and of the validation split."""
        config = self.config
        share = {"rank": self.processes.rank, "world_size": self.processes.count}
        training = train_loader(config, self.train_set, step_images=self.step_images, **share)
        return training, eval_loader(
            self.val_set,
            self.val_split.images,
            self.spec.preprocessing,
            batch_size=config.evaluation.batch_size or config.pictures_a_batch,
            num_workers=config.data.num_workers,
            on_bad_image="leave_out" if config.data.on_bad_image == "skip" else "raise",
            **share,
        )

    def _wire(self, start: InitialModel, val_loader: DataLoader[Batch]) -> None:
        config = self.config
        if config.compile:
            compile_model(start.model)
        sharded = config.sharding != "none" and self.processes.count > 1
        if sharded:
            shard(start.model, self.accelerator.device)
        elif config.sharding != "none":
            self.notes.append("sharding: with one process there is nothing to divide")
        # The momenta of resumed runs come into the layout that the weights have by then.
        optimizer = build_optimizer(start.model, config.optimizer, step_images=self.step_images)
        self.schedule = Schedule(
            optimizer,
            config.schedule,
            steps_per_epoch=self.steps_per_epoch,
            epochs=config.epochs,
        )
        if sharded:  # the model sees to its gradients by itself
            self.model, self.optimizer = start.model, self.accelerator.prepare_optimizer(optimizer)
        else:
            self.model, self.optimizer = self.accelerator.prepare(start.model, optimizer)
        # Takes off Accelerate's autocast around the model's forward: the step has its own, and
        # evaluation must give what the saved detector gives, in full precision.
        self.bare_model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        average = WeightAverage(self.bare_model, config.average) if config.average.decay else None
        num_queries = start.architecture["num_queries"]
        self.matching = MatchingRecord(
            self.train_set.num_objects,
            num_queries,
            ranked=start.architecture.get("query_selection", "none") != "none",
        )
        self.step = TrainingStep(
            self.model,
            _criterion(config, len(self.spec.categories), _scoring(start)),
            self.optimizer,
            self.accelerator,
            self.spec.preprocessing,
            num_queries=num_queries,
            seed=config.seed,
            clip=config.optimizer.clip,
            official_normalizer=config.loss.normalizer == "official",
            tolerated=config.guard.max_skipped if config.guard.on_nonfinite == "skip" else 1,
            average=average,
            matching=self.matching,
        )
        self._wire_keeping(val_loader, average)

    def _wire_keeping(self, val_loader: DataLoader[Batch], average: WeightAverage | None) -> None:
        """Build what scores and saves."""
        self.validation = Validation(
            self.bare_model,
            val_loader,
            self.truth,
            self.spec,
            device=self.accelerator.device,
            processes=self.processes,
            average=average,
        )
        self.checkpoints = Checkpoints(
            self.config.output,
            self.config.checkpoint,
            model=self.bare_model,
            optimizer=self.optimizer,
            scaler=self.accelerator.scaler,
            average=average,
            spec=self.spec,
            processes=self.processes,
            data_digest=digest_of(self.train_set),
            step_images=self.step_images,
        )

    def restore(self, state: TrainingState) -> EpochRecord:
        """Load everything that a run had come to; return the record of its epoch so far."""
        self.step.gated_in_a_row = state.gated_in_a_row
        return self.checkpoints.restore(state, self.matching)

    def close(self) -> None:
        """End the workers."""
        for loader in (self.loader, self.validation.loader):
            end_workers(loader)


def _accelerator(config: RunConfig) -> Accelerator:
    precision = {"fp32": "no", "tf32": "no"}.get(config.precision, config.precision)
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    # Accelerate keeps one precision a process; a notebook may train twice with different ones.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=precision,
        # Without `cpu`, Accelerate takes processes that have no accelerator for unrelated ones.
        cpu=not torch.accelerator.is_available(),
        # Gradients stay where they are reduced, instead of being held twice.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def _scoring(start: InitialModel) -> Scoring:
    scoring: Scoring = completed(start.architecture)["scoring"]
    return scoring


def _criterion(config: RunConfig, num_classes: int, scoring: Scoring) -> SetCriterion:
    loss = config.loss
    class_cost = CLASS_COSTS[scoring] if loss.class_cost is None else loss.class_cost
    return SetCriterion(
        num_classes,
        HungarianMatcher(class_cost, loss.l1_cost, loss.giou_cost),
        class_weight=loss.class_weight,
        l1_weight=loss.l1_weight,
        giou_weight=loss.giou_weight,
        no_object_weight=loss.no_object_weight,
        classification=loss.classification,
        focal_alpha=loss.focal_alpha,
        focal_gamma=loss.focal_gamma,
        on_nonfinite="poison",
    )
