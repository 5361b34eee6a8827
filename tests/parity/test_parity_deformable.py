"""Deformable DETR and RT-DETR with weights that transformers wrote, against transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DeformableDetrImageProcessor, RTDetrImageProcessor

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.keymap import KeyMap
from detr_kit.losses import SetCriterion
from detr_kit.matching import HungarianMatcher
from detr_kit.postprocess import to_detections
from detr_kit.structures import ImageBatch, Target, TargetBatch
from tests.parity.hf_deformable import CONFIGS, random_reference
from tests.parity.hf_models import (
    BOUND,
    NUM_CATEGORIES,
    Pair,
    both_outputs,
    in_dtype,
    largest,
    output_difference,
    random_batch,
    reference_inputs,
    wide_constants,
)
from tests.parity.ours import Arrays
from tests.parity.saved import Saved, saved_fixture
from tests.parity.table import Table

GRADIENT_BOUND = 1e-8  # relative to the largest element
# transformers' RT-DETR takes sides that are multiples of 32 alone, and no mask: nothing padded
# can be compared. Officially all its pictures are square, and of one size.
WHOLE = [random_batch(size) for size in ((128, 128), (96, 224), (224, 96))]
WHOLE.append(random_batch((96, 160), (96, 160), seed=3))
ODD = [random_batch(size) for size in ((117, 171), (85, 64), (33, 190))]
PADDED = [
    random_batch((96, 160), (141, 101)),
    random_batch((85, 117), (80, 64), (117, 90), (64, 96), seed=2),
]
TRAINED = random_batch((96, 128), (96, 128), (96, 128), (96, 128), seed=5)
OBJECTS = (4, 0, 25, 1)
TABLE = CategoryTable(
    tuple(range(NUM_CATEGORIES)), tuple(f"kind {column}" for column in range(NUM_CATEGORIES))
)


# What these have, others have too.
SLOW = ("deformable_r18_refined", "deformable_r50_dc5_one_level", "rtdetr_r50_wide")


saved = saved_fixture(CONFIGS, random_reference, SLOW)


def test_weights_tell_queries_and_pictures_apart(saved: Saved) -> None:
    _, theirs = both_outputs(saved.pair(padding="official"), random_batch((128, 160), (128, 160)))
    apart = (theirs.logits.unsqueeze(1) - theirs.logits.unsqueeze(2)).abs().amax(-1)
    assert (apart + torch.eye(apart.shape[1])).min() >= 0.05
    boxes = theirs.pred_boxes
    # Selected queries are neighbours, and a side of their boxes may be the same for all.
    assert (boxes.amax(1) - boxes.amin(1)).mean(-1).min() >= 0.05
    assert (theirs.logits[0] - theirs.logits[1]).abs().amax(-1).min() >= 0.05
    assert ((boxes > 0.01) & (boxes < 0.99)).float().mean() > 0.5


def test_pictures_of_one_size_give_the_same_logits_and_boxes(saved: Saved, table: Table) -> None:
    record_outputs(table, saved, "pictures alone", WHOLE)


def test_odd_sizes_and_padded_batches_give_the_same(saved: Saved, table: Table) -> None:
    if saved.is_rtdetr:
        pytest.skip("transformers' RT-DETR takes neither odd sizes nor a mask")
    record_outputs(table, saved, "odd sizes", ODD)
    record_outputs(table, saved, "padded batches", PADDED)


def test_all_layers_losses_and_gradients_are_the_same(saved: Saved, table: Table) -> None:
    # transformers takes the gradient of a box at its own layer, not at the one after too; of
    # backbones it freezes the norms alone.
    pair = saved.pair({"look_forward_twice": False, "frozen_stages": 0}, padding="official").to(
        torch.float64
    )
    batch = in_dtype(TRAINED if saved.is_rtdetr else PADDED[1], torch.float64)
    found = (rtdetr_losses if saved.is_rtdetr else deformable_losses)(pair, batch)
    for what, differences in found.differences.items():
        table.row(f"transformers, {saved.name}: {what}", float64=largest(differences), bound=BOUND)
    table.row(
        f"transformers, {saved.name}: gradients of losses of all layers, relative",
        float64=gradient_difference(pair, saved.key_map(), found.totals),
        bound=GRADIENT_BOUND,
    )


def test_post_processing_is_the_same(saved: Saved, table: Table) -> None:
    pair, sizes_hw = saved.pair(padding="official").to(torch.float64), [(480, 640), (333, 500)]
    ours, theirs = both_outputs(pair, in_dtype(WHOLE[-1], torch.float64))
    with mock.patch("detr_kit.postprocess.Detections", Arrays):
        own = to_detections(ours, sizes_hw, TABLE)
    count = ours.logits.shape[1]
    if saved.is_rtdetr:
        found = RTDetrImageProcessor().post_process_object_detection(
            theirs, threshold=0.0, target_sizes=torch.tensor(sizes_hw)
        )
    else:
        found = DeformableDetrImageProcessor().post_process_object_detection(
            theirs, threshold=0.0, target_sizes=torch.tensor(sizes_hw), top_k=count
        )
    for kind in ("scores", "labels", "boxes"):
        names = {"labels": "category_ids", "boxes": "boxes_xyxy"}
        differences = []
        for image, reference in zip(own, found, strict=True):
            values = np.asarray(getattr(image, names.get(kind, kind)), dtype=np.float64)
            assert len(values) == count
            differences.append(torch.from_numpy(values) - reference[kind].double())
        unit = " (pixels)" if kind == "boxes" else ""
        table.row(
            f"transformers, {saved.name}: post-processing, {kind}{unit}",
            float64=largest(differences),
            bound=BOUND,
        )


def record_outputs(table: Table, saved: Saved, where: str, batches: list[ImageBatch]) -> None:
    pair = saved.pair(padding="official")
    float32 = None if saved.selects else output_difference(pair, batches, torch.float32)
    table.row(
        f"transformers, {saved.name}, {where}: logits and boxes",
        float64=output_difference(pair, batches, torch.float64),
        float32=float32,
        bound=BOUND,
    )


@dataclass(frozen=True)
class Losses:
    """Differences of both sides by what was compared, and both totals."""

    differences: dict[str, list[Tensor]]
    totals: tuple[Tensor, Tensor]


def random_targets(counts: tuple[int, ...], seed: int = 3) -> TargetBatch:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for image_id, count in enumerate(counts):
        sides = 0.05 + 0.4 * torch.rand(count, 2, generator=generator)
        centers = 0.25 + 0.5 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(NUM_CATEGORIES, (count,), generator=generator)
        targets.append(Target(labels, torch.cat([centers, sides], dim=1), image_id))
    return TargetBatch.from_targets(targets)


def labels_of(targets: TargetBatch, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    boxes = targets.boxes_cxcywh.to(dtype).split(targets.counts)
    return [
        {"class_labels": columns, "boxes": image_boxes}
        for columns, image_boxes in zip(targets.labels.split(targets.counts), boxes, strict=True)
    ]


def deformable_losses(pair: Pair, batch: ImageBatch) -> Losses:
    """Compare in evaluation mode: transformers has no loss of the proposals."""
    targets = random_targets(OBJECTS)
    pair.reference.config.auxiliary_loss = True
    output = pair.ours(batch, all_layers=True)
    ours = SetCriterion(NUM_CATEGORIES)(output, targets)
    with wide_constants(batch.pixels.dtype):
        theirs = pair.reference(
            **reference_inputs(pair.reference, batch), labels=labels_of(targets, torch.float64)
        )
    names = {"loss_ce": "class", "loss_bbox": "l1", "loss_giou": "giou"}
    values = [ours.total - theirs.loss]
    for key, value in theirs.loss_dict.items():
        kind, layer = re.fullmatch(r"(\w+?)(_\d+)?", key).groups("")
        if kind in names:
            values.append(ours.logged[names[kind] + layer] - value)
        elif not layer:  # ours logs the cardinality error of the last layer alone
            values.append(ours.logged[kind] - value)
    layers = len(output.layer_logits)
    assert len(values) == 2 + 3 * layers
    earlier = theirs.auxiliary_outputs
    assert len(earlier) == layers - 1
    outputs = [
        own[layer] - reference[key]
        for own, key in ((output.layer_logits, "logits"), (output.layer_boxes_cxcywh, "pred_boxes"))
        for layer, reference in enumerate([*earlier, theirs])
    ]
    return _losses(values, outputs, ours.total, theirs.loss)


def rtdetr_losses(pair: Pair, batch: ImageBatch, criterion: SetCriterion | None = None) -> Losses:
    """Compare in training, where the proposals have a loss; without denoising, which is random."""
    targets = random_targets(OBJECTS)
    pair.ours.train()
    pair.reference.train().config.num_denoising = 0
    output = pair.ours(batch)
    criterion = criterion or rtdetr_criterion()
    ours = criterion(output, targets)
    with wide_constants(batch.pixels.dtype):
        theirs = pair.reference(pixel_values=batch.pixels, labels=labels_of(targets, torch.float64))
    layers = len(output.layer_logits)
    values = [ours.total - theirs.loss]
    values += rtdetr_loss_differences(criterion, ours.logged, theirs.loss_dict, layers)
    logits, boxes = theirs.intermediate_logits, theirs.intermediate_reference_points
    outputs = [output.layer_logits[0] - theirs.enc_topk_logits]
    outputs.append(output.layer_boxes_cxcywh[0] - theirs.enc_topk_bboxes)
    outputs.append(output.layer_logits[1:] - logits.transpose(0, 1))
    outputs.append(output.layer_boxes_cxcywh[1:] - boxes.transpose(0, 1))
    return _losses(values, outputs, ours.total, theirs.loss)


def rtdetr_criterion() -> SetCriterion:
    return SetCriterion(
        NUM_CATEGORIES, HungarianMatcher(class_cost=2.0), classification="varifocal"
    )


def rtdetr_loss_differences(
    criterion: SetCriterion,
    logged: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    layers: int,
) -> list[Tensor]:
    """Return the differences of `layers`, the proposals' the first; theirs are weighted."""
    differences = []
    kinds = {"loss_vfl": "class", "loss_bbox": "l1", "loss_giou": "giou"}
    for official, own in kinds.items():
        # Ours have the proposals before the decoder's layers, theirs after the earlier ones.
        places = {f"{official}_aux_{layers - 2}": f"{own}_0", official: own}
        for layer in range(layers - 2):
            places[f"{official}_aux_{layer}"] = f"{own}_{layer + 1}"
        assert len(places) == layers
        weight = criterion.weights[own]
        differences += [weight * logged[name] - theirs[key] for key, name in places.items()]
    return differences


def _losses(values: list[Tensor], outputs: list[Tensor], ours: Tensor, theirs: Tensor) -> Losses:
    differences = {"losses of all layers": values, "logits and boxes of all layers": outputs}
    detached = {what: [one.detach() for one in found] for what, found in differences.items()}
    return Losses(detached, (ours, theirs))


def gradient_difference(pair: Pair, key_map: KeyMap, totals: tuple[Tensor, Tensor]) -> float:
    """Return the largest difference over all parameters, each relative to the largest element."""
    for total in totals:
        total.backward()
    theirs, _ = key_map.to_ours(
        {
            key: parameter.grad
            for key, parameter in pair.reference.named_parameters()
            if parameter.grad is not None
        }
    )
    assert len(theirs) > 50
    own = {name: parameter.grad for name, parameter in pair.ours.named_parameters()}
    assert theirs.keys() <= own.keys()
    worst = []
    for name, gradient in own.items():
        reference = theirs.get(name)
        if gradient is None:
            assert reference is None, name
        elif reference is None:
            assert not gradient.any(), name
        else:
            scale = float(reference.abs().max())
            worst.append((gradient - reference) / (scale if scale > 1e-9 else 1.0))
    return largest(worst)
