"""The same cases through detr_kit, and how far its results are from a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.official import open_official
from detr_kit.detections import Detections
from detr_kit.losses import SetCriterion
from detr_kit.matching import Assignment
from detr_kit.models.zoo import build_model
from detr_kit.postprocess import to_detections
from detr_kit.structures import ImageBatch, ModelOutput, Target, TargetBatch
from tests.parity.official import NUM_CLASSES, ORIGINAL_SIZES_HW, Reference, images, normal

# The official post-processing predicts every column of the head, the unused ones as well.
EVERY_COLUMN = CategoryTable(
    tuple(range(NUM_CLASSES)), tuple(f"column {column}" for column in range(NUM_CLASSES))
)

# The official criterion keeps its class weights in float32, also where it computes in float64.
NO_OBJECT_WEIGHT = float(np.float32(0.1))


@dataclass
class Setup:
    """Our side of a case, before it runs; planted faults change it."""

    model: nn.Module
    criterion: SetCriterion
    official_keys: dict[str, str]  # of every parameter and buffer, by our name
    to_detections: Callable[..., list[Detections]] = to_detections

    @classmethod
    def of(
        cls,
        reference: Reference,
        official_weights: Mapping[str, Tensor],
        architecture: Mapping[str, Any] | None = None,
    ) -> Setup:
        """Build a case from its weights, float64; `architecture` changes its numbers."""
        opened = open_official(
            dict(official_weights),
            source=reference.name,
            args=official_args(reference.settings),
            architecture={"padding": "official"},
        )
        numbers = {**opened.spec.architecture, **(architecture or {})}
        with torch.device("meta"):
            model = build_model(numbers, NUM_CLASSES)
        model.load_state_dict(opened.tensors, assign=True)
        keys = {name: opened.key_map.to_theirs_keys(name)[0] for name in opened.tensors}
        criterion = SetCriterion(NUM_CLASSES, no_object_weight=NO_OBJECT_WEIGHT)
        return cls(model.eval(), criterion, keys)


def official_args(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a case's settings as the official training script would store them."""
    if "arguments" not in settings:
        return {name: settings[name] for name in ("init_pe_size", "mid_pe_size")}
    args: dict[str, Any] = {"nheads": 8, "dilation": False}
    name = ""
    for word in settings["arguments"]:
        if word.startswith("--"):
            name = word.removeprefix("--")
            args[name] = True
        else:
            args[name] = int(word) if word.isdigit() else word
    return args


@dataclass(frozen=True, eq=False)
class Arrays:
    """Takes the place of Detections, whose arrays are float32, to see what they are made from."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    names: list[str]


@dataclass(frozen=True, eq=False)
class Run:
    """What detr_kit gives for a case; `detections` an image, in the order of the queries.

    `gradients` are of the total loss, by official key; None where no backward pass was run.
    """

    output: ModelOutput
    alone: ModelOutput
    losses: dict[str, float]
    assignment: Assignment
    detections: list[Arrays]
    gradients: dict[str, Tensor] | None = None


def run(setup: Setup, reference: Reference, *, backward: bool) -> Run:
    """Run a case in the precision of its model."""
    model, criterion = setup.model, setup.criterion
    dtype = next(model.parameters()).dtype
    pixels = [torch.from_numpy(image).to(dtype) for image in images()]
    targets = TargetBatch.from_targets(
        [
            Target(torch.from_numpy(labels), torch.from_numpy(boxes), index)
            for index, (labels, boxes) in enumerate(reference.targets)
        ]
    )
    with torch.no_grad():
        alone = model(ImageBatch.from_images(pixels[:1]))
    with torch.set_grad_enabled(backward):
        output = model(ImageBatch.from_images(pixels), all_layers=True)
        losses = criterion(output, targets)
    gradients = None
    if backward:
        model.zero_grad()
        losses.total.backward()
        gradients = {
            setup.official_keys[name]: parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        model.zero_grad()
    output = ModelOutput(output.layer_logits.detach(), output.layer_boxes_cxcywh.detach())
    return Run(
        output,
        alone,
        # What pairs cost is logged by us alone.
        {k: float(v) for k, v in losses.logged.items() if not k.startswith("cost_")}
        | {"total": float(losses.total.detach())},
        criterion.matcher(output, targets),
        _detections_by_query(setup, output),
        gradients,
    )


def _detections_by_query(setup: Setup, output: ModelOutput) -> list[Arrays]:
    """Post-process, and bring the detections from the order of scores to that of queries.

    Float32 outputs give real Detections; those of float64 outputs would round to float32.
    """
    exact = output.logits.dtype == torch.float64
    with mock.patch("detr_kit.postprocess.Detections", Arrays if exact else Detections):
        found = setup.to_detections(output, ORIGINAL_SIZES_HW, EVERY_COLUMN)
    ordered = []
    for logits, image in zip(output.logits, found, strict=True):
        scores = logits.softmax(-1)[:, :-1].amax(-1).numpy()
        rank = np.argsort(-scores, kind="stable")
        np.testing.assert_array_equal(image.scores, scores[rank])
        place = np.argsort(rank)
        names = [image.names[row] for row in place]
        arrays = (image.boxes_xyxy, image.scores, image.category_ids)
        ordered.append(Arrays(*(array[place] for array in arrays), names))
    return ordered


def gradient_numbers(runs: Sequence[Run]) -> list[dict[str, np.ndarray]]:
    """Return each run's gradients as a reference has them: norm, and sum with the probe."""
    numbers: list[dict[str, np.ndarray]] = [{} for _ in runs]
    for key in sorted(runs[0].gradients or {}):
        shape = tuple(runs[0].gradients[key].shape)
        probe = torch.from_numpy(normal(f"probe.{key}", shape))
        for own, one in zip(numbers, runs, strict=True):
            gradient = one.gradients[key].double()
            own[key] = np.array([gradient.norm().item(), (gradient * probe).sum().item()])
    return numbers
