from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from detr_kit.models.deformable_encoder import DeformableEncoder
from detr_kit.models.positions import SinePositions
from detr_kit.models.pyramid import Pyramid, flatten_levels

DIM = 16
SIZES_HW = ((7, 5), (4, 3), (2, 2))
# The images' own sizes on each level.
OWN_HW = (((7, 4), (4, 2), (2, 1)), ((3, 5), (2, 3), (1, 2)), SIZES_HW)
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def drawn_encoder(
    *, layers: int = 2, levels: int = 3, dropout: float = 0.0, checkpointed: bool = False
) -> DeformableEncoder:
    encoder = DeformableEncoder(
        DIM,
        layers,
        2,
        24,
        num_levels=levels,
        num_points=3,
        dropout=dropout,
        activation_checkpointing=checkpointed,
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder.double()


def masks_of(sizes_hw: tuple[tuple[int, int], ...]) -> list[Tensor]:
    masks = []
    for level, size_hw in enumerate(sizes_hw):
        mask = torch.ones(len(OWN_HW), *size_hw, dtype=torch.bool)
        for row, own_hw in zip(mask, OWN_HW, strict=True):
            row[: own_hw[level][0], : own_hw[level][1]] = False
        masks.append(mask)
    return masks


def drawn_memory(*, padded: bool) -> Pyramid:
    maps = [torch.randn(len(OWN_HW), DIM, *size_hw, dtype=DOUBLE) for size_hw in SIZES_HW]
    masks = masks_of(SIZES_HW) if padded else [None] * len(maps)
    return flatten_levels(list(zip(maps, masks, strict=True)))


def peer_of(encoder: DeformableEncoder) -> nn.Module:
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr import modeling_deformable_detr as peer

    config = DeformableDetrConfig(
        d_model=DIM,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        encoder_n_points=3,
        num_feature_levels=3,
    )
    theirs = peer.DeformableDetrEncoder(config).double().eval()
    for mine, layer in zip(encoder.layers, theirs.layers, strict=True):
        pairs = (
            (mine.attn.offsets, layer.self_attn.sampling_offsets),
            (mine.attn.weights, layer.self_attn.attention_weights),
            (mine.attn.value, layer.self_attn.value_proj),
            (mine.attn.proj, layer.self_attn.output_proj),
            (mine.norm1, layer.self_attn_layer_norm),
            (mine.mlp.fc1, layer.mlp.fc1),
            (mine.mlp.fc2, layer.mlp.fc2),
            (mine.norm2, layer.final_layer_norm),
        )
        for ours, part in pairs:
            part.load_state_dict(ours.state_dict())
    return theirs


def of_peer(theirs: nn.Module, level_embed: Tensor, memory: Pyramid) -> Tensor:
    """Their encoder is given positions, level vectors included, and which part is real."""
    from transformers.models.deformable_detr import modeling_deformable_detr as peer

    sine = peer.DeformableDetrSinePositionEmbedding(DIM // 2, normalize=True)
    positions = []
    for features, mask, vector in zip(memory.maps(), memory.masks(), level_embed, strict=True):
        real = torch.ones_like(features[:, 0]) if mask is None else (~mask).to(DOUBLE)
        encoded = sine(features.shape, "cpu", DOUBLE, mask=real)
        positions.append(encoded.flatten(2).transpose(1, 2) + vector)
    sizes_wh = torch.tensor(memory.sizes_hw, dtype=DOUBLE).flip(1)
    shares = (memory.own_sizes_wh() / sizes_wh).expand(len(memory.tokens), -1, -1)
    mask = torch.zeros(memory.tokens.shape[:2], dtype=torch.bool)
    if memory.padding_mask is not None:
        mask = memory.padding_mask
    return theirs(
        inputs_embeds=memory.tokens,
        attention_mask=~mask,
        spatial_position_embeddings=torch.cat(positions, dim=1),
        spatial_shapes=torch.tensor(memory.sizes_hw),
        spatial_shapes_list=list(memory.sizes_hw),
        valid_ratios=shares,
    ).last_hidden_state


@pytest.mark.parametrize("padded", [False, True])
def test_equals_transformers_in_value_and_gradient(padded: bool) -> None:
    encoder = drawn_encoder().eval()
    theirs = peer_of(encoder)
    memory = drawn_memory(padded=padded)
    memory.tokens.requires_grad_()
    real = torch.ones(memory.tokens.shape[:2], dtype=torch.bool)
    if memory.padding_mask is not None:
        real = ~memory.padding_mask
    found = []
    for output in (encoder(memory).tokens, of_peer(theirs, encoder.level_embed, memory)):
        wanted = torch.linspace(-1, 1, output[real].numel(), dtype=DOUBLE).view(-1, DIM)
        inputs = (memory.tokens, encoder.level_embed)
        gradients = torch.autograd.grad(output[real], inputs, wanted)
        found.append([output[real], *gradients])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


def test_an_image_is_encoded_the_same_alone_and_padded() -> None:
    encoder = drawn_encoder()
    together = drawn_memory(padded=True)
    encoded = encoder(together)
    assert encoded.sizes_hw == SIZES_HW
    for row, own_sizes_hw in enumerate(OWN_HW):
        own_of = [
            (slice(row, row + 1), slice(None), slice(height), slice(width))
            for height, width in own_sizes_hw
        ]
        maps = zip(together.maps(), own_of, strict=True)
        alone = encoder(flatten_levels([(features[own], None) for features, own in maps]))
        for level, own in enumerate(own_of):
            torch.testing.assert_close(
                encoded.maps()[level][own], alone.maps()[level], rtol=0, atol=1e-12
            )


def test_a_token_looks_from_its_own_cell_into_every_level() -> None:
    memory = drawn_memory(padded=True)
    centers = memory.cell_centers()
    assert centers.shape == (3, 35 + 12 + 4, 2)
    # The second image is 3 x 5 cells of the first level, and 2 x 3 of the second.
    assert centers[1, 2 * 5 + 4].tolist() == pytest.approx([4.5 / 5, 2.5 / 3], abs=1e-15)
    assert centers[1, 35 + 1 * 3 + 2].tolist() == pytest.approx([2.5 / 3, 1.5 / 2], abs=1e-15)
    unpadded = drawn_memory(padded=False).cell_centers()
    assert unpadded.shape == (1, 51, 2)
    torch.testing.assert_close(centers[2:], unpadded, rtol=0, atol=1e-15)


def test_positions_lie_in_the_middle_of_the_cells() -> None:
    mask = masks_of(SIZES_HW)[0]
    encoded = SinePositions(4, centered=True)(mask, DOUBLE)
    angles = torch.tensor([1.5 / 3, 4.5 / 5], dtype=DOUBLE) * 2 * torch.pi
    expected = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten()
    torch.testing.assert_close(encoded[1, 1, 4], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("centered", [True, False])
def test_positions_are_those_of_the_official_code(centered: bool) -> None:
    """That of Deformable DETR if centered, that of DINO if not, with its `temperatureH` and `W`."""
    encoder = DeformableEncoder(
        DIM, 1, 2, 24, num_levels=3, num_points=3, dropout=0.0, temperature=20, centered=centered
    ).double()
    memory = drawn_memory(padded=True)
    scales = 20 ** (2 * (torch.arange(DIM // 2, dtype=DOUBLE) // 2) / (DIM // 2))
    expected = []
    for mask in memory.masks():
        assert mask is not None
        of_axes = []
        for axis in (1, 2):
            embed = (~mask).cumsum(axis, dtype=DOUBLE)
            last = embed[:, -1:, :] if axis == 1 else embed[:, :, -1:]
            shifted = embed - 0.5 if centered else embed
            angles = (shifted / (last + 1e-6) * 2 * torch.pi)[..., None] / scales
            waves = [angles[..., 0::2].sin(), angles[..., 1::2].cos()]
            of_axes.append(torch.stack(waves, dim=4).flatten(3))
        expected.append(torch.cat(of_axes, dim=3).flatten(1, 2))
    sine, _ = encoder._encode(memory, DOUBLE)
    torch.testing.assert_close(sine, torch.cat(expected, dim=1), rtol=0, atol=1e-12)


def test_positions_without_padding_are_remembered_by_size_and_never_rounded() -> None:
    encoder = drawn_encoder().float().eval()
    levels = [(torch.randn(1, DIM, *size_hw), None) for size_hw in SIZES_HW]
    with torch.autocast("cpu", torch.bfloat16):
        encoder(flatten_levels(levels))
    ((sine, reference),) = encoder._places.items.values()
    assert sine.dtype == reference.dtype == torch.float32
    encoder(flatten_levels(levels))
    assert len(encoder._places.items) == 1
    assert next(iter(encoder._places.items.values()))[0] is sine
    turned = [(features.transpose(2, 3), None) for features, _ in levels]
    expected = copy.deepcopy(encoder)(flatten_levels(turned)).tokens
    assert torch.equal(encoder(flatten_levels(turned)).tokens, expected)


def test_levels_are_told_apart() -> None:
    encoder = drawn_encoder()
    memory = drawn_memory(padded=False)
    before = encoder(memory).tokens
    with torch.no_grad():
        encoder.level_embed[1] += 1
    assert not torch.allclose(encoder(memory).tokens, before)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout: float) -> None:
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        encoder = drawn_encoder(dropout=dropout, checkpointed=checkpointed).train()
        memory = drawn_memory(padded=True)
        torch.manual_seed(1)
        encoder(memory).tokens.square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert torch.equal(plain, recomputed)


def test_starts_as_in_the_paper() -> None:
    encoder = DeformableEncoder(64, 2, 4, 96, num_levels=3, num_points=4, dropout=0.0)
    for layer in encoder.layers:
        assert not layer.attn.offsets.weight.any()
        assert layer.attn.offsets.bias.abs().max() == 4
        assert not layer.attn.weights.weight.any()
        for linear in (layer.mlp.fc1, layer.mlp.fc2, layer.attn.value, layer.attn.proj):
            bound = (6 / sum(linear.weight.shape)) ** 0.5
            assert 0.95 * bound < linear.weight.abs().max() <= bound
    assert 0.8 < encoder.level_embed.std() < 1.2


class Levels(nn.Module):
    """Two levels of one map, the encoder, and its tokens, for export."""

    def __init__(self, encoder: DeformableEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.convolutions = nn.ModuleList(
            nn.Conv2d(3, DIM, 1, stride=stride, dtype=DOUBLE) for stride in (1, 2)
        )

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        levels = []
        for conv, stride in zip(self.convolutions, (1, 2), strict=True):
            own = mask[:, ::stride, ::stride].clone(memory_format=torch.contiguous_format)
            levels.append((conv(features), own))
        return self.encoder(flatten_levels(levels)).tokens


def test_one_program_serves_every_number_and_size_of_images() -> None:
    model = Levels(drawn_encoder(layers=1, levels=2)).eval().requires_grad_(False)
    features, mask = torch.randn(2, 3, 13, 18, dtype=DOUBLE), torch.zeros(2, 13, 18).bool()
    batch, height, width = (Dim(name, min=1) for name in ("batch", "height", "width"))
    sizes = {"features": {0: batch, 2: height, 3: width}, "mask": {0: batch, 1: height, 2: width}}
    # As in detr_kit.export.program.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            model, (features, mask), dynamic_shapes=sizes, strict=False
        ).module()
    for count, height_, width_ in ((1, 1, 1), (1, 5, 7), (3, 9, 6)):
        features = torch.randn(count, 3, height_, width_, dtype=DOUBLE)
        mask = torch.zeros(count, height_, width_, dtype=torch.bool)
        mask[0, (height_ + 1) // 2 :] = True
        expected = model(features, mask)
        torch.testing.assert_close(program(features, mask), expected, rtol=0, atol=1e-12)
