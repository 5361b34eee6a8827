from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models import sampling
from detr_kit.models.deformable_attention import DeformableAttention
from detr_kit.models.pyramid import Pyramid, flatten_levels
from detr_kit.models.sampling import sample, sample_maps

SIZES_HW = ((7, 5), (4, 3), (2, 2))
# The images' own sizes on each level, all smaller than the last one of the batch.
OWN_HW = (((7, 4), (4, 2), (2, 1)), ((3, 5), (2, 3), (1, 2)), SIZES_HW)
NAMES = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "value": "value_proj",
    "proj": "output_proj",
}
DOUBLE = torch.float64


def drawn_memory(dim: int, *, padded: bool, dtype: torch.dtype = DOUBLE) -> Pyramid:
    levels = []
    for level, size_hw in enumerate(SIZES_HW):
        mask = torch.ones(len(OWN_HW), *size_hw, dtype=torch.bool)
        for row, own_hw in zip(mask, OWN_HW, strict=True):
            row[: own_hw[level][0], : own_hw[level][1]] = False
        levels.append((torch.randn(len(OWN_HW), dim, *size_hw, dtype=dtype), mask))
    return flatten_levels(levels if padded else [(features, None) for features, _ in levels])


def drawn_attention(dim: int = 16, heads: int = 2, points: int = 3) -> DeformableAttention:
    """Attention with random weights whose points spread over a few cells, and outside."""
    attention = DeformableAttention(dim, heads, len(SIZES_HW), points).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def peer_of(attention: DeformableAttention, dim: int) -> nn.Module:
    from transformers.models.deformable_detr import modeling_deformable_detr as peer

    config: Any = SimpleNamespace(
        d_model=dim, num_feature_levels=len(SIZES_HW), disable_custom_kernels=True
    )
    theirs = peer.DeformableDetrMultiscaleDeformableAttention(
        config, attention.num_heads, attention.num_points
    ).double()
    for ours, name in NAMES.items():
        getattr(theirs, name).load_state_dict(getattr(attention, ours).state_dict())
    return theirs


def of_peer(theirs: nn.Module, query: Tensor, reference: Tensor, memory: Pyramid) -> Tensor:
    """Their references are of the padded maps, one a level."""
    sizes = torch.tensor(memory.sizes_hw)
    shares = memory.own_sizes_wh() / sizes.flip(1)
    shares = shares.repeat(1, 1, reference.shape[-1] // 2)
    output, _ = theirs(
        query,
        None if memory.padding_mask is None else ~memory.padding_mask,
        encoder_hidden_states=memory.tokens,
        reference_points=reference[:, :, None] * shares[:, None],
        spatial_shapes=sizes,
        spatial_shapes_list=list(memory.sizes_hw),
    )
    return output


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("numbers", [2, 4])
def test_equals_transformers_in_value_and_gradient(numbers: int, padded: bool) -> None:
    attention = drawn_attention()
    theirs = peer_of(attention, 16)
    query = torch.randn(3, 6, 16, dtype=DOUBLE, requires_grad=True)
    reference = torch.rand(3, 6, numbers, dtype=DOUBLE, requires_grad=True)
    memory = drawn_memory(16, padded=padded)
    memory.tokens.requires_grad_()
    found = []
    for module, output in (
        (attention, attention(query, reference, memory)),
        (theirs, of_peer(theirs, query, reference, memory)),
    ):
        names = NAMES if module is attention else NAMES.values()
        parameters = [getattr(module, name) for name in names]
        inputs = (query, reference, memory.tokens, *(p.weight for p in parameters))
        wanted = torch.linspace(-1, 1, output.numel(), dtype=DOUBLE).view_as(output)
        found.append([output, *torch.autograd.grad(output, inputs, wanted)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def by_hand(
    values: Tensor, cells: Tensor, shares: Tensor, sizes_hw: list[tuple[int, int]]
) -> Tensor:
    """Every point of every query by itself, after the formula of bilinear interpolation."""
    images, queries, heads, levels, points, _ = cells.shape
    mixed = torch.zeros(images, queries, heads, values.shape[-1], dtype=values.dtype)
    firsts = [sum(h * w for h, w in sizes_hw[:level]) for level in range(levels)]
    for b in range(images):
        for n, h, k, p in torch.cartesian_prod(
            *(torch.arange(count) for count in (queries, heads, levels, points))
        ).tolist():
            x, y = cells[b, n, h, k, p].tolist()
            height, width = sizes_hw[k]
            for row in range(height):
                for column in range(width):
                    count = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                    value = values[b, firsts[k] + row * width + column, h]
                    mixed[b, n, h] += shares[b, n, h, k, p] * count * value
    return mixed.flatten(2)


def drawn_samples(
    sizes_hw: list[tuple[int, int]], *, queries: int, heads: int, points: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, places of which a third lies outside, and shares, of two images."""
    tokens = sum(height * width for height, width in sizes_hw)
    values = torch.randn(2, tokens, heads, 3, dtype=dtype)
    sides = torch.tensor([(width, height) for height, width in sizes_hw], dtype=dtype)
    spread = torch.rand(2, queries, heads, len(sizes_hw), points, 2, dtype=dtype)
    cells = (spread * 1.5 - 0.25) * (sides[:, None] + 1) - 1
    return values, cells, torch.randn(cells.shape[:-1], dtype=dtype)


def with_gradients(function: Any, *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves, SIZES_HW)
    wanted = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad(output, leaves, wanted)]


@pytest.mark.parametrize("function", [sample, sample_maps])
@settings(deadline=None, max_examples=60)
@given(
    sizes_hw=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    queries=st.integers(1, 3),
    heads=st.integers(1, 2),
    points=st.integers(1, 2),
    rounded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_samples_are_bilinear(
    function: Any,
    sizes_hw: list[tuple[int, int]],
    queries: int,
    heads: int,
    points: int,
    rounded: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    values, cells, shares = drawn_samples(
        sizes_hw, queries=queries, heads=heads, points=points, dtype=DOUBLE
    )
    if rounded:  # on the cells' centres, where training starts
        cells = cells.round()
    found = function(values, cells, shares, tuple(sizes_hw))
    expected = by_hand(values, cells, shares, sizes_hw)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("crowded", [0, 1 << 14])
@pytest.mark.parametrize("at_a_time", [1, 1 << 14])
def test_sums_of_rows_have_the_gradients_of_grid_sample(
    at_a_time: int, crowded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_POINTS", at_a_time)
    monkeypatch.setattr(sampling, "_CROWDED", crowded)
    inputs = drawn_samples(list(SIZES_HW), queries=9, heads=3, points=4, dtype=DOUBLE)
    found = with_gradients(sample, *inputs)
    for ours, expected in zip(found, with_gradients(sample_maps, *inputs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    # A third of the places lies outside: their gradient is zero, and not all are.
    assert (found[2] == 0).any()
    assert (found[2] != 0).any()


def test_on_a_cells_centre_the_slope_is_that_to_the_right_and_below() -> None:
    values, cells, shares = drawn_samples(
        list(SIZES_HW), queries=9, heads=3, points=4, dtype=DOUBLE
    )
    cells = cells.round()  # from two cells before the first to two after the last
    found = with_gradients(sample, values, cells, shares)
    # A little further: grid_sample's own arithmetic may land on either side of the centre.
    expected = with_gradients(sample_maps, values, cells + 1e-9, shares)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    values, cells, shares = drawn_samples([(3, 4)], queries=2, heads=2, points=2, dtype=DOUBLE)
    cells = cells.floor() + 0.3  # away from the centres, where the slope jumps
    inputs = tuple(x.requires_grad_() for x in (values, cells, shares))
    assert torch.autograd.gradcheck(lambda *x: sample(*x, ((3, 4),)), inputs)


def test_single_precision_differs_by_its_rounding_only() -> None:
    inputs = drawn_samples(list(SIZES_HW), queries=9, heads=3, points=4, dtype=DOUBLE)
    found = sample(*(x.float() for x in inputs), SIZES_HW)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), sample(*inputs, SIZES_HW), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("function", "far"), [(sample, 1e30), (sample, math.inf), (sample_maps, 1e30)]
)
def test_far_outside_is_nothing_and_has_no_gradient(function: Any, far: float) -> None:
    values, cells, shares = drawn_samples(
        [(3, 4)], queries=2, heads=2, points=2, dtype=torch.float32
    )
    cells = torch.full_like(cells, far) * cells.sign()
    inputs = tuple(x.requires_grad_() for x in (values, cells, shares))
    output = function(*inputs, ((3, 4),))
    assert not output.any()
    for gradient in torch.autograd.grad(output.sum(), inputs):
        assert not gradient.any()


def test_a_place_that_is_not_a_number_spoils_its_query_alone() -> None:
    values, cells, shares = drawn_samples(
        list(SIZES_HW), queries=3, heads=3, points=2, dtype=DOUBLE
    )
    expected = sample(values, cells, shares, SIZES_HW)
    cells[1, 2] = math.nan
    found = sample(values, cells, shares, SIZES_HW)
    assert found[1, 2].isnan().all()
    found[1, 2] = expected[1, 2]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("numbers", [2, 4])
def test_an_image_sees_the_same_alone_and_padded(numbers: int) -> None:
    attention = drawn_attention()
    together = drawn_memory(16, padded=True)
    query, reference = torch.randn(3, 6, 16, dtype=DOUBLE), torch.rand(3, 6, numbers, dtype=DOUBLE)
    output = attention(query, reference, together)
    for row, own_sizes_hw in enumerate(OWN_HW):
        maps = zip(together.maps(), own_sizes_hw, strict=True)
        alone = flatten_levels(
            [
                (features[row : row + 1, :, :height, :width], None)
                for features, (height, width) in maps
            ]
        )
        expected = attention(query[row : row + 1], reference[row : row + 1], alone)
        torch.testing.assert_close(output[row : row + 1], expected, rtol=0, atol=1e-12)


def test_what_lies_on_padding_changes_nothing() -> None:
    attention = drawn_attention()
    memory = drawn_memory(16, padded=True)
    assert memory.padding_mask is not None
    other = memory.tokens.masked_fill(memory.padding_mask.unsqueeze(-1), 1e6)
    query, reference = torch.randn(3, 6, 16, dtype=DOUBLE), torch.rand(3, 6, 2, dtype=DOUBLE)
    expected = attention(query, reference, memory)
    assert torch.equal(attention(query, reference, memory.with_tokens(other)), expected)


def test_observer_sees_places_of_the_unpadded_images_and_what_they_count() -> None:
    attention = drawn_attention(points=2)
    seen: list[tuple[Tensor, Tensor]] = []
    attention.observer = lambda *found: seen.append(found)
    nn.init.zeros_(attention.offsets.weight)
    nn.init.zeros_(attention.offsets.bias)
    reference = torch.rand(3, 5, 2, dtype=DOUBLE)
    attention(torch.randn(3, 5, 16, dtype=DOUBLE), reference, drawn_memory(16, padded=True))
    ((locations, weights),) = seen
    assert locations.shape == (3, 5, 2, 3, 2, 2)
    expected = reference[:, :, None, None, None].expand_as(locations)
    torch.testing.assert_close(locations, expected, rtol=0, atol=1e-12)
    assert weights.shape == (3, 5, 2, 3, 2)
    ones = torch.ones(3, 5, 2, dtype=DOUBLE)
    torch.testing.assert_close(weights.sum((3, 4)), ones, rtol=0, atol=1e-12)


def test_offsets_count_in_cells_from_points_and_in_halves_of_boxes() -> None:
    attention = DeformableAttention(8, 1, 3, 2).double()
    with torch.no_grad():  # one cell to the right, then two
        attention.offsets.bias.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0]]).repeat(3, 1).flatten())
    seen: list[Tensor] = []
    attention.observer = lambda locations, weights: seen.append(locations)
    query = torch.zeros(3, 1, 8, dtype=DOUBLE)
    box = torch.tensor([[[0.5, 0.5, 0.2, 0.6]]], dtype=DOUBLE).expand(3, -1, -1)
    memory = drawn_memory(8, padded=True)
    for reference in (box[..., :2], box):
        attention(query, reference, memory)
    from_point, from_box = (locations[1, 0, 0] for locations in seen)  # own widths 5, 3 and 2
    expected = [[[0.5 + 1 / width, 0.5], [0.5 + 2 / width, 0.5]] for width in (5, 3, 2)]
    torch.testing.assert_close(from_point, torch.tensor(expected, dtype=DOUBLE))
    expected = [[[0.5 + 0.2 / 4, 0.5], [0.5 + 0.2 / 2, 0.5]]] * 3
    torch.testing.assert_close(from_box, torch.tensor(expected, dtype=DOUBLE))


def test_heads_start_in_as_many_directions_and_points_count_alike() -> None:
    attention = DeformableAttention(16, 4, 2, 3)
    seen: list[tuple[Tensor, Tensor]] = []
    attention.observer = lambda *found: seen.append(found)
    memory = flatten_levels([(torch.randn(1, 16, 10, 10), None)] * 2)
    attention(torch.randn(1, 2, 16), torch.full((1, 2, 2), 0.5), memory)
    ((locations, weights),) = seen
    steps = (locations[0, 0, :, 1] - 0.5) * 10  # (h, P, 2) in cells
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    expected = directions[:, None] * torch.tensor([1.0, 2.0, 3.0])[:, None]
    torch.testing.assert_close(steps, expected, rtol=0, atol=1e-5)
    assert torch.equal(weights, torch.full_like(weights, 1 / 6))


def test_no_queries_see_nothing() -> None:
    attention = drawn_attention()
    query = torch.zeros(3, 0, 16, dtype=DOUBLE)
    output = attention(query, query[..., :2], drawn_memory(16, padded=True))
    assert output.shape == (3, 0, 16)


def test_values_may_be_given() -> None:
    attention = drawn_attention()
    memory = drawn_memory(16, padded=True)
    query, reference = torch.randn(3, 6, 16, dtype=DOUBLE), torch.rand(3, 6, 4, dtype=DOUBLE)
    values = attention.project_values(memory)
    expected = attention(query, reference, memory)
    assert torch.equal(attention(query, reference, memory, values), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_keeps_places_exact(autocast: bool) -> None:
    attention = drawn_attention().float()
    memory = drawn_memory(16, padded=True, dtype=torch.float32)
    query, reference = torch.randn(3, 6, 16), torch.rand(3, 6, 4)
    expected = attention(query, reference, memory).detach()
    seen: list[Tensor] = []
    attention.observer = lambda locations, weights: seen.append(locations)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            found = attention(query, reference, memory)
    else:
        attention.bfloat16()
        memory = memory.with_tokens(memory.tokens.bfloat16())
        found = attention(query.bfloat16(), reference, memory)
    assert found.dtype == torch.bfloat16
    assert seen[0].dtype == torch.float32
    close = 0.1 * float(expected.std())
    torch.testing.assert_close(found.detach().float(), expected, rtol=0, atol=close)
    found.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())


def test_refuses_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(DetrKitError, match="hidden_dim 10 is not a multiple of num_heads 3"):
        DeformableAttention(10, 3, 1, 1)
