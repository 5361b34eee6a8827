from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detr_kit.models.convolutions import ConvNorm, CSPBlock, RepVGGBlock
from detr_kit.models.hybrid_encoder import HybridEncoder
from detr_kit.models.positions import CellPositions
from detr_kit.models.pyramid import Level
from tests.drawn import draw_scales

Sizes = tuple[tuple[int, int], ...]


@pytest.fixture
def build_encoder() -> Callable[..., HybridEncoder]:
    def build(num_levels: int = 3, **options: object) -> HybridEncoder:
        torch.manual_seed(0)
        tiny = {"num_heads": 2, "feedforward_dim": 40, **options}
        encoder = (
            draw_scales(HybridEncoder(16, 12, num_levels, **tiny), kernels=True).double().eval()
        )
        assert isinstance(encoder, HybridEncoder)
        return encoder

    return build


def maps_of(sizes: Sizes, batch: int = 1, dim: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, dim, *size, generator=generator, dtype=torch.float64) for size in sizes
    ]


def unmasked(maps: list[Tensor]) -> list[Level]:
    return [(features, None) for features in maps]


def inside(sizes: Sizes, batch_sizes: Sizes) -> list[Tensor]:
    """Masks of one image of the given sizes in a batch of others."""
    masks = []
    for (height, width), size in zip(sizes, batch_sizes, strict=True):
        mask = torch.ones(1, *size, dtype=torch.bool)
        mask[:, :height, :width] = False
        masks.append(mask)
    return masks


def rtdetr_names(key: str) -> str:
    """Name a tensor of transformers' encoder as ours; its query, key and value stay apart."""
    for theirs, ours in (
        ("aifi.0.layers", "attention.layers"),
        ("lateral_convs", "laterals"),
        ("fpn_blocks", "top_down"),
        ("downsample_convs", "downsamples"),
        ("pan_blocks", "bottom_up"),
        ("bottlenecks", "blocks"),
        ("self_attn_layer_norm", "norm1"),
        ("final_layer_norm", "norm2"),
        ("self_attn.o_proj", "attn.proj"),
        ("self_attn", "attn"),
    ):
        key = key.replace(theirs, ours)
    return key


@pytest.mark.parametrize(
    ("layers", "expansion", "sizes"),
    [
        (1, 1.0, ((8, 12), (4, 6), (2, 3))),
        (2, 0.5, ((16, 8), (8, 4), (4, 2))),
    ],
)
def test_numbers_are_those_of_transformers(
    build_encoder: Callable[..., HybridEncoder], layers: int, expansion: float, sizes: Sizes
) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import RTDetrV2HybridEncoder

    config = transformers.RTDetrV2Config(
        encoder_hidden_dim=16,
        encoder_layers=layers,
        encoder_ffn_dim=40,
        encoder_attention_heads=2,
        hidden_expansion=expansion,
    )
    torch.manual_seed(0)
    reference = draw_scales(RTDetrV2HybridEncoder(config), kernels=True).double().eval()
    ours = build_encoder(num_layers=layers, expansion=expansion)
    state = {rtdetr_names(key): value for key, value in reference.state_dict().items()}
    for layer in range(layers):
        prefix = f"attention.layers.{layer}.attn."
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{prefix}{part}_proj.{kind}") for part in "qkv"]
            state[f"{prefix}qkv.{kind}"] = torch.cat(parts)
    missing, strange = ours.load_state_dict(state, strict=False)
    assert all(key.startswith("output_proj.") for key in missing)  # theirs is in the decoder
    assert strange == []
    maps = maps_of(sizes, batch=2)
    with torch.no_grad():
        expected = reference(inputs_embeds=list(maps)).last_hidden_state
        found = ours(unmasked(maps))
        projected = [project(m) for project, m in zip(ours.output_proj, expected, strict=True)]
    for (features, mask), theirs in zip(found, projected, strict=True):
        assert mask is None
        assert theirs.std(dim=(2, 3)).mean() > 0.001  # cells differ
        torch.testing.assert_close(features, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("own", "batch"),
    [
        (((5, 7), (3, 4), (2, 2)), ((8, 12), (4, 6), (2, 3))),
        (((1, 3), (1, 2), (1, 1)), ((3, 3), (2, 2), (1, 1))),
        (((9, 4), (5, 2), (3, 1), (2, 1), (1, 1)), ((9, 9), (5, 5), (3, 3), (2, 2), (1, 1))),
        (((5, 7),), ((6, 7),)),
    ],
)
def test_what_lies_in_the_padding_does_not_matter(
    build_encoder: Callable[..., HybridEncoder], own: Sizes, batch: Sizes
) -> None:
    encoder = build_encoder(len(own))
    alone, masks = maps_of(own), inside(own, batch)
    padded = [features.clone() for features in maps_of(batch)]
    for (height, width), features, ours in zip(own, padded, alone, strict=True):
        features[:, :, :height, :width] = ours
    with torch.no_grad():
        expected = encoder(unmasked(alone))
        found = encoder(list(zip(padded, masks, strict=True)))
    for (height, width), (features, mask), (theirs, _), given in zip(
        own, found, expected, masks, strict=True
    ):
        assert mask is given
        assert theirs.shape == (1, 12, height, width)
        ours = features[:, :, :height, :width]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_official_padding_masks_nothing(build_encoder: Callable[..., HybridEncoder]) -> None:
    sizes = ((8, 8), (4, 4))
    encoder = build_encoder(2, padding="official")
    maps, masks = maps_of(sizes), inside(((5, 3), (3, 2)), sizes)
    with torch.no_grad():
        expected = encoder(unmasked(maps))
        found = encoder(list(zip(maps, masks, strict=True)))
    for (features, mask), (theirs, _), given in zip(found, expected, masks, strict=True):
        assert mask is given
        assert torch.equal(features, theirs)


@pytest.mark.parametrize("padded", [False, True])
def test_training_reaches_every_parameter_and_all_statistics(
    build_encoder: Callable[..., HybridEncoder], padded: bool
) -> None:
    sizes = ((8, 7), (4, 4), (2, 2))
    encoder = build_encoder(dropout=0.1, expansion=0.5).train()
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    masks = inside(((5, 3), (3, 2), (2, 1)), sizes) if padded else [None] * 3
    maps = [features.requires_grad_() for features in maps_of(sizes)]
    found = encoder(list(zip(maps, masks, strict=True)))
    sum(features.square().sum() for features, _ in found).backward()
    for name, tensor in (*encoder.named_parameters(), *enumerate(maps)):
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name
    assert all(not torch.equal(value, before[key]) for key, value in encoder.named_buffers())


def test_checkpointing_gives_equal_gradients(
    build_encoder: Callable[..., HybridEncoder],
) -> None:
    gradients = []
    for checkpointed in (False, True):
        encoder = build_encoder(activation_checkpointing=checkpointed, dropout=0.1).train()
        torch.manual_seed(5)
        found = encoder(unmasked(maps_of(((8, 6), (4, 3), (2, 2)))))
        sum(features.square().sum() for features, _ in found).backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_cells_are_encoded_by_their_numbers_alone() -> None:
    positions = CellPositions(8)
    found = positions((3, 4), torch.float64, torch.device("cpu")).view(3, 4, 8)
    for row, column in ((0, 0), (2, 1), (1, 3)):
        expected = []
        for number in (row, column):
            angles = torch.tensor([number / 1.0, number / 100.0], dtype=torch.float64)
            expected += [angles.sin(), angles.cos()]
        torch.testing.assert_close(found[row, column], torch.cat(expected), rtol=0, atol=1e-15)
    larger = positions((5, 9), torch.float64, torch.device("cpu")).view(5, 9, 8)
    assert torch.equal(larger[:3, :4], found)
    assert positions((5, 9), torch.float64, torch.device("cpu")).data_ptr() == larger.data_ptr()


def test_runs_in_bfloat16(build_encoder: Callable[..., HybridEncoder]) -> None:
    sizes = ((8, 12), (4, 6), (2, 3))
    encoder = build_encoder().float()
    maps, masks = maps_of(sizes), inside(((5, 7), (3, 4), (2, 2)), sizes)
    levels = [(features.float(), mask) for features, mask in zip(maps, masks, strict=True)]
    with torch.no_grad():
        expected = encoder(levels)
        with torch.autocast("cpu", torch.bfloat16):
            found = encoder(levels)
    for (features, _), (theirs, _) in zip(found, expected, strict=True):
        assert features.dtype == torch.bfloat16
        assert (features - theirs).abs().max() < 0.1 * theirs.abs().max()


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: ConvNorm(6, 6, 3, stride=2, activated=True),
    "RepVGG": lambda: RepVGGBlock(6),
    "CSP": lambda: CSPBlock(6, 8, expansion=0.5),
}


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return draw_scales(BLOCKS[request.param](), kernels=True).double().eval()


def image() -> Tensor:
    return torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def both(block: nn.Module) -> tuple[Tensor, Tensor]:
    """What a block returns folded, and as it was trained."""
    with torch.no_grad():
        folded = block(image())
    return folded, block(image()).detach()


def test_folded_norms_change_nothing(block: nn.Module) -> None:
    folded, unfolded = both(block)
    torch.testing.assert_close(folded, unfolded, rtol=0, atol=1e-12)


def test_no_batch_norm_runs_in_inference(block: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("a batch norm ran")

    monkeypatch.setattr(nn.BatchNorm2d, "forward", refuse)
    with torch.no_grad():
        block(image())
        with pytest.raises(AssertionError, match="a batch norm ran"):
            block.train()(image())


@pytest.mark.parametrize("change", ["statistics", "step", "load", "data"])
def test_what_is_folded_follows_the_weights(block: nn.Module, change: str) -> None:
    before, _ = both(block)
    if change == "statistics":
        with torch.no_grad():
            block.train()(image())
        block.eval()
    elif change == "step":
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1, fused=True)
        block(image()).square().mean().backward()
        optimizer.step()
    elif change == "load":
        block.load_state_dict({key: 1.5 * value for key, value in block.state_dict().items()})
    else:
        for parameter in block.parameters():
            parameter.data.mul_(1.5)
        block.eval()
    folded, unfolded = both(block)
    assert (folded - before).abs().max() > 1e-3
    torch.testing.assert_close(folded, unfolded, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_folds_by_itself(block: nn.Module, clone: Callable[[nn.Module], nn.Module]) -> None:
    before, _ = both(block)
    copied = clone(block)
    with torch.no_grad():
        assert torch.equal(copied(image()), before)
        for parameter in copied.parameters():
            parameter.mul_(2)
        assert not torch.equal(copied(image()), before)
        assert torch.equal(block(image()), before)


def test_weights_are_folded_once(block: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    folded = []
    fold = ConvNorm.fold
    monkeypatch.setattr(ConvNorm, "fold", lambda self: folded.append(self) or fold(self))
    with torch.no_grad():
        for _ in range(3):
            block(image())
    convolutions = [part for part in block.modules() if isinstance(part, ConvNorm)]
    assert len(folded) == len(convolutions)
