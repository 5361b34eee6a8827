from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from detr_kit.structures import ImageBatch

SIZES = ((97, 141), (160, 120), (131, 203))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backbone_norm": "frozen", "pre_norm": False},
        {"backbone_norm": "group"},
        {"backbone_stages": 3, "position_encoding": "learned"},
        {"backbone": "resnet50", "dilation": True, "backbone_norm": "frozen"},
        {"backbone": "plain", "positions_at_input": True},
        {"backbone": "timm/tf_efficientnet_lite0"},
        {"backbone": "timm/tf_efficientnet_lite0", "backbone_stages": 4},
        {"backbone": "timm/mobilenetv3_small_050"},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()) or "resnet18",
)
def test_a_prediction_does_not_depend_on_the_batch(
    build: Callable[..., nn.Module],
    make_batch: Callable[..., ImageBatch],
    batch_difference: Callable[..., float],
    changes: dict,
) -> None:
    if str(changes.get("backbone")).startswith("timm/"):
        pytest.importorskip("timm")
    model = build("detr_small", **changes).double()
    batch = make_batch(*SIZES, dtype=torch.float64)
    assert batch_difference(model, batch) <= 1e-9


def test_positions_at_input_change_the_function(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    model = build("detr_small", backbone="plain", positions_at_input=True).eval()
    plain = build("detr_small", backbone="plain").eval()
    plain.load_state_dict(model.state_dict())
    batch = make_batch((64, 64))
    with torch.no_grad():
        assert (model(batch).logits - plain(batch).logits).abs().max() > 1e-3


def test_official_padding_does_depend_on_the_batch(
    build: Callable[..., nn.Module],
    make_batch: Callable[..., ImageBatch],
    batch_difference: Callable[..., float],
) -> None:
    batch = make_batch(*SIZES, dtype=torch.float64)
    official = build("detr_small", padding="official").double()
    assert batch_difference(official, batch) > 1e-3
    # Without padding there is nothing to differ in.
    ours = build("detr_small").double().eval()
    single = make_batch(SIZES[0], dtype=torch.float64)
    torch.testing.assert_close(ours(single).logits, official(single).logits, rtol=0, atol=1e-12)


def test_what_lies_in_the_padding_does_not_matter(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    model = build("detr_small").eval()
    batch = make_batch((64, 64), (50, 40))
    noisy = torch.where(batch.padding_mask[:, None], 9.0, batch.pixels)
    changed = ImageBatch(noisy, batch.padding_mask, batch.sizes_hw)
    with torch.no_grad():
        assert torch.equal(model(batch).logits, model(changed).logits)


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_training_reaches_every_parameter(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch], norm: str
) -> None:
    model = build("detr_small", backbone_norm=norm).train()
    output = model(make_batch((64, 96), (50, 40)))
    assert output.layer_logits.shape == (2, 2, 7, 6)
    assert output.layer_boxes_cxcywh.shape == (2, 2, 7, 4)
    (output.layer_logits.square().sum() + output.layer_boxes_cxcywh.sum()).backward()
    for name, parameter in model.named_parameters():
        # The first decoder layer starts from zeros: its self attention of pre-norm layers sees
        # only the norm's bias, which is not zero here.
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "norm1.weight" in name, name


def test_layers_are_asked_for_or_follow_the_mode(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    model, batch = build("detr_small").eval(), make_batch((64, 64))
    last = model(batch)
    assert last.layer_logits.shape[0] == 1
    every = model(batch, all_layers=True)
    assert every.layer_logits.shape[0] == 2
    assert torch.equal(every.logits, last.logits)
    assert not torch.equal(every.layer_logits[0], every.layer_logits[1])
    assert model.train()(batch, all_layers=False).layer_logits.shape[0] == 1


def test_boxes_are_fractions(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    boxes = build("detr_small").eval()(make_batch((33, 65))).boxes_cxcywh
    assert ((boxes > 0) & (boxes < 1)).all()


@pytest.mark.parametrize("pre_norm", [True, False])
def test_activation_checkpointing_gives_equal_gradients(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch], pre_norm: bool
) -> None:
    batch = make_batch((64, 96), (50, 40))
    gradients = []
    for checkpointed in (False, True):
        changes = {"pre_norm": pre_norm, "activation_checkpointing": checkpointed}
        model = build("detr_small", **changes, dropout=0.1).train()
        torch.manual_seed(5)
        output = model(batch)
        (output.layer_logits.square().sum() + output.layer_boxes_cxcywh.sum()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, saved in zip(*gradients, strict=True):
        assert torch.equal(plain, saved)


def test_runs_channels_last_and_in_bfloat16(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    model = build("detr_small", backbone_norm="frozen").eval()
    batch = make_batch((64, 96), (50, 40))
    last = batch.pixels.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain = model(batch)
        swapped = model(ImageBatch(last, batch.padding_mask, batch.sizes_hw))
        torch.testing.assert_close(plain.logits, swapped.logits, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(batch)
    assert half.logits.dtype == half.boxes_cxcywh.dtype == torch.float32
    torch.testing.assert_close(half.boxes_cxcywh, plain.boxes_cxcywh, rtol=0, atol=0.1)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_channels_last_gives_equal_gradients(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch], norm: str
) -> None:
    batch = make_batch((64, 96), (50, 40), dtype=torch.float64)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = build("detr_small", backbone_norm=norm, dropout=0.0).double().train()
        model.to(memory_format=layout)
        pixels = batch.pixels.contiguous(memory_format=layout)
        output = model(ImageBatch(pixels, batch.padding_mask, batch.sizes_hw))
        (output.layer_logits.square().sum() + output.layer_boxes_cxcywh.sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, plain in gradients[0].items():
        swapped, scale = gradients[1][name], float(plain.abs().max())
        torch.testing.assert_close(swapped, plain, atol=1e-10 * scale + 1e-15, rtol=0, msg=name)
