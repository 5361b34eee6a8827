"""What happens before the first step: initial weights, and a summary of what was set up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import find_checkpoint, read_spec
from detr_kit.checkpoints.finetune import load_for_finetuning
from detr_kit.checkpoints.pretrained import LoadReport, load_backbone_weights
from detr_kit.config import RunConfig
from detr_kit.data.annotations import CocoAnnotations
from detr_kit.models.zoo import resolve

# Below this many pictures a detector trained from scratch learns little: DETR and YOLOS both
# need far more to find good features (YOLOS paper, table 3: 19.7 against 28.7 AP on full COCO).
_FEW_IMAGES = 10_000


def initial_architecture(config: RunConfig) -> dict[str, Any]:
    """Return the resolved numbers of the model that a run trains.

    A backbone that comes with a checkpoint keeps that checkpoint's kind of norms and its frozen
    stages, where the config leaves them open.
    """
    model = config.model
    if config.finetune_from is not None and model.backbone_norm in (None, "auto"):
        source = read_spec(find_checkpoint(config.finetune_from)).architecture
        inherited: dict[str, Any] = {
            key: source[key]
            for key in ("backbone_norm", "frozen_stages")
            if key in source and (key == "backbone_norm" or getattr(model, key) is None)
        }
        model = model.model_copy(update=inherited)
    return resolve(model)


def load_initial_weights(
    model: nn.Module,
    config: RunConfig,
    architecture: Mapping[str, Any],
    categories: CategoryTable,
) -> list[LoadReport]:
    """Load the detector to fine-tune from, or else the backbone's weights, as configured."""
    if config.finetune_from is not None:
        return [load_for_finetuning(model, config.finetune_from, categories)]
    source = architecture.get("backbone_weights")
    if source is None:
        return []
    return [load_backbone_weights(model, source)]


def setup_rows(
    config: RunConfig,
    model: nn.Module,
    architecture: Mapping[str, Any],
    reports: Sequence[LoadReport],
    train_set: CocoAnnotations,
    val_set: CocoAnnotations,
    *,
    world_size: int,
    device: torch.device,
) -> dict[str, str]:
    """Return what a person should see before training starts, by heading."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    batch = config.batch_size * config.accumulate * world_size
    rows = {
        "run": f"{config.output}, {config.epochs} epochs on {device}, {config.precision}",
        "model": f"{config.model.name}, {total / 1e6:.3f}M parameters, "
        f"{trainable / 1e6:.3f}M trained",
        "weights": "; ".join(report.summary() for report in reports) or "random initialisation",
        "train": _describe(train_set),
        "val": _describe(val_set),
        "batch": f"{batch} images a step ({config.batch_size} x {config.accumulate} accumulated x "
        f"{world_size} processes), learning rate {config.optimizer.lr:g}",
    }
    queries = architecture["num_queries"]
    most = max(train_set.max_objects, val_set.max_objects)
    if most > queries:
        rows["warning: queries"] = (
            f"an image holds {most} objects and the model has {queries} queries: the rest can "
            f"never be found; raise model.num_queries"
        )
    if not reports and len(train_set) < _FEW_IMAGES:
        rows["warning: scratch"] = (
            f"random initialisation with {len(train_set)} images learns slowly: set "
            f"model.backbone_weights or finetune_from"
        )
    return rows


def _describe(annotations: CocoAnnotations) -> str:
    return (
        f"{len(annotations)} images ({annotations.num_empty} without objects), "
        f"{annotations.num_objects} objects of {len(annotations.categories)} categories, "
        f"at most {annotations.max_objects} an image"
        + (f", {annotations.num_clipped} boxes clipped" if annotations.num_clipped else "")
        + (f", {annotations.num_skipped} boxes skipped" if annotations.num_skipped else "")
    )
