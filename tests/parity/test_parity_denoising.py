"""RT-DETR's denoising in training against transformers, with noise that both sides draw alike.

What the two do differently is left out by the choice of noise and of objects: transformers lets
queries see those that stand for nothing, where an image has fewer objects than another, and makes
a box of no width of corners that have moved past each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detr_kit.checkpoints.sources import open_checkpoint
from tests.parity.hf_deformable import random_reference
from tests.parity.hf_models import (
    BOUND,
    Pair,
    in_dtype,
    largest,
    load_ours,
    random_batch,
    save_reference,
    wide_constants,
)
from tests.parity.table import Table
from tests.parity.test_parity_deformable import (
    GRADIENT_BOUND,
    gradient_difference,
    labels_of,
    random_targets,
    rtdetr_criterion,
    rtdetr_loss_differences,
)

NAME = "rtdetrv2_r18d"
OBJECTS = (3, 3)


class EqualNoise(TorchFunctionMode):
    """Random numbers that are a function of the shape alone; of signs, the positive one.

    Corners that all move right and down never pass each other.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.rand, torch.rand_like):
            return _spread(made)
        if func is torch.randint_like:
            high = args[-1]
            return torch.ones_like(made) if high == 2 else (_spread(made.double()) * high).to(made)
        return made


def _spread(made: Tensor) -> Tensor:
    steps = torch.arange(1, made.numel() + 1, dtype=torch.float64) * 0.6180339887498949
    return (steps % 1.0).view(made.shape).to(made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(NAME)


def test_denoising_is_the_same(folder: Path, table: Table) -> None:
    reference = random_reference(NAME)
    save_reference(reference, folder)
    ours = load_ours(folder, build_as={"look_forward_twice": False}, padding="official")
    pair = Pair(ours, reference).to(torch.float64)
    batch = in_dtype(random_batch((96, 128), (96, 128), seed=5), torch.float64)
    targets = random_targets(OBJECTS)
    targets = replace(targets, boxes_cxcywh=targets.boxes_cxcywh.double())
    pair.ours.train()
    pair.reference.train()
    with EqualNoise():
        output = pair.ours(batch, targets=targets)
        with wide_constants(torch.float64):
            theirs = pair.reference(
                pixel_values=batch.pixels, labels=labels_of(targets, torch.float64)
            )
    denoised, meta = output.denoised, theirs.denoising_meta_values
    assert denoised is not None
    assert denoised.plan.copies == meta["dn_num_group"] == 4
    count = denoised.plan.present.shape[1]
    assert [count, output.layer_logits.shape[2]] == list(meta["dn_num_split"])
    logits = theirs.intermediate_logits.transpose(0, 1)
    boxes = theirs.intermediate_reference_points.transpose(0, 1)
    both = {
        "denoised logits": denoised.layer_logits - logits[:, :, :count],
        "denoised boxes": denoised.layer_boxes_cxcywh - boxes[:, :, :count],
        "logits beside denoising": output.layer_logits[1:] - logits[:, :, count:],
        "boxes beside denoising": output.layer_boxes_cxcywh[1:] - boxes[:, :, count:],
    }
    criterion = rtdetr_criterion()
    losses = criterion(output, targets)
    layers = len(output.layer_logits)
    values = rtdetr_loss_differences(criterion, losses.logged, theirs.loss_dict, layers)
    last = layers - 2
    for key, name in (("loss_vfl", "class"), ("loss_bbox", "l1"), ("loss_giou", "giou")):
        own = criterion.weights[name] * losses.logged[f"dn_{name}"]
        values.append(own - theirs.loss_dict[f"{key}_dn_{last}"])
    both["losses"] = torch.stack([*values, losses.total - theirs.loss])
    for what, difference in both.items():
        table.row(
            f"transformers, {NAME}, denoising: {what}",
            float64=largest([difference.detach()]),
            bound=BOUND,
        )
    key_map = open_checkpoint(folder).key_map
    assert key_map is not None
    table.row(
        f"transformers, {NAME}, denoising: gradients, relative",
        float64=gradient_difference(pair, key_map, (losses.total, theirs.loss)),
        bound=GRADIENT_BOUND,
    )
