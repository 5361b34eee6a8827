from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ImageBatch

SIZES = ((97, 141), (160, 120), (131, 203), (24, 31))


@pytest.mark.parametrize("mid", [None, (64, 96)])
def test_a_prediction_does_not_depend_on_the_batch(
    build: Callable[..., nn.Module],
    make_batch: Callable[..., ImageBatch],
    batch_difference: Callable[..., float],
    mid: tuple[int, int] | None,
) -> None:
    changes = {} if mid is None else {"mid_position_size_hw": mid}
    model = build("yolos_small", **changes).double()
    batch = make_batch(*SIZES, dtype=torch.float64)
    assert batch_difference(model, batch) <= 1e-9


def test_official_padding_does_depend_on_the_batch(
    build: Callable[..., nn.Module],
    make_batch: Callable[..., ImageBatch],
    batch_difference: Callable[..., float],
) -> None:
    official = build("yolos_small", padding="official").double()
    batch = make_batch(*SIZES, dtype=torch.float64)
    assert batch_difference(official, batch) > 1e-3
    ours = build("yolos_small").double().eval()
    single = make_batch(SIZES[0], dtype=torch.float64)
    torch.testing.assert_close(ours(single).logits, official(single).logits, rtol=0, atol=1e-12)


def test_official_padding_takes_a_transposed_grid_as_it_is(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    batch = make_batch((128, 96))  # the first positions belong to 96 x 128
    with torch.no_grad():
        official = build("yolos_small", padding="official").eval()(batch).logits
        resampled = build("yolos_small").eval()(batch).logits
    assert not torch.allclose(official, resampled, atol=1e-4)


def test_positions_are_resampled_between_grid_and_tokens(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    vit = build("yolos_small").backbone.eval()
    batch = make_batch((80, 64))
    with torch.no_grad():
        table = vit.pos_embed
        grid = table[:, 1:-7].transpose(1, 2).reshape(1, 48, 6, 8)
        wanted = F.interpolate(grid, size=(5, 4), mode="bicubic", align_corners=False)
        expected = torch.cat([table[:, :1], wanted.flatten(2).mT, table[:, -7:]], dim=1)
        seen: list[torch.Tensor] = []
        vit.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        vit(batch)
        tokens = torch.cat([vit.cls_token, vit.patch_embed(batch.pixels), vit.det_token], dim=1)
    torch.testing.assert_close(seen[0], tokens + expected)


def test_mid_positions_follow_every_block_but_the_last(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    vit = build("yolos_small", mid_position_size_hw=(64, 96)).backbone.eval()
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def record(module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inputs.append(given[0])
        outputs.append(output)

    for block in vit.blocks:
        block.register_forward_hook(record)
    with torch.no_grad():
        found = vit(make_batch((64, 96)))
        for index in (0, 1):
            torch.testing.assert_close(inputs[index + 1], outputs[index] + vit.mid_pos_embed[index])
        torch.testing.assert_close(found, vit.norm(outputs[2])[:, -7:])


def test_new_weights_are_seen_after_a_prediction(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    model, batch = build("yolos_small").eval(), make_batch((80, 64))
    with torch.no_grad():
        before = model(batch).logits
        assert torch.equal(model(batch).logits, before)
        table = model.backbone.pos_embed
        model.load_state_dict({"backbone.pos_embed": table + torch.randn_like(table)}, strict=False)
        loaded = model(batch).logits
        assert not torch.allclose(loaded, before)
        table.data.normal_()
        assert not torch.allclose(model.eval()(batch).logits, loaded)


def test_training_reaches_every_parameter(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    model = build("yolos_small", drop_path=0.1).train()
    output = model(make_batch((64, 96), (50, 40)))
    assert output.layer_logits.shape == (1, 2, 7, 6)
    (output.logits.square().sum() + output.boxes_cxcywh.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_activation_checkpointing_gives_equal_gradients(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    gradients = []
    for checkpointed in (False, True):
        changes = {"activation_checkpointing": checkpointed, "drop_path": 0.2, "dropout": 0.1}
        model = build("yolos_small", **changes).train()
        torch.manual_seed(5)
        output = model(make_batch((64, 96), (50, 40)))
        (output.logits.square().sum() + output.boxes_cxcywh.sum()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, saved in zip(*gradients, strict=True):
        assert torch.equal(plain, saved)


@pytest.mark.parametrize("stages", [0, 1, 3])
def test_frozen_stages_hold_no_gradient_and_keep_their_weights(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch], stages: int
) -> None:
    model = build("yolos_small", frozen_stages=stages, mid_position_size_hw=(64, 96)).train()
    before = copy.deepcopy(model.state_dict())
    inputs: list[torch.Tensor] = []
    for block in model.backbone.blocks:
        block.register_forward_pre_hook(lambda block, args: inputs.append(args[0]))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    model(make_batch((64, 96), (50, 40))).logits.square().sum().backward()
    optimizer.step()
    # Block k is the first that is trained where k + 1 stages are frozen: no graph leads to it.
    graphs = [tensor.requires_grad for tensor in inputs]
    assert graphs == [index >= stages for index in range(3)]
    frozen = ["pos_embed", "cls_token", "det_token", "mid_pos_embed", "patch_embed.", "blocks.0."]
    frozen += ["blocks.1."]
    frozen = [f"backbone.{name}" for name in frozen[: 5 + stages - 1]] if stages else []
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(frozen)):
            assert parameter.grad is None, name
            assert torch.equal(parameter, before[name]), name
        elif not name.startswith("heads.box_head"):
            assert parameter.grad is not None, name
            assert not torch.equal(parameter, before[name]), name


def test_more_frozen_stages_than_there_are_is_refused(build: Callable[..., nn.Module]) -> None:
    build("yolos_small", frozen_stages=4)
    with pytest.raises(DetrKitError, match="frozen_stages 5: a ViT of 3 blocks has 4"):
        build("yolos_small", frozen_stages=5)


def test_the_last_block_computes_detection_tokens_alone_and_equals_the_whole(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    block = build("yolos_small").backbone.blocks[-1].double()
    x = torch.randn(2, 20, 48, dtype=torch.float64)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[1, 9:13] = True
    gradients = []
    for last in (None, 7):
        block.zero_grad()
        output = block(x, None, mask, last)[:, -7:]
        output.square().sum().backward()
        gradients.append([output, *(p.grad.clone() for p in block.parameters())])
    for whole, part in zip(*gradients, strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-11)
    assert block(x, None, mask, 7).shape == (2, 7, 48)


def test_an_observer_of_the_last_block_sees_all_tokens(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    model, batch = build("yolos_small").eval(), make_batch((64, 96))
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        expected = model(batch).logits
        model.backbone.blocks[-1].attn.observer = seen.append
        torch.testing.assert_close(model(batch).logits, expected, rtol=1e-5, atol=1e-5)
    assert seen[0].shape == (1, 3, 32, 32)  # 1 class token, 4 x 6 patches, 7 detection tokens


def test_initialisation_is_a_narrow_normal() -> None:
    torch.manual_seed(0)
    vit = build_model(resolve(ModelConfig(name="yolos_small", depth=1)), 5).backbone
    for tensor in (vit.pos_embed, vit.det_token, vit.blocks[0].mlp.fc1.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.05)
    assert vit.norm.eps == vit.blocks[0].norm1.eps == 1e-6


def test_an_image_smaller_than_a_patch_is_refused(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    with pytest.raises(DetrKitError, match=r"15 x 40.*smaller than a patch of 16"):
        build("yolos_small")(make_batch((64, 64), (15, 40)))


def test_runs_in_bfloat16(
    build: Callable[..., nn.Module], make_batch: Callable[..., ImageBatch]
) -> None:
    model, batch = build("yolos_small").eval(), make_batch((64, 96), (50, 40))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
    assert output.logits.dtype == output.boxes_cxcywh.dtype == torch.float32
    assert output.logits.isfinite().all()
