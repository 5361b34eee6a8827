from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from detr_kit.categories import CategoryTable
from detr_kit.export.program import export_program
from detr_kit.structures import ImageBatch
from tests.models.deformable_models import SIZES, SOME, SWITCHES, build, sum_of, targets_of


@pytest.mark.parametrize("name", SWITCHES)
def test_training_reads_nothing_back_from_the_device(
    make_batch: Callable[..., ImageBatch], name: str
) -> None:
    """Tensors on the meta device have no values that could be read."""
    model = build(**SWITCHES[name]).train().to("meta")
    batch = make_batch((64, 96), (50, 40))
    batch = replace(
        batch, pixels=batch.pixels.to("meta"), padding_mask=batch.padding_mask.to("meta")
    )
    output = model(batch, targets=targets_of(2, 1).to("meta"))
    sum_of(output).backward()
    assert output.logits.is_meta


@pytest.mark.parametrize("name", SOME)
def test_a_seed_gives_the_same_output_and_gradients(
    make_batch: Callable[..., ImageBatch], name: str
) -> None:
    results = []
    for _ in range(2):
        model = build(**SWITCHES[name], activation_checkpointing=bool(results)).train()
        for module in model.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.2
        torch.manual_seed(1)
        output = model(make_batch((64, 96), (50, 40)), targets=targets_of(2, 1))
        sum_of(output).backward()
        results.append([output.logits, *(p.grad for p in model.parameters())])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SOME)
def test_half_precision_trains(
    make_batch: Callable[..., ImageBatch], name: str, dtype: torch.dtype
) -> None:
    model = build(**SWITCHES[name]).train()
    with torch.autocast("cpu", dtype):
        output = model(make_batch((64, 96), (50, 40)), targets=targets_of(2, 1))
    assert output.layer_logits.dtype == output.layer_boxes_cxcywh.dtype == torch.float32
    sum_of(output).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def test_half_precision_stays_near(make_batch: Callable[..., ImageBatch]) -> None:
    model, batch = build(**SWITCHES["dino"]).eval(), make_batch((64, 96), (50, 40))
    # The order of the proposals may change: what is compared has none.
    model.queries = build(query_positions="sine").queries
    with torch.no_grad():
        plain = model.eval()(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(batch)
    torch.testing.assert_close(half.boxes_cxcywh, plain.boxes_cxcywh, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", SOME)
def test_models_of_half_precision_run(make_batch: Callable[..., ImageBatch], name: str) -> None:
    model = build(**{**SWITCHES[name], "level_norm": "batch"}).eval().bfloat16()
    with torch.no_grad():
        output = model(make_batch((64, 96), (50, 40), dtype=torch.bfloat16))
    assert output.logits.dtype == output.boxes_cxcywh.dtype == torch.float32
    assert output.logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mask"),
    [("dab", False), ("two_stage_refined", False), ("dino", True), ("rtdetr", True)],
)
def test_a_traced_model_gives_the_same_for_any_number_and_size_of_pictures(
    make_batch: Callable[..., ImageBatch], name: str, mask: bool
) -> None:
    model = build(**SWITCHES[name]).eval()
    categories = CategoryTable((1, 2, 3), ("one", "two", "three"))
    program = export_program(model, categories, mask=mask).module()
    batches = [(SIZES[0], SIZES[0]), (SIZES[1],), ((7, 9),), ((1, 1),)]
    if mask:
        batches = [SIZES, (SIZES[1],), ((7, 9), (33, 50)), ((1, 1),)]
    for sizes_hw in batches:
        batch = make_batch(*sizes_hw)
        with torch.no_grad():
            expected = model(batch)
            found = program(*((batch.pixels, batch.padding_mask) if mask else (batch.pixels,)))
        torch.testing.assert_close(found["boxes_cxcywh"], expected.boxes_cxcywh, rtol=0, atol=1e-4)
        torch.testing.assert_close(found["scores"], expected.logits.sigmoid(), rtol=0, atol=1e-4)
