"""The model that a run starts with, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import read_spec
from detr_kit.checkpoints.finetune import load_for_finetuning, require_same_kind
from detr_kit.checkpoints.opened import OpenedCheckpoint
from detr_kit.checkpoints.pretrained import load_backbone_weights
from detr_kit.checkpoints.report import LoadReport
from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.config import RunConfig
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import preprocessing_from

# What a model takes over from the detector it starts from, where its config leaves it open.
_INHERITED = ("backbone_norm", "frozen_stages", "norm_eps")


@dataclass(frozen=True)
class InitialModel:
    """The model that a run starts with, on the CPU.

    `weights` are lines that say where its weights come from; `origin` says it in short, for the
    checkpoints.
    """

    model: nn.Module
    architecture: dict[str, Any]
    weights: list[str]
    origin: str
    from_scratch: bool = False


def initial_model(config: RunConfig, categories: CategoryTable) -> InitialModel:
    """Build the model of a new run, with the detector's or backbone's weights that it names."""
    initial = open_initial(config)
    architecture = initial_architecture(config, initial)
    model = build_model(architecture, num_classes=len(categories))
    report = load_initial_weights(model, config, initial, architecture, categories)
    if report is None:
        scratch = "random initialisation"
        return InitialModel(model, architecture, [scratch], scratch, from_scratch=True)
    return InitialModel(
        model, architecture, report.lines(), f"trained, started from {report.source}"
    )


def resumed_model(checkpoint: Path, categories: CategoryTable) -> InitialModel:
    """Build the model of a run that goes on; its weights are loaded with the rest of its state.

    What it once started from is not needed any more.
    """
    spec = read_spec(checkpoint)
    model = build_model(spec.architecture, num_classes=len(categories))
    return InitialModel(
        model,
        spec.architecture,
        [f"those of {checkpoint}, which began with: {spec.origin}"],
        spec.origin,
    )


def open_initial(config: RunConfig) -> OpenedCheckpoint | None:
    """Open the detector that a run starts from, if it names one."""
    if config.model.init_from is None:
        return None
    initial = open_checkpoint(config.model.init_from)
    initial.check()  # what it lacks would otherwise stay as initialised
    return initial


def initial_architecture(config: RunConfig, initial: OpenedCheckpoint | None) -> dict[str, Any]:
    """Return the resolved numbers of the model that a run trains."""
    model = config.model
    if initial is None:
        return resolve(model)
    source = initial.spec.architecture
    require_same_kind(resolve(model), initial)
    inherited = {
        key: source[key]
        for key in _INHERITED
        if source.get(key) is not None and getattr(model, key) in (None, "auto")
    }
    # The backbone's own weights come with the detector.
    return resolve(model.model_copy(update=inherited | {"backbone_weights": "none"}))


def load_initial_weights(
    model: nn.Module,
    config: RunConfig,
    initial: OpenedCheckpoint | None,
    architecture: Mapping[str, Any],
    categories: CategoryTable,
) -> LoadReport | None:
    """Load the detector to fine-tune from, or else the backbone's weights, as configured."""
    if initial is not None:
        report = load_for_finetuning(model, architecture, initial, categories)
        warnings = _preprocessing_warnings(config, initial)
        return replace(report, notes=report.notes + warnings)
    source = architecture.get("backbone_weights")
    return None if source is None else load_backbone_weights(model, source)


def _preprocessing_warnings(config: RunConfig, initial: OpenedCheckpoint) -> tuple[str, ...]:
    """Say where pictures are normalised otherwise than the weights were made for."""
    own, theirs = preprocessing_from(config.image_size), initial.spec.preprocessing
    return tuple(
        f"warning: image_size.{name} is {mine} here and {their} in the checkpoint"
        for name, mine, their in (("mean", own.mean, theirs.mean), ("std", own.std, theirs.std))
        if not np.allclose(mine, their, atol=1e-4)
    )
