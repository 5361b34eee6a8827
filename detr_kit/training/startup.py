"""What happens before the first step: initial weights, and a summary of what was set up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.finetune import load_for_finetuning
from detr_kit.checkpoints.opened import OpenedCheckpoint
from detr_kit.checkpoints.pretrained import load_backbone_weights
from detr_kit.checkpoints.report import LoadReport
from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.config import RunConfig
from detr_kit.data.annotations import CocoAnnotations
from detr_kit.models.zoo import resolve

# Below this many pictures a detector trained from scratch learns little: DETR and YOLOS both
# need far more to find good features (YOLOS paper, table 3: 19.7 against 28.7 AP on full COCO).
_FEW_IMAGES = 10_000


# What a model takes over from the detector it starts from, where its config leaves it open.
_INHERITED = ("backbone_norm", "frozen_stages", "norm_eps")


def open_initial(config: RunConfig) -> OpenedCheckpoint | None:
    """Open the detector that a run starts from, if it names one."""
    source = config.model.init_from
    return None if source is None else open_checkpoint(source)


def initial_architecture(config: RunConfig, initial: OpenedCheckpoint | None) -> dict[str, Any]:
    """Return the resolved numbers of the model that a run trains."""
    model = config.model
    if initial is not None:
        source = initial.spec.architecture
        inherited = {
            key: source[key]
            for key in _INHERITED
            if source.get(key) is not None and getattr(model, key) in (None, "auto")
        }
        if model.backbone_norm not in (None, "auto"):
            inherited.pop("frozen_stages", None)
        model = model.model_copy(update=inherited)
    return resolve(model)


def load_initial_weights(
    model: nn.Module,
    initial: OpenedCheckpoint | None,
    architecture: Mapping[str, Any],
    categories: CategoryTable,
) -> list[LoadReport]:
    """Load the detector to fine-tune from, or else the backbone's weights, as configured."""
    if initial is not None:
        return [load_for_finetuning(model, architecture, initial, categories)]
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
        "weights": "\n".join(line for report in reports for line in report.lines())
        or "random initialisation",
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
            f"model.backbone_weights or model.init_from"
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
