from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from detr_kit.models.anchor_decoder import AnchorDecoder
from detr_kit.models.anchors import moved
from detr_kit.models.denoising import blocked_queries
from detr_kit.models.heads import DetectionHeads
from detr_kit.models.positions import MemoryPositions
from detr_kit.models.pyramid import Pyramid, flatten_levels
from detr_kit.models.queries import Queries

DIM, LAYERS = 16, 3


def decoder(**changes: Any) -> AnchorDecoder:
    torch.manual_seed(0)
    numbers = {
        "num_levels": 2,
        "num_points": 2,
        "positions": "mlp",
        "refinement": True,
        "look_forward_twice": False,
        "norm": False,
        "dropout": 0.0,
    }
    return AnchorDecoder(DIM, LAYERS, 2, 24, **(numbers | changes)).double()


def heads(count: int = LAYERS) -> nn.ModuleList:
    torch.manual_seed(1)
    made = [DetectionHeads(DIM, 3, class_layers=1, scoring="sigmoid") for _ in range(count)]
    return nn.ModuleList(made).double()


def memory(*, padded: bool = False) -> Pyramid:
    generator = torch.Generator().manual_seed(3)
    levels = []
    for height, width in ((5, 4), (3, 2)):
        features = torch.randn(2, DIM, height, width, generator=generator, dtype=torch.float64)
        mask = None
        if padded:
            mask = torch.zeros(2, height, width, dtype=torch.bool)
            mask[1, :, -(-width // 2) :] = True
        levels.append((features, mask))
    return flatten_levels(levels)


def queries(count: int = 4, *, numbers: int = 4, positions: bool = False) -> Queries:
    generator = torch.Generator().manual_seed(4)
    content, given = torch.randn(2, 2, count, DIM, generator=generator, dtype=torch.float64)
    reference = torch.rand(2, count, numbers, generator=generator, dtype=torch.float64)
    return Queries(content, reference, given if positions else None)


def test_boxes_are_refined_layer_by_layer() -> None:
    model, own, start = decoder(), heads(), queries()
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[2], output)))
    logits, boxes = model(start, memory(), own, all_layers=True)
    assert logits.shape == (LAYERS, 2, 4, 3)
    reference = start.reference
    for index, (given, output) in enumerate(seen):
        torch.testing.assert_close(given, reference)
        reference = moved(own[index].box_head(output), reference)
        torch.testing.assert_close(boxes[index], reference)
        torch.testing.assert_close(logits[index], own[index].class_head(output))


def test_without_refinement_all_layers_predict_from_the_first_reference() -> None:
    model = decoder(refinement=False, positions="given")
    own, start = heads(1), queries(numbers=2, positions=True)
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[2], output)))
    _, boxes = model(start, memory(), own, all_layers=True)
    for index, (given, output) in enumerate(seen):
        assert given is start.reference
        torch.testing.assert_close(boxes[index], moved(own[0].box_head(output), start.reference))


def test_a_point_becomes_a_box_after_the_first_layer() -> None:
    model = decoder(positions="given")
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[2].shape[-1]))
    model(queries(numbers=2, positions=True), memory(), heads(), all_layers=False)
    assert seen == [2, 4, 4]


@pytest.mark.parametrize("twice", [False, True])
def test_a_box_teaches_the_layer_before_it_if_that_looks_forward_twice(twice: bool) -> None:
    model, own = decoder(look_forward_twice=twice), heads()
    _, boxes = model(queries(), memory(), own, all_layers=True)
    boxes[2].sum().backward()
    reached = [bool(head.box_head.last.weight.grad.any()) for head in own]
    assert reached == [False, twice, True]


def test_the_norm_is_for_what_is_predicted_and_not_for_what_is_refined() -> None:
    model, own, start = decoder(norm=True), heads(), queries()
    with torch.no_grad():
        model.norm.weight.normal_()
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[2], output)))
    logits, boxes = model(start, memory(), own, all_layers=True)
    (_, first), (refined, second) = seen[:2]
    torch.testing.assert_close(refined, moved(own[0].box_head(first), start.reference))
    torch.testing.assert_close(boxes[0], moved(own[0].box_head(model.norm(first)), start.reference))
    torch.testing.assert_close(boxes[1], moved(own[1].box_head(model.norm(second)), refined))
    torch.testing.assert_close(logits[1], own[1].class_head(model.norm(second)))


@pytest.mark.parametrize("positions", ["sine", "mlp"])
def test_positions_follow_the_references(positions: str) -> None:
    model, start = decoder(positions=positions), queries()
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, __: seen.append((inputs[1], inputs[2])))
    model(start, memory(), heads(), all_layers=False)
    for given, reference in seen:
        numbers = reference if positions == "mlp" else model.sine(reference)
        torch.testing.assert_close(given, model.positions(numbers))
    assert not torch.equal(seen[0][0], seen[1][0])


def test_the_last_layer_alone_is_the_last_of_all() -> None:
    model, own = decoder(norm=True, look_forward_twice=True), heads()
    every = model(queries(), memory(), own, all_layers=True)
    last = model(queries(), memory(), own, all_layers=False)
    for ours, theirs in zip(last, every, strict=True):
        assert ours.shape[0] == 1
        assert torch.equal(ours[0], theirs[-1])


@pytest.mark.parametrize("cross_attention", ["deformable", "dense"])
def test_padding_of_the_memory_is_not_seen(cross_attention: str) -> None:
    model, own = decoder(cross_attention=cross_attention), heads()
    torch.manual_seed(5)
    of_memory, padded = MemoryPositions(DIM, 2).double(), memory(padded=True)
    outside = padded.padding_mask.unsqueeze(-1)
    outputs = []
    for noise in (0.0, 7.0):
        noisy = padded.with_tokens(padded.tokens.masked_fill(outside, noise))
        positions = of_memory(noisy) if cross_attention == "dense" else None
        outputs.append(model(queries(), noisy, own, memory_positions=positions, all_layers=True))
    for ours, theirs in zip(*outputs, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("cross_attention", ["deformable", "dense"])
def test_queries_for_training_only_change_nothing(cross_attention: str) -> None:
    model, own = decoder(cross_attention=cross_attention), heads()
    # The first 4 predict, 4 of another group, two copies of 3.
    every = queries(14)
    first = replace(every, content=every.content[:, :4], reference=every.reference[:, :4])
    blocked = blocked_queries(2, 4, 6, 2, torch.device("cpu"))
    together = model(every, memory(), own, blocked=blocked, all_layers=True)
    alone = model(first, memory(), own, all_layers=True)
    for ours, theirs in zip(alone, together, strict=True):
        torch.testing.assert_close(ours, theirs[:, :, :4], rtol=0, atol=1e-13)
    unblocked = model(every, memory(), own, all_layers=True)
    assert (unblocked[0][:, :, :4] - alone[0]).abs().max() > 1e-6


def test_hidden_queries_change_nothing() -> None:
    model, own, every = decoder(), heads(), queries(6)
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[1, 4:] = True
    fewer = replace(every, content=every.content[:, :4], reference=every.reference[:, :4])
    together = model(every, memory(), own, hidden=hidden, all_layers=True)
    alone = model(fewer, memory(), own, all_layers=True)
    torch.testing.assert_close(together[1][:, 1, :4], alone[1][:, 1], rtol=0, atol=1e-13)
    assert (together[1][:, 0, :4] - alone[1][:, 0]).abs().max() > 1e-6


def test_activation_checkpointing_gives_equal_gradients() -> None:
    gradients = []
    for checkpointed in (False, True):
        model, own = decoder(activation_checkpointing=checkpointed, dropout=0.1), heads()
        torch.manual_seed(6)
        logits, boxes = model.train()(queries(), memory(), own, all_layers=True)
        (logits.square().sum() + boxes.sum()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, saved in zip(*gradients, strict=True):
        assert torch.equal(plain, saved)
