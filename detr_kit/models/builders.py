"""The building of models from resolved numbers, family by family."""

from __future__ import annotations

from torch import nn

from detr_kit.models.anchor_decoder import AnchorDecoder
from detr_kit.models.backbones import Backbone
from detr_kit.models.deformable_detr import DeformableDETR
from detr_kit.models.deformable_encoder import DeformableEncoder
from detr_kit.models.denoising import Denoising
from detr_kit.models.detr import DETR
from detr_kit.models.heads import DetectionHeads
from detr_kit.models.hybrid_encoder import HybridEncoder
from detr_kit.models.positions import LearnedPositions, MemoryPositions, SinePositions
from detr_kit.models.projections import LevelProjections
from detr_kit.models.queries import LearnedAnchors, LearnedQueries
from detr_kit.models.selection import Content, SelectedQueries
from detr_kit.models.transformer import Decoder, Encoder, initialize_xavier
from detr_kit.models.variants import Numbers
from detr_kit.models.vit import ViT
from detr_kit.models.yolos import YOLOS


def _build_detr(numbers: Numbers, num_classes: int) -> nn.Module:
    dim = numbers["hidden_dim"]
    positions: dict[str, type[SinePositions] | type[LearnedPositions]] = {
        "sine": SinePositions,
        "learned": LearnedPositions,
    }
    layer = {
        "num_heads": numbers["num_heads"],
        "feedforward_dim": numbers["feedforward_dim"],
        "pre_norm": numbers["pre_norm"],
        "dropout": numbers["dropout"],
        "activation_checkpointing": numbers["activation_checkpointing"],
    }
    return DETR(
        Backbone(
            numbers["backbone"],
            norm=numbers["backbone_norm"],
            stages=numbers["backbone_stages"],
            dilation=numbers["dilation"],
            frozen_stages=numbers["frozen_stages"],
            padding=numbers["padding"],
        ),
        Encoder(dim, numbers["encoder_layers"], **layer),
        Decoder(dim, numbers["decoder_layers"], **layer),
        positions[numbers["position_encoding"]](dim),
        DetectionHeads(dim, num_classes, class_layers=1, scoring=numbers["scoring"]),
        hidden_dim=dim,
        num_queries=numbers["num_queries"],
        positions_at_input=numbers["positions_at_input"],
    )


def _build_yolos(numbers: Numbers, num_classes: int) -> nn.Module:
    mid_size_hw = numbers["mid_position_size_hw"]
    vit = ViT(
        dim=numbers["hidden_dim"],
        depth=numbers["depth"],
        num_heads=numbers["num_heads"],
        feedforward_dim=numbers["feedforward_dim"],
        patch_size=numbers["patch_size"],
        num_detection_tokens=numbers["num_queries"],
        position_size_hw=tuple(numbers["position_size_hw"]),
        mid_position_size_hw=None if mid_size_hw is None else tuple(mid_size_hw),
        dropout=numbers["dropout"],
        drop_path=numbers["drop_path"],
        norm_eps=numbers["norm_eps"],
        padding=numbers["padding"],
        activation_checkpointing=numbers["activation_checkpointing"],
        frozen_stages=numbers["frozen_stages"],
        groups=numbers["groups"],
    )
    heads = DetectionHeads(
        numbers["hidden_dim"], num_classes, class_layers=3, scoring=numbers["scoring"]
    )
    return YOLOS(vit, heads, patch_supervision=numbers["patch_supervision"])


def _build_deformable(numbers: Numbers, num_classes: int) -> nn.Module:
    dim, levels = numbers["hidden_dim"], numbers["levels"]
    backbone = Backbone(
        numbers["backbone"],
        norm=numbers["backbone_norm"],
        stages=numbers["backbone_stages"],
        dilation=numbers["dilation"],
        frozen_stages=numbers["frozen_stages"],
        padding=numbers["padding"],
        num_levels=min(levels, 3),
    )
    projections = LevelProjections(
        backbone.level_channels,
        numbers["encoder_dim"] or dim,
        levels,
        numbers["level_norm"],
        numbers["padding"],
    )
    dense = numbers["encoder"] == "dense" or numbers["cross_attention"] == "dense"
    denoising = None
    if numbers["denoising_queries"]:
        denoising = Denoising(
            num_classes,
            dim,
            numbers["denoising_queries"],
            label_noise=numbers["label_noise"],
            box_noise=numbers["box_noise"],
        )
    return DeformableDETR(
        backbone,
        projections,
        _encoder(numbers),
        _queries(numbers, num_classes),
        _decoder(numbers),
        _layer_heads(numbers, num_classes),
        memory_positions=MemoryPositions(dim, levels) if dense else None,
        denoising=denoising,
        groups=numbers["groups"],
    )


def _encoder(numbers: Numbers) -> DeformableEncoder | HybridEncoder | Encoder:
    dim, layers, heads = (numbers[key] for key in ("hidden_dim", "encoder_layers", "num_heads"))
    feedforward_dim, dropout = numbers["feedforward_dim"], numbers["dropout"]
    checkpointing = numbers["activation_checkpointing"]
    if numbers["encoder"] == "hybrid":
        return HybridEncoder(
            numbers["encoder_dim"] or dim,
            dim,
            numbers["levels"],
            num_layers=layers,
            num_heads=heads,
            feedforward_dim=numbers["encoder_feedforward_dim"] or feedforward_dim,
            expansion=numbers["encoder_expansion"],
            dropout=dropout,
            padding=numbers["padding"],
            activation_checkpointing=checkpointing,
        )
    if numbers["encoder"] == "deformable":
        return DeformableEncoder(
            dim,
            layers,
            heads,
            feedforward_dim,
            num_levels=numbers["levels"],
            num_points=numbers["points"],
            dropout=dropout,
            temperature=numbers["temperature"],
            centered=numbers["centered_positions"],
            activation_checkpointing=checkpointing,
        )
    dense = Encoder(
        dim,
        layers,
        heads,
        feedforward_dim,
        pre_norm=False,
        dropout=dropout,
        activation_checkpointing=checkpointing,
    )
    initialize_xavier(dense)
    return dense


def _queries(
    numbers: Numbers, num_classes: int
) -> LearnedQueries | LearnedAnchors | SelectedQueries:
    count, dim, groups = (numbers[key] for key in ("num_queries", "hidden_dim", "groups"))
    if numbers["query_selection"] == "none":
        learned = LearnedQueries if numbers["query_positions"] == "learned" else LearnedAnchors
        return learned(count, dim, groups=groups)
    heads = DetectionHeads(
        dim, num_classes, class_layers=1, scoring=numbers["scoring"], zero_boxes=True
    )
    content: Content = "learned" if numbers["query_selection"] == "mixed" else "tokens"
    if numbers["query_positions"] == "proposal":
        content = "proposals"
    return SelectedQueries(count, dim, heads, content=content, groups=groups)


def _decoder(numbers: Numbers) -> AnchorDecoder:
    positions = numbers["query_positions"]
    return AnchorDecoder(
        numbers["hidden_dim"],
        numbers["decoder_layers"],
        numbers["num_heads"],
        numbers["feedforward_dim"],
        num_levels=numbers["levels"],
        num_points=numbers["points"],
        cross_attention=numbers["cross_attention"],
        positions=positions if positions in ("sine", "mlp") else "given",
        refinement=numbers["refinement"],
        look_forward_twice=numbers["look_forward_twice"],
        norm=numbers["decoder_norm"],
        dropout=numbers["dropout"],
        activation_checkpointing=numbers["activation_checkpointing"],
    )


def _layer_heads(numbers: Numbers, num_classes: int) -> nn.ModuleList:
    """Build heads for each layer where boxes are refined by its own, one pair for all otherwise."""
    refined, shared = numbers["refinement"], numbers["shared_heads"]
    heads = [
        DetectionHeads(
            numbers["hidden_dim"],
            num_classes,
            class_layers=1,
            scoring=numbers["scoring"],
            zero_boxes=True,
        )
        for _ in range(numbers["decoder_layers"] if refined and not shared else 1)
    ]
    if numbers["query_positions"] == "learned" and not (refined and shared):
        # A point of reference has no sides: its boxes begin small, as in the paper's code. A head
        # that refines its own boxes would shrink them again in every layer.
        nn.init.constant_(heads[0].box_head.last.bias[2:], -2.0)
    return nn.ModuleList(heads)


BUILDERS = {"detr": _build_detr, "yolos": _build_yolos, "deformable": _build_deformable}
