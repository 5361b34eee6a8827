"""The two sides of training_step.py: detr_kit's training step and that of transformers' Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from step_batches import PREPROCESSING, StepBatch
from step_stages import Stage
from torch import Tensor, nn

from detr_kit.checkpoints.sources import load_detector
from detr_kit.config import OptimizerConfig
from detr_kit.losses import SetCriterion, StepCounts
from detr_kit.matching import HungarianMatcher
from detr_kit.structures import CollatedImages, TargetBatch
from detr_kit.training.matching_record import MatchingRecord
from detr_kit.training.optimizer import build_optimizer
from detr_kit.training.step import TrainingStep

NUM_CLASSES = 91
LR, LR_BACKBONE, WEIGHT_DECAY, CLIP = 1e-4, 1e-5, 1e-4, 0.1
FAMILIES = ("detr", "yolos")
NUM_QUERIES = 100
MOVE = "to the device, normalise"
# Gains of drawn weights by the first part of a key that fits; 1 elsewhere.
_GAINS = {
    "query_position": 2.0,
    "encoder_attn": 2.0,
    "self_attn.o": 0.3,
    "fc2": 0.5,
    "q_proj": 1.5,
    "k_proj": 1.5,
    "query": 1.5,
    "key": 1.5,
    "class_labels": 1.5,
}
# What both sides call, whoever calls it.
_SHARED_STAGES = [
    Stage(Tensor, "backward", "backward"),
    Stage(torch.nn.utils, "clip_grad_norm_", "clip"),
    Stage(torch.optim.AdamW, "step", "optimizer"),
]


class Side(Protocol):
    """A training step that can be taken again and again."""

    name: str

    def step(self) -> None: ...

    def stages(self) -> list[Stage]: ...


class OurSide:
    """detr_kit's: uint8 pictures in, normalised on the device."""

    def __init__(
        self,
        model: nn.Module,
        batch: StepBatch,
        device: torch.device,
        precision: str,
        *,
        compiled: bool,
    ) -> None:
        self.name = "detr_kit"
        self.model = model.to(device).train()
        self.compiled = compiled
        batch = batch.pinned() if device.type == "cuda" else batch
        self.batches = [(batch.images, batch.targets)]
        self.counts = StepCounts.of([batch.targets], NUM_QUERIES)
        config = OptimizerConfig(lr=LR, lr_backbone=LR_BACKBONE, weight_decay=WEIGHT_DECAY)
        optimizer = build_optimizer(model, config, step_images=self.counts.images)
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no", cpu=device.type == "cpu"
        )
        called = torch.compile(model) if compiled else model
        self.prepared, optimizer = accelerator.prepare(called, optimizer)
        self.training_step = TrainingStep(
            self.prepared,
            SetCriterion(NUM_CLASSES, on_nonfinite="poison"),
            optimizer,
            accelerator,
            PREPROCESSING,
            num_queries=NUM_QUERIES,
            clip=CLIP,
            matching=MatchingRecord(batch.num_objects, NUM_QUERIES),
        )
        self.taken = 0

    def step(self) -> None:
        self.training_step(self.batches, self.taken, self.counts)
        self.taken += 1

    def stages(self) -> list[Stage]:
        found = [
            Stage(CollatedImages, "to", MOVE),
            Stage(CollatedImages, "normalized", MOVE),
            Stage(TargetBatch, "to", MOVE),
            Stage(self.prepared, "forward", "forward"),
            Stage(SetCriterion, "forward", "losses"),
            Stage(HungarianMatcher, "__call__", "matching"),
            Stage(MatchingRecord, "add", "matching"),
            Stage(nn.utils, "get_total_norm", "clip"),
            Stage(nn.utils, "clip_grads_with_norm_", "clip"),
            *_SHARED_STAGES,
        ]
        if not self.compiled and hasattr(self.model, "encoder"):
            found += _parts(self.model)
        return found


class PeerSide:
    """transformers': normalised pictures in; what its Trainer does between two batches."""

    def __init__(
        self,
        model: nn.Module,
        batch: StepBatch,
        device: torch.device,
        precision: str,
        *,
        compiled: bool,
        attention: str,
        adamw: str,
    ) -> None:
        self.name = f"transformers, {attention}"
        self.model = model.to(device).train()
        self.compiled = compiled
        self.forward = torch.compile(model) if compiled else model
        self.inputs = batch.for_peer()
        if not hasattr(model, "model"):  # YOLOS of transformers knows no mask
            del self.inputs["pixel_mask"]
        if device.type == "cuda":
            self.inputs = moved(self.inputs, lambda tensor: tensor.pin_memory())
        self.device = device
        self.precision = precision
        self.optimizer = _peer_optimizer(model, adamw)
        self.sum = torch.zeros((), device=device)

    def step(self) -> None:
        self.model.train()
        inputs = self._inputs()
        with autocast(self.device, self.precision):
            loss = self.forward(**inputs)["loss"]
        loss.backward()
        # The Trainer leaves losses that are not finite out of what it logs.
        if not (torch.isnan(loss.detach()) or torch.isinf(loss.detach())):
            self.sum += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.model.zero_grad()

    def _inputs(self) -> dict[str, Any]:
        return moved(self.inputs, lambda tensor: tensor.to(self.device, non_blocking=True))

    def stages(self) -> list[Stage]:
        from transformers.loss import loss_for_object_detection as losses

        found = [
            Stage(self, "_inputs", MOVE),
            Stage(self, "forward", "forward"),
            *_SHARED_STAGES,
        ]
        if not self.compiled:
            found += [
                Stage(losses.ImageLoss, "forward", "losses"),
                Stage(losses.HungarianMatcher, "forward", "matching"),
            ]
            inner = getattr(self.model, "model", None)
            found += _parts(inner) if inner is not None else []
        return found


def _parts(model: nn.Module) -> list[Stage]:
    """Return the parts of a DETR, whose names are the same on both sides."""
    return [
        Stage(model.backbone, "forward", "forward: backbone", "backward: backbone"),
        Stage(model.encoder, "forward", "forward: encoder", "backward: encoder"),
        Stage(model.decoder, "forward", "forward: decoder", "backward: decoder"),
    ]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def moved(value: Any, move: Any) -> Any:
    """Return a nest of dictionaries and lists with `move` applied to its tensors."""
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, dict):
        return {name: moved(part, move) for name, part in value.items()}
    return [moved(part, move) for part in value]


def _peer_optimizer(model: nn.Module, adamw: str) -> torch.optim.AdamW:
    """Return AdamW with DETR's two rates; the Trainer's own would have one."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_backbone = ".backbone." in name or name.startswith("vit.")
            groups.setdefault(LR_BACKBONE if in_backbone else LR, []).append(parameter)
    options = {"fused": True} if adamw == "fused" else {"foreach": adamw == "foreach"}
    return torch.optim.AdamW(
        [{"params": parameters, "lr": lr} for lr, parameters in groups.items()],
        weight_decay=WEIGHT_DECAY,
        **options,
    )


def write_peer(family: str, folder: Path) -> None:
    """Write a folder of transformers with a detector of the published size and drawn weights."""
    from transformers import (
        DetrConfig,
        DetrForObjectDetection,
        YolosConfig,
        YolosForObjectDetection,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    names = {column: f"kind {column}" for column in range(NUM_CLASSES)}
    common = {"id2label": names, "label2id": {name: column for column, name in names.items()}}
    if family == "detr":
        config = DetrConfig(
            use_timm_backbone=True,
            backbone="resnet50",
            use_pretrained_backbone=False,
            auxiliary_loss=True,
            **common,
        )
        model = DetrForObjectDetection(config)
    else:
        config = YolosConfig(
            hidden_size=384, num_attention_heads=6, intermediate_size=1536, **common
        )
        model = YolosForObjectDetection(config)
    _draw(model)
    model.save_pretrained(folder)


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """Draw weights that keep queries and pictures apart, which an initialised model does not.

    There, norms do nothing, biases are zero, attention is nearly uniform, and all queries find
    the same: a fault would not show in a comparison of outputs.
    """
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var") or (tensor.ndim == 1 and key.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.normal_(std=0.3)
        elif tensor.is_floating_point():
            gain = next((gain for part, gain in _GAINS.items() if part in key), 1.0)
            is_table = "position_embeddings" in key or "token" in key
            tensor.normal_(std=gain if is_table else gain * tensor[0].numel() ** -0.5)


def load_ours(folder: Path) -> nn.Module:
    return load_detector(folder)[0]


def load_peer(folder: Path, attention: str, *, official_dropout: bool = False) -> nn.Module:
    """Read the folder; `official_dropout` adds the two dropouts that its configs set to 0."""
    from transformers import AutoModelForObjectDetection
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForObjectDetection.from_pretrained(folder, attn_implementation=attention)
    if official_dropout:
        for module in model.modules():
            for name in ("attention_dropout", "activation_dropout"):
                if hasattr(module, name):
                    setattr(module, name, model.config.dropout)
    return model


@contextmanager
def peer_without_layer_losses(model: Any) -> Iterator[None]:
    """Let the peer compute its last layer's losses only.

    With them, its decoder hands each layer the normalised output of the one before: another
    network than the published one, and than the same model without them.
    """
    was = model.config.auxiliary_loss
    model.config.auxiliary_loss = False
    try:
        yield
    finally:
        model.config.auxiliary_loss = was
