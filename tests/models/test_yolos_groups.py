"""Groups of detection tokens: what the first computes, who sees whom, what evaluation reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detr_kit.config import ModelConfig
from detr_kit.models.tracing import traceable_copy
from detr_kit.models.transformer import EncoderLayer
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ImageBatch, ModelOutput, TracedBatch
from tests.models.conftest import TINY, alone

MID = {"mid_position_size_hw": (64, 96)}
PADDED = ((64, 96), (50, 40), (97, 31))
Build = Callable[..., nn.Module]
MakeBatch = Callable[..., ImageBatch]


def pair(build: Build, **changes: Any) -> tuple[nn.Module, nn.Module]:
    """A YOLOS without groups and one with three, of the same weights where both have them."""
    plain, grouped = build("yolos_small", **changes), build("yolos_small", groups=3, **changes)
    found = grouped.load_state_dict(plain.state_dict(), strict=False)
    assert not found.unexpected_keys
    return plain.double(), grouped.double()


def loss(output: ModelOutput) -> Tensor:
    """Something that depends on every output, and on each differently."""
    parts = [*output.layer_logits.unbind(), *output.layer_boxes_cxcywh.unbind()]
    return torch.stack(
        [(weight + 1) * part.square().sum() for weight, part in enumerate(parts)]
    ).sum()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("changes", [{}, MID, {"padding": "official"}, {"depth": 1}])
@pytest.mark.parametrize("sizes", [((64, 96),), PADDED])
def test_the_first_group_computes_what_a_yolos_without_groups_computes(
    build: Build,
    make_batch: MakeBatch,
    changes: dict[str, Any],
    sizes: tuple[tuple[int, int], ...],
) -> None:
    plain, grouped = pair(build, **{**MID, **changes})
    batch = make_batch(*sizes, dtype=torch.float64)
    expected, output = plain.train()(batch), grouped.train()(batch)
    assert output.groups == 3
    assert output.layer_logits.shape == (3, len(sizes), 7, 6)
    assert output.layer_boxes_cxcywh.shape == (3, len(sizes), 7, 4)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.boxes_cxcywh, expected.boxes_cxcywh, rtol=0, atol=1e-12)
    loss(expected).backward()
    (output.logits.square().sum() + 2 * output.boxes_cxcywh.square().sum()).backward()
    for name, gradient in gradients(plain).items():
        other = grouped.get_parameter(name).grad
        torch.testing.assert_close(other, gradient, rtol=1e-10, atol=1e-12, msg=name)


def test_tokens_of_other_groups_reach_no_patch_and_not_the_first_group(
    build: Build, make_batch: MakeBatch
) -> None:
    _, model = pair(build)
    batch = make_batch(*PADDED, dtype=torch.float64)
    model.train()(batch).logits.sum().backward()
    vit = model.backbone
    for table in (vit.extra_det_token, vit.extra_pos_embed, vit.extra_mid_pos_embed):
        assert not table.grad.any()


@pytest.mark.parametrize("group", [1, 2])
def test_every_group_equals_one_attention_with_a_mask_of_who_sees_whom(
    build: Build, make_batch: MakeBatch, group: int
) -> None:
    _, model = pair(build, **MID)
    batch = make_batch(*PADDED, dtype=torch.float64)
    output = model.train()(batch)
    expected = by_full_mask(model, batch)
    # Extra groups come first, in their order; the one that predicts is the last.
    torch.testing.assert_close(output.layer_logits[group - 1], expected[group], rtol=0, atol=1e-12)
    torch.testing.assert_close(output.layer_logits[2], expected[0], rtol=0, atol=1e-12)


def by_full_mask(model: nn.Module, batch: ImageBatch) -> list[Tensor]:
    """Every group's logits by one attention over all tokens, with a matrix of who sees whom."""
    vit, count = model.backbone, 7
    mask, first, mid = vit._lay_out(batch)
    patches = vit.patch_embed(batch.pixels)
    images, shared = len(patches), patches.shape[1] + 1
    tokens = [vit.cls_token, patches, vit.det_token, vit.extra_det_token]
    x = torch.cat([part.expand(images, -1, -1) for part in tokens], dim=1) + first.of_layer(0)
    group = torch.arange(2 * count + count).div(count, rounding_mode="floor")
    group = torch.cat([torch.zeros(shared, dtype=torch.int64), group])
    of_all = torch.arange(len(group)) < shared
    allowed = (group[:, None] == group[None, :]) | of_all[None, :]
    kept = torch.cat([~mask, torch.ones(images, 2 * count, dtype=torch.bool)], dim=1)
    allowed = allowed & kept[:, None, :]
    for index, block in enumerate(vit.blocks):
        h = block.norm1(x)
        q, k, v = (
            part.unflatten(-1, (3, -1)).transpose(1, 2) for part in block.attn.qkv(h).chunk(3, -1)
        )
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~allowed[:, None], -torch.inf)
        x = x + block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        if index < len(vit.blocks) - 1:
            x = x + mid.of_layer(index)
    groups = vit.norm(x)[:, shared:].split(count, dim=1)
    return [model.heads(features.unsqueeze(0)).logits for features in groups]


@pytest.mark.parametrize("group", [0, 1])
def test_no_group_sees_another(build: Build, make_batch: MakeBatch, group: int) -> None:
    _, model = pair(build)
    batch = make_batch(*PADDED, dtype=torch.float64)
    before = model.train()(batch).layer_logits.detach()
    with torch.no_grad():
        model.backbone.extra_det_token[:, group * 7 : (group + 1) * 7].neg_()
    changed = (model(batch).layer_logits.detach() - before).abs().amax((1, 2, 3))
    assert changed[group] > 1e-3
    assert changed[1 - group] == changed[2] == 0


def test_evaluation_is_that_of_a_yolos_without_groups_to_the_bit(
    build: Build, make_batch: MakeBatch
) -> None:
    plain, grouped = pair(build, **MID)
    batch = make_batch(*PADDED, dtype=torch.float64)
    with torch.no_grad():
        expected, output = plain.eval()(batch), grouped.eval()(batch)
        assert output.groups == 1
        assert torch.equal(output.layer_logits, expected.layer_logits)
        assert torch.equal(output.layer_boxes_cxcywh, expected.layer_boxes_cxcywh)
        for name, parameter in grouped.named_parameters():
            if "extra" in name:
                parameter.fill_(torch.nan)
        assert torch.equal(grouped(batch).layer_logits, expected.layer_logits)


def test_what_is_exported_is_that_of_a_yolos_without_groups(
    build: Build, make_batch: MakeBatch
) -> None:
    plain, grouped = pair(build, **MID)
    batch = make_batch(*PADDED, dtype=torch.float64)
    traced = TracedBatch(batch.pixels, batch.padding_mask)
    with torch.no_grad():
        expected, output = (traceable_copy(m.train(), mask=True)(traced) for m in (plain, grouped))
        assert torch.equal(output.layer_logits, expected.layer_logits)
        torch.testing.assert_close(output.logits, grouped.eval()(batch).logits, rtol=0, atol=1e-9)


def test_one_group_has_the_keys_the_layers_and_the_start_of_a_yolos_without() -> None:
    models = []
    for changes in ({}, {"groups": 1}, {"groups": 2}):
        torch.manual_seed(0)
        config = ModelConfig(name="yolos_small", **{**TINY["yolos_small"], **changes})
        models.append(build_model(resolve(config), num_classes=5))
    plain, one, two = (model.state_dict() for model in models)
    assert list(plain) == list(one)
    assert all(torch.equal(plain[key], one[key]) for key in plain)
    assert {type(block) for block in models[1].backbone.blocks} == {EncoderLayer}
    extra = ["extra_det_token", "extra_pos_embed", "extra_mid_pos_embed"]
    assert two.keys() - plain.keys() == {f"backbone.{name}" for name in extra}
    assert all(torch.equal(plain[key], two[key]) for key in plain if key.startswith("backbone."))
    assert two["backbone.extra_pos_embed"].std().item() == pytest.approx(0.02, rel=0.15)


def test_numbers_of_older_checkpoints_build_one_group() -> None:
    numbers = resolve(ModelConfig(name="yolos_small", **TINY["yolos_small"]))
    del numbers["groups"]
    assert build_model(numbers, num_classes=5).backbone.groups == 1


def test_training_reaches_every_parameter_of_every_group(
    build: Build, make_batch: MakeBatch
) -> None:
    model = build("yolos_small", groups=3, drop_path=0.1, dropout=0.1).train()
    loss(model(make_batch((64, 96), (50, 40)))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    extra = model.backbone.extra_mid_pos_embed.grad
    assert extra.shape == (2, 1, 14, 48)
    assert extra.any(-1).all()


def test_frozen_stages_hold_the_tables_of_all_groups(build: Build, make_batch: MakeBatch) -> None:
    model = build("yolos_small", groups=3, frozen_stages=2).train()
    loss(model(make_batch((64, 96)))).backward()
    vit = model.backbone
    for table in (vit.extra_det_token, vit.extra_pos_embed, vit.extra_mid_pos_embed):
        assert table.grad is None
    assert vit.blocks[1].attn.qkv.weight.grad.any()


def test_activation_checkpointing_gives_equal_gradients_with_groups(
    build: Build, make_batch: MakeBatch
) -> None:
    found = []
    for checkpointed in (False, True):
        changes = {"activation_checkpointing": checkpointed, "drop_path": 0.2, "dropout": 0.1}
        model = build("yolos_small", groups=3, **changes).train()
        torch.manual_seed(5)
        loss(model(make_batch((64, 96), (50, 40)))).backward()
        found.append(gradients(model))
    plain, saved = found
    assert plain.keys() == saved.keys()
    assert all(torch.equal(plain[name], saved[name]) for name in plain)


def test_drop_path_skips_a_block_for_all_groups_of_an_image_as_it_does_without(
    build: Build, make_batch: MakeBatch
) -> None:
    plain, grouped = pair(build, drop_path=0.7)
    batch = make_batch(*PADDED, dtype=torch.float64)
    outputs = []
    for model in (plain, grouped):
        torch.manual_seed(3)
        outputs.append(model.train()(batch).logits)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-12)
    assert not torch.allclose(outputs[0], plain.eval()(batch).logits)


def test_dropout_falls_on_the_other_groups_too(build: Build, make_batch: MakeBatch) -> None:
    _, model = pair(build, dropout=0.5, depth=1)
    block = model.backbone.blocks[0]
    block.drop.dropout = block.mlp.drop.p = 0.0  # attention weights alone are dropped
    batch = make_batch((64, 96), dtype=torch.float64)
    first, second = (model.train()(batch).layer_logits for _ in range(2))
    assert ((first - second).abs().amax((1, 2, 3)) > 1e-4).all()


def test_in_training_too_no_group_depends_on_the_batch(build: Build, make_batch: MakeBatch) -> None:
    _, model = pair(build, **MID)
    batch = make_batch(*PADDED, dtype=torch.float64)
    with torch.no_grad():
        together = model.train()(batch)
        for row in range(len(PADDED)):
            single = model(alone(batch, row))
            for ours, theirs in (
                (single.layer_logits[:, 0], together.layer_logits[:, row]),
                (single.layer_boxes_cxcywh[:, 0], together.layer_boxes_cxcywh[:, row]),
            ):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [0, 2])
def test_an_observer_sees_the_first_group_alone_and_changes_nothing(
    build: Build, make_batch: MakeBatch, block: int
) -> None:
    plain, grouped = pair(build)
    batch = make_batch(*PADDED, dtype=torch.float64)
    expected = grouped.train()(batch).layer_logits
    seen: list[list[Tensor]] = []
    for model in (plain.train(), grouped):
        seen.append([])
        model.backbone.blocks[block].attn.observer = seen[-1].append
        output = model(batch).layer_logits
    assert torch.equal(output, expected)
    (of_plain,), (of_grouped,) = seen
    assert of_grouped.shape == (3, 3, 44, 44)  # 1 class token, 6 x 6 patches, 7 others
    torch.testing.assert_close(of_grouped, of_plain, rtol=0, atol=1e-12)


def test_groups_run_in_bfloat16(build: Build, make_batch: MakeBatch) -> None:
    model = build("yolos_small", groups=3).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(make_batch((64, 96), (50, 40)))
    assert output.layer_logits.dtype == torch.float32
    loss(output).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
