"""DETR: a CNN, a transformer, and heads on its queries (Carion et al. 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from detr_kit.models.backbones import Backbone
from detr_kit.models.heads import DetectionHeads
from detr_kit.models.positions import LearnedPositions, SinePositions
from detr_kit.models.transformer import Decoder, Encoder, initialize_xavier
from detr_kit.structures import ImageBatch, ModelOutput, Scoring, TracedBatch


class DETR(nn.Module):
    """Assembles built parts; all of them share the width `hidden_dim`.

    `positions_at_input` adds the positions to the features too, not to the queries and keys of
    every attention alone (the paper compares the places in table 3). The values then carry where
    they come from, which a small model trained from little data does not work out otherwise.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoder: Encoder,
        decoder: Decoder,
        positions: SinePositions | LearnedPositions,
        heads: DetectionHeads,
        *,
        hidden_dim: int,
        num_queries: int,
        positions_at_input: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_proj = nn.Conv2d(backbone.num_channels, hidden_dim, kernel_size=1)
        self.positions = positions
        self.positions_at_input = positions_at_input
        self.encoder = encoder
        self.decoder = decoder
        self.queries = nn.Embedding(num_queries, hidden_dim)
        self.heads = heads
        initialize_xavier(encoder)
        initialize_xavier(decoder)

    @property
    def scoring(self) -> Scoring:
        return self.heads.scoring

    @property
    def num_columns(self) -> int:
        """How many columns the class head has, with one for `no object` if it softmaxes."""
        return self.heads.num_columns

    def forward(
        self, batch: ImageBatch | TracedBatch, all_layers: bool | None = None
    ) -> ModelOutput:
        """Detect objects; outputs of all decoder layers if `all_layers`, None: in training."""
        features, mask = self.backbone(batch)  # (B, C, h, w), (B, h, w) or None
        projected = self.input_proj(features)
        positions = self._positions(projected, mask)  # (B or 1, h * w, D)
        tokens = projected.flatten(2).transpose(1, 2)  # (B, h * w, D)
        if self.positions_at_input:
            tokens = tokens + positions
        key_padding_mask = None if mask is None else mask.flatten(1)
        memory = self.encoder(tokens, positions, key_padding_mask)
        queries = self.queries.weight.expand(tokens.shape[0], -1, -1)
        decoded = self.decoder(
            queries,
            memory,
            positions,
            key_padding_mask,
            all_layers=self.training if all_layers is None else all_layers,
        )
        return self.heads(decoded)

    def _positions(self, features: Tensor, mask: Tensor | None) -> Tensor:
        # The parameters' precision, not the features': autocast would round the positions.
        dtype = self.queries.weight.dtype
        if mask is None:
            size_hw = (features.shape[2], features.shape[3])
            return self.positions.of_size(size_hw, dtype, features.device).flatten(1, 2)
        return self.positions(mask, dtype).flatten(1, 2)
