"""From a name and a few changes to a variant's numbers, and from numbers to a model.

Numbers are plain data: they are written into checkpoints and read back. This module imports no
torch until a model is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detr_kit.config import ModelConfig
from detr_kit.config_faults import nearest_keys
from detr_kit.errors import DetrKitError
from detr_kit.models.variants import NORM_EPS, VARIANTS, Numbers

if TYPE_CHECKING:
    from torch import nn


__all__ = ["NORM_EPS", "VARIANTS", "Numbers", "build_model", "completed", "resolve"]

FAMILIES = {"detr": "DETR", "yolos": "YOLOS", "deformable": "Deformable DETR"}

# What models do whose checkpoints are from before there was a choice, by family.
_SINCE_ADDED: dict[str, Numbers] = {
    "detr": {"scoring": "softmax"},
    "yolos": {
        "norm_eps": NORM_EPS,
        "frozen_stages": 0,
        "groups": 1,
        "patch_supervision": False,
        "scoring": "softmax",
    },
    "deformable": {"centered_positions": True},
}


def resolve(config: ModelConfig) -> Numbers:
    """Return a variant's numbers with the config's changes, nothing left to be decided.

    Raises DetrKitError for an unknown name, for a setting of another family and for settings that
    do not go together.
    """
    if config.name not in VARIANTS:
        near = difflib.get_close_matches(config.name, VARIANTS, n=1)
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        raise DetrKitError(
            f"model.name {config.name!r} is unknown; {hint} are {', '.join(VARIANTS)}"
        )
    variant = VARIANTS[config.name]
    given = config.model_dump(exclude={"name", "init_from"}, exclude_none=True)
    for key in given:
        if key not in variant:
            raise DetrKitError(
                f"model.{key}: {config.name} is a {FAMILIES[variant['family']]} and has no such "
                f"setting{meant_instead(key, variant)}"
            )
    numbers = {**variant, **given}
    if numbers["family"] == "deformable":
        numbers = _without_unread(numbers, given)
        _refuse_contradictions(numbers)
    return _decided(numbers, frozen_by_variant=config.frozen_stages is None)


def meant_instead(key: str, numbers: Mapping[str, Any]) -> str:
    """Return what to say of a setting that a model does not have: who has it, or what is near."""
    owners = {FAMILIES[known["family"]]: None for known in VARIANTS.values() if key in known}
    if owners:
        return f"; it is for {' and '.join(owners)}"
    near = nearest_keys(key, list(numbers))
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _decided(numbers: Numbers, *, frozen_by_variant: bool) -> Numbers:
    """Fill in what depends on whether weights are loaded into the backbone."""
    if numbers["backbone_weights"] == "none":
        numbers["backbone_weights"] = None
    pretrained = numbers["backbone_weights"] is not None
    if numbers["family"] in ("detr", "deformable"):
        if not pretrained and frozen_by_variant:
            numbers["frozen_stages"] = 0
        if numbers["backbone_norm"] == "auto":
            numbers["backbone_norm"] = "frozen" if pretrained else "batch"
        if numbers["frozen_stages"] is None:
            numbers["frozen_stages"] = 2
    return numbers


def _without_unread(numbers: Numbers, given: Mapping[str, Any]) -> Numbers:
    """Return a deformable family's numbers with the defaults of those that nothing reads.

    Raises DetrKitError where the user has given one of them. What is switched off needs no reader.
    """
    to_points = "deformable" in (numbers["encoder"], numbers["cross_attention"])
    readers = {
        "encoder hybrid": (
            numbers["encoder"] == "hybrid",
            ("encoder_dim", "encoder_feedforward_dim", "encoder_expansion"),
        ),
        "encoder deformable": (
            numbers["encoder"] == "deformable",
            ("temperature", "centered_positions"),
        ),
        "deformable attention": (to_points, ("points",)),
        "refinement": (numbers["refinement"], ("shared_heads",)),
        "denoising_queries": (numbers["denoising_queries"] > 0, ("label_noise", "box_noise")),
    }
    unread = {key: name for name, (reads, keys) in readers.items() if not reads for key in keys}
    for key, reader in unread.items():
        if given.get(key):
            raise DetrKitError(
                f"model.{key} is for {reader}, which this model does not have: leave it out, or "
                "give null"
            )
    return numbers | {key: VARIANTS["deformable_detr_r50"][key] for key in unread}


def _refuse_contradictions(numbers: Numbers) -> None:
    """Raise DetrKitError where a deformable family's switches contradict each other."""
    selection, positions = numbers["query_selection"], numbers["query_positions"]
    denoises = numbers["denoising_queries"] > 0
    contradictions = [
        (
            positions == "learned" and selection != "none",
            "query_positions learned: selected queries take theirs from their boxes; give sine, "
            "mlp or, with query_selection full, proposal",
        ),
        (
            positions == "proposal" and selection != "full",
            "query_positions proposal needs query_selection full",
        ),
        (
            positions == "proposal" and numbers["scoring"] != "sigmoid",
            "query_positions proposal needs scoring sigmoid",
        ),
        (
            numbers["groups"] > 1 and selection == "full",
            "groups: query_selection full has one group of best tokens; set model.query_selection "
            "mixed, which has learned queries, with model.query_positions sine or mlp",
        ),
        (
            denoises and numbers["scoring"] != "sigmoid",
            "denoising_queries need scoring sigmoid; with softmax, set model.denoising_queries 0 "
            "and loss.classification auto",
        ),
        (
            denoises and positions not in ("sine", "mlp"),
            "denoising_queries need query_positions sine or mlp, which follow from any box",
        ),
        (
            numbers["look_forward_twice"] and not numbers["refinement"],
            "look_forward_twice needs refinement",
        ),
        (
            numbers["encoder_layers"] == 0 and numbers["encoder"] != "hybrid",
            "encoder_layers 0: encoder deformable and dense need one",
        ),
    ]
    for holds, message in contradictions:
        if holds:
            raise DetrKitError(f"model.{message}")


def completed(numbers: Mapping[str, Any]) -> Numbers:
    """Return the numbers of an older checkpoint with those that it does not name yet."""
    return _SINCE_ADDED.get(numbers["family"], {}) | dict(numbers)


def build_model(numbers: Numbers, num_classes: int) -> nn.Module:
    """Build a randomly initialised model from resolved numbers, reaching no network.

    `num_classes` counts the class columns without `no object`. Raises DetrKitError where the
    numbers do not fit each other.
    """
    from detr_kit.models.builders import BUILDERS

    return BUILDERS[numbers["family"]](completed(numbers), num_classes)
