"""Patches that learn too: what the heads make of them, where they lie, what stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from detr_kit.config import ModelConfig
from detr_kit.models.tracing import traceable_copy
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ImageBatch, ModelOutput, PatchOutput, TracedBatch
from tests.models.conftest import TINY

PADDED = ((64, 96), (50, 40), (97, 31))
Build = Callable[..., nn.Module]
MakeBatch = Callable[..., ImageBatch]


def both(build: Build, **changes: Any) -> tuple[nn.Module, nn.Module]:
    """A YOLOS whose patches do not learn and one whose do, of the same weights."""
    models = [build("yolos_small", patch_supervision=on, **changes) for on in (False, True)]
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    return models[0].double(), models[1].double()


def patches_of(output: ModelOutput) -> PatchOutput:
    assert output.patches is not None
    return output.patches


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"padding": "official"}, {"depth": 1}, {"activation_checkpointing": True}]
)
@pytest.mark.parametrize("sizes", [((64, 96),), PADDED])
def test_detection_tokens_find_what_they_find_without(
    build: Build,
    make_batch: MakeBatch,
    groups: int,
    changes: dict[str, Any],
    sizes: tuple[tuple[int, int], ...],
) -> None:
    plain, supervised = both(build, groups=groups, **changes)
    batch = make_batch(*sizes, dtype=torch.float64)
    expected, output = plain.train()(batch), supervised.train()(batch)
    assert expected.patches is None
    assert output.groups == groups
    for name in ("layer_logits", "layer_boxes_cxcywh"):
        torch.testing.assert_close(
            getattr(output, name), getattr(expected, name), rtol=0, atol=1e-12
        )
    for found in (expected, output):
        (found.layer_logits.square().sum() + found.layer_boxes_cxcywh.sum()).backward()
    for name, parameter in plain.named_parameters():
        other = supervised.get_parameter(name).grad
        torch.testing.assert_close(other, parameter.grad, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("groups", [1, 2])
def test_patches_are_what_the_heads_make_of_the_last_block(
    build: Build, make_batch: MakeBatch, groups: int
) -> None:
    model = build("yolos_small", patch_supervision=True, groups=groups).double().train()
    batch = make_batch((64, 96), dtype=torch.float64)
    seen: list[torch.Tensor] = []
    model.backbone.norm.register_forward_hook(lambda module, inputs, out: seen.append(out))
    patches = patches_of(model(batch))
    features = seen[0]
    assert features.shape == (1, 24 + 7 * groups, 48)
    expected = model.heads(features[None, :, :24])
    assert patches.layer_logits.shape == (1, 1, 24, 6)
    assert torch.equal(patches.layer_logits, expected.layer_logits)
    assert torch.equal(patches.layer_boxes_cxcywh, expected.layer_boxes_cxcywh)


def test_a_picture_has_the_same_patches_in_any_batch(build: Build, make_batch: MakeBatch) -> None:
    model = build("yolos_small", patch_supervision=True).double().train()
    together = make_batch(*PADDED, dtype=torch.float64)
    found = patches_of(model(together))
    for index, (height, width) in enumerate(PADDED):
        own = together.pixels[index : index + 1, :, :height, :width]
        alone = patches_of(model(ImageBatch.from_images(list(own))))
        inside = ~found.missing[index]
        assert int(inside.sum()) == (height // 16) * (width // 16)
        assert not alone.missing.any()
        torch.testing.assert_close(
            found.layer_logits[0, index, inside], alone.layer_logits[0, 0], rtol=0, atol=1e-12
        )
        torch.testing.assert_close(found.centers[index, inside], alone.centers[0])


@pytest.mark.parametrize("padding", ["independent", "official"])
def test_centres_are_those_of_the_patches_in_their_own_picture(
    build: Build, make_batch: MakeBatch, padding: str
) -> None:
    model = build("yolos_small", patch_supervision=True, padding=padding).train()
    patches = patches_of(model(make_batch(*PADDED)))
    rows, columns = 97 // 16, 96 // 16
    assert patches.centers.shape == (3, rows * columns, 2)
    for image, (height, width) in enumerate(PADDED):
        for row in range(rows):
            for column in range(columns):
                place = row * columns + column
                x, y = patches.centers[image, place].tolist()
                assert x == pytest.approx((16 * column + 8) / width)
                assert y == pytest.approx((16 * row + 8) / height)
                outside = 16 * (row + 1) > height or 16 * (column + 1) > width
                assert bool(patches.missing[image, place]) == outside


def test_evaluation_and_export_know_nothing_of_it(build: Build, make_batch: MakeBatch) -> None:
    plain, supervised = both(build)
    batch = make_batch(*PADDED, dtype=torch.float64)
    expected, output = plain.eval()(batch), supervised.eval()(batch)
    assert output.patches is None
    assert torch.equal(output.logits, expected.logits)
    traced = traceable_copy(supervised, mask=True)(TracedBatch(batch.pixels, batch.padding_mask))
    torch.testing.assert_close(traced.logits, expected.logits, rtol=0, atol=1e-10)


def test_numbers_of_older_checkpoints_build_a_model_without() -> None:
    numbers = resolve(ModelConfig(name="yolos_small", **TINY["yolos_small"]))
    assert numbers.pop("patch_supervision") is False
    assert build_model(numbers, num_classes=5).patch_supervision is False


def test_half_precision_is_lifted_everywhere(build: Build, make_batch: MakeBatch) -> None:
    model = build("yolos_small", patch_supervision=True).train()
    output = model(make_batch((64, 96)))
    patches = patches_of(output)
    half = ModelOutput(
        output.layer_logits.half(),
        output.layer_boxes_cxcywh.half(),
        patches=PatchOutput(
            patches.layer_logits.half(),
            patches.layer_boxes_cxcywh.half(),
            patches.centers,
            patches.missing,
        ),
    ).at_least_fp32()
    for lifted in (half, patches_of(half)):
        assert lifted.layer_logits.dtype == lifted.layer_boxes_cxcywh.dtype == torch.float32
