from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detr_kit.models.resampling import CachedResampler, resample_grid


def test_resampling_keeps_a_ramp_and_its_orientation() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    table = torch.stack([rows, columns], dim=-1).reshape(1, 96, 2)
    doubled = resample_grid(table, (8, 12), (16, 24))
    assert doubled.shape == (1, 16, 24, 2)
    # Cell i of the finer grid lies at i / 2 - 1 / 4 (pixel centers); the cubic kernel is off a
    # straight line by 3 / 64 there, aligned corners would be by up to 0.12.
    middle = torch.arange(4.0, 12) / 2 - 0.25
    torch.testing.assert_close(doubled[0, 4:12, 10, 0], middle, rtol=0, atol=0.047)
    middle = torch.arange(4.0, 20) / 2 - 0.25
    torch.testing.assert_close(doubled[0, 7, 4:20, 1], middle, rtol=0, atol=0.047)
    assert torch.equal(resample_grid(table, (8, 12), (8, 12)), table.view(1, 8, 12, 2))


@pytest.mark.parametrize("change", ["copy", "load", "assign", "swap", "data", "fused"])
def test_cache_is_dropped_with_new_values(change: str) -> None:
    module = nn.ParameterDict({"table": torch.randn(1, 12, 2)})
    resample = CachedResampler((3, 4))
    with torch.no_grad():
        before = resample(module["table"], (5, 6))
        assert resample(module["table"], (5, 6)) is before
        new = torch.randn(1, 12, 2)
        if change == "fused":  # its steps do not raise a tensor's version
            module["table"].grad = torch.ones_like(new)
            torch.optim.AdamW(module.parameters(), fused=True, lr=1.0).step()
            new = module["table"].detach().clone()
        if change == "copy":
            module["table"].copy_(new)
        elif change == "swap":
            module["table"] = nn.Parameter(new)
        elif change == "data":
            module["table"].data = new
        elif change in ("load", "assign"):
            module.load_state_dict({"table": new}, assign=change == "assign")
        expected = resample_grid(new, (3, 4), (5, 6))
        assert torch.equal(resample(module["table"], (5, 6)), expected)
        assert not torch.allclose(before, expected)


@pytest.mark.parametrize("to_hw", [(5, 6), (32, 20), (1, 1), (3, 7)])
def test_resampling_is_that_of_torch_in_value_and_gradient(to_hw: tuple[int, int]) -> None:
    results = []
    for resample in (
        resample_grid,
        lambda table, from_hw, to_hw: F.interpolate(
            table.unflatten(1, from_hw).permute(0, 3, 1, 2), size=to_hw, mode="bicubic"
        ).permute(0, 2, 3, 1),
    ):
        torch.manual_seed(0)
        table = torch.randn(2, 7 * 9, 5, dtype=torch.float64, requires_grad=True)
        grid = resample(table, (7, 9), to_hw)
        grid.backward(torch.randn_like(grid))
        results.append((grid, table.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_autocast_does_not_round_resampled_positions() -> None:
    table = torch.randn(1, 12, 2)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = resample_grid(table, (3, 4), (5, 6))
    assert torch.equal(rounded, resample_grid(table, (3, 4), (5, 6)))


def test_cache_is_bounded_and_unused_where_gradients_are_wanted() -> None:
    table = nn.Parameter(torch.randn(1, 12, 2))
    resample = CachedResampler((3, 4))
    with torch.no_grad():
        for height in range(1, 20):
            resample(table, (height, 6))
        held = resample(table, (19, 6))
    assert len(resample._grids.items) == CachedResampler.MAX_SIZES
    fresh = resample(table, (19, 6))
    assert fresh is not held
    assert fresh.requires_grad
