"""Our models with weights that transformers wrote, against transformers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detr_kit.losses import SetCriterion
from detr_kit.structures import ImageBatch, Target, TargetBatch
from tests.parity.hf_models import (
    BOUND,
    CONFIGS,
    NUM_CATEGORIES,
    Pair,
    both_attention_maps,
    both_outputs,
    in_dtype,
    largest,
    load_ours,
    output_difference,
    random_batch,
    random_reference,
    reference_inputs,
    save_reference,
    wide_constants,
)
from tests.parity.saved import Saved, saved_fixture
from tests.parity.table import Table

GRADIENT_BOUND = 1e-8  # relative to the largest element
# Square, wide, tall, of odd sides, and of the size that the small YOLOS' positions belong to.
ALONE = [random_batch(size) for size in ((128, 128), (96, 224), (224, 96), (117, 171), (96, 160))]
PADDED = [
    random_batch((96, 160), (141, 101)),
    random_batch((85, 117), (80, 64), (117, 90), (64, 96), seed=2),
]
# No object, one, a few, more than the small models' queries. The images are four, as the mean of
# the cardinality errors is taken in float32, which is exact for fourths alone.
OBJECTS = (4, 0, 25, 1)

# Names of ours, what theirs match, and which of query, key and value it is of a packed one.
DETR_PARAMETERS = (
    ("heads.class_head.layers.0.weight", r"^class_labels_classifier\.weight", None),
    ("heads.box_head.layers.0.bias", r"^bbox_predictor\.layers\.0\.bias", None),
    ("decoder.norm.weight", r"decoder\.layernorm\.weight", None),
    ("decoder.layers.1.cross_attn.qkv.weight", r"decoder.*1\.encoder_attn\.k_proj\.weight", 1),
    ("queries.weight", r"query_position_embeddings\.weight", None),
    ("encoder.layers.0.attn.qkv.weight", r"encoder.*0\.self_attn\.q_proj\.weight", 0),
    ("input_proj.weight", r"input_projection\.weight", None),
)
# transformers trains nothing of its own ResNets, whose stages it looks for under another name.
TIMM_PARAMETERS = (("backbone.body.layer3.0.conv2.weight", r"layer3\.0\.conv2\.weight", None),)
YOLOS_PARAMETERS = (
    ("heads.class_head.layers.2.weight", r"^class_labels_classifier\.layers\.2\.weight", None),
    ("backbone.norm.bias", r"vit\.layernorm\.bias", None),
    ("backbone.blocks.0.attn.qkv.weight", r"\.0\.attention.*(value|v_proj)\.weight", 2),
    ("backbone.det_token", r"detection_tokens", None),
    ("backbone.pos_embed", r"embeddings\.position_embeddings", None),
    ("backbone.patch_embed.proj.weight", r"patch_embeddings\.projection\.weight", None),
)
MID_PARAMETERS = (("backbone.mid_pos_embed", r"mid_position_embeddings", None),)


# What these two have, others have too.
SLOW = ("detr_transformers_r18", "yolos_full_width")


saved = saved_fixture(CONFIGS, random_reference, SLOW)


def test_weights_tell_queries_and_pictures_apart(saved: Saved) -> None:
    batch = random_batch((128, 160), (128, 160))
    _, theirs = both_outputs(saved.pair(), batch)
    apart = (theirs.logits.unsqueeze(1) - theirs.logits.unsqueeze(2)).abs().amax(-1)
    assert (apart + torch.eye(apart.shape[1])).min() >= 0.05
    boxes = theirs.pred_boxes
    assert (boxes.amax(1) - boxes.amin(1)).min() >= 0.05
    assert (theirs.logits[0] - theirs.logits[1]).abs().amax(-1).min() >= 0.05
    assert ((boxes > 0.01) & (boxes < 0.99)).float().mean() > 0.5


def test_pictures_alone_give_the_same_logits_and_boxes(saved: Saved, table: Table) -> None:
    record_outputs(table, f"{saved.name}, pictures alone", saved.pair(), ALONE)


def test_padded_batches_give_the_same_logits_and_boxes(saved: Saved, table: Table) -> None:
    pair = saved.pair(padding="official")
    record_outputs(table, f"{saved.name}, padded batches", pair, PADDED)


def test_attention_maps_are_the_same(saved: Saved, table: Table) -> None:
    pair = saved.pair(padding="official")
    found = {}
    for dtype in (torch.float64, torch.float32):
        ours, theirs = both_attention_maps(pair.to(dtype), in_dtype(PADDED[0], dtype))
        assert ours.keys() == theirs.keys()
        for kind, maps in theirs.items():
            differences = [a - b for a, b in zip(ours[kind], maps, strict=True)]
            found[kind, dtype] = largest(differences)
    for kind in theirs:
        table.row(
            f"transformers, {saved.name}: attention weights, {kind}",
            float64=found[kind, torch.float64],
            float32=found[kind, torch.float32],
            bound=BOUND,
        )


def test_losses_and_gradients_are_the_same(saved: Saved, table: Table) -> None:
    pair = saved.pair(padding="official")
    is_detr = saved.name.startswith("detr")
    # Their YOLOS keeps no features that an auxiliary loss could be of, and raises.
    for auxiliary in (False, True) if is_detr else (False,):
        kind = "losses of all layers" if auxiliary else "losses"
        values, gradients = {}, {}
        for dtype in (torch.float64, torch.float32):
            values[dtype], gradients[dtype] = loss_differences(
                pair.to(dtype), in_dtype(PADDED[1], dtype), auxiliary, parameters_of(saved.name)
            )
        for what, found, bound in (
            (kind, values, BOUND),
            (f"gradients of {kind}, relative", gradients, GRADIENT_BOUND),
        ):
            table.row(
                f"transformers, {saved.name}: {what}",
                float64=found[torch.float64],
                float32=found[torch.float32],
                bound=bound,
            )


@pytest.mark.parametrize("name", ["detr_transformers_r18", "yolos_mid"])
def test_weights_in_the_older_file_are_the_same(name: str, tmp_path: Path, table: Table) -> None:
    reference = random_reference(name)
    save_reference(reference, tmp_path, as_bin=True)
    assert not list(tmp_path.glob("*.safetensors"))
    record_outputs(table, f"{name}, pytorch_model.bin", Pair(load_ours(tmp_path), reference), ALONE)


def test_positions_of_a_turned_picture_are_resampled(tmp_path: Path, table: Table) -> None:
    """As many patches as the position table has, but in other rows and columns."""
    reference = random_reference("yolos_mid")
    save_reference(reference, tmp_path)
    turned = [random_batch((160, 96))]
    ours = Pair(load_ours(tmp_path), reference)
    record_outputs(table, "yolos_mid, as many patches as positions", ours, turned)
    # The official code takes the table as it is where the numbers agree.
    official = Pair(load_ours(tmp_path, padding="official"), reference)
    assert output_difference(official, turned) > 0.01


def record_outputs(table: Table, comparison: str, pair: Pair, batches: list[ImageBatch]) -> None:
    table.row(
        f"transformers, {comparison}: logits and boxes",
        float64=output_difference(pair, batches, torch.float64),
        float32=output_difference(pair, batches, torch.float32),
        bound=BOUND,
    )


def parameters_of(name: str) -> tuple:
    if name.startswith("yolos"):
        return YOLOS_PARAMETERS + (() if name == "yolos_no_mid" else MID_PARAMETERS)
    return DETR_PARAMETERS + (() if "transformers" in name else TIMM_PARAMETERS)


def random_targets(batch: ImageBatch) -> TargetBatch:
    generator = torch.Generator().manual_seed(3)
    targets = []
    for image_id, count in zip(range(len(batch.sizes_hw)), OBJECTS, strict=True):
        sides = 0.05 + 0.4 * torch.rand(count, 2, generator=generator)
        centers = 0.25 + 0.5 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(NUM_CATEGORIES, (count,), generator=generator)
        targets.append(Target(labels, torch.cat([centers, sides], dim=1), image_id))
    return TargetBatch.from_targets(targets)


def loss_differences(
    pair: Pair, batch: ImageBatch, auxiliary: bool, parameters: tuple
) -> tuple[float, float]:
    """Return the largest difference of the losses, and that of the parameters' gradients."""
    targets = random_targets(batch)
    output = pair.ours(batch, all_layers=auxiliary)
    ours = SetCriterion(NUM_CATEGORIES)(output, targets)
    total, theirs = reference_losses(pair.reference, batch, targets, auxiliary)
    values = [ours.total - total]
    names = {"loss_ce": "class", "loss_bbox": "l1", "loss_giou": "giou"}
    for key, value in theirs.items():
        kind, layer = re.fullmatch(r"(\w+?)(_\d+)?", key).groups("")
        if kind in names:
            values.append(ours.logged[names[kind] + layer] - value)
        elif not layer:  # ours logs the cardinality error of the last layer alone
            values.append(ours.logged[kind] - value)
    assert len(values) == 2 + 3 * len(output.layer_logits)
    return largest([value.detach() for value in values]), gradient_difference(
        pair, ours.total, total, parameters
    )


def reference_losses(
    reference: nn.Module, batch: ImageBatch, targets: TargetBatch, auxiliary: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total and the losses by name.

    With an auxiliary loss, their decoder feeds normalised features to its next layers, which
    makes another model of it. The layers' outputs are therefore read off as they are.
    """
    boxes = targets.boxes_cxcywh.to(batch.pixels.dtype).split(targets.counts)
    labels = [
        {"class_labels": columns, "boxes": image_boxes}
        for columns, image_boxes in zip(targets.labels.split(targets.counts), boxes, strict=True)
    ]
    inputs = reference_inputs(reference, batch)
    with wide_constants(batch.pixels.dtype):
        if not auxiliary:
            output = reference(**inputs, labels=labels)
            return output.loss, output.loss_dict
        outputs, layers = decoded(reference, inputs)
        features = reference.model.decoder.layernorm(torch.stack(layers))
        logits = reference.class_labels_classifier(features)
        boxes = reference.bbox_predictor(features).sigmoid()
        assert torch.equal(logits[-1], outputs.logits)
        reference.config.auxiliary_loss = True
        try:
            total, losses, _ = reference.loss_function(
                logits[-1], labels, reference.device, boxes[-1], reference.config, logits, boxes
            )
        finally:
            reference.config.auxiliary_loss = False
    return total, losses


def decoded(reference: nn.Module, inputs: dict[str, Tensor]) -> tuple:
    """Return their output, and what each decoder layer gave, (B, Q, D)."""
    layers: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        layers.append(output if isinstance(output, Tensor) else output[0])

    handles = [layer.register_forward_hook(keep) for layer in reference.model.decoder.layers]
    output = reference(**inputs)
    for handle in handles:
        handle.remove()
    return output, layers


def gradient_difference(pair: Pair, ours: Tensor, theirs: Tensor, parameters: tuple) -> float:
    """Return the largest difference, each relative to its gradient's largest element."""
    own = dict(pair.ours.named_parameters())
    named = list(pair.reference.named_parameters())
    found = [
        next(value for key, value in named if re.search(pattern, key))
        for _, pattern, _ in parameters
    ]
    gradients = torch.autograd.grad(theirs, found)
    own_gradients = torch.autograd.grad(ours, [own[name] for name, _, _ in parameters])
    differences = []
    for (_, _, part), a, b in zip(parameters, own_gradients, gradients, strict=True):
        assert b.abs().max() > 1e-6  # a gradient of zero would compare nothing
        unpacked = a if part is None else a.chunk(3)[part]
        differences.append((unpacked - b) / b.abs().max())
    return largest(differences)
