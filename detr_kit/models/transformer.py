"""The transformer core that all families share: MLP, residual wiring, layers and stacks.

Shape legend: B images, L decoder layers, Q queries, N memory tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detr_kit.models.attention import Attention
from detr_kit.models.dropout import Dropout, dropout
from detr_kit.models.linear import Linear


class MLP(nn.Module):
    """The two-layer feed-forward part of a transformer layer."""

    def __init__(
        self, dim: int, hidden_dim: int, *, activation: type[nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = activation()
        self.drop = Dropout(dropout)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to the same shape."""
        return self.fc2(self.drop(self.act(self.fc1(x))))


class ResidualDrop(nn.Module):
    """Dropout of elements, then of whole branches (stochastic depth, Huang et al. 2016)."""

    def __init__(self, *, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.drop_path = drop_path

    def forward(self, branch: Tensor) -> Tensor:
        """Map (B, ...) to the same shape; outside training it stays as it is."""
        branch = dropout(branch, self.dropout, training=self.training)
        if self.training and self.drop_path > 0:
            keep = 1.0 - self.drop_path
            kept = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(keep)
            branch = branch * kept / keep
        return branch

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, drop_path={self.drop_path}"


def residual(
    x: Tensor,
    branch: Callable[[Tensor], Tensor],
    *,
    norm: nn.Module,
    drop: nn.Module,
    pre_norm: bool,
) -> Tensor:
    """Add a branch to x, normalising either the branch's input or the sum."""
    if pre_norm:
        return x + drop(branch(norm(x)))
    return norm(x + drop(branch(x)))


def with_positions(x: Tensor, positions: Tensor | None) -> Tensor:
    """Add positions where there are any; x itself otherwise, so that projections can be fused."""
    return x if positions is None else x + positions


class EncoderLayer(nn.Module):
    """Self attention and MLP, each on a residual branch, post- or pre-norm."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        *,
        pre_norm: bool,
        activation: type[nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, feedforward_dim, activation=activation, dropout=dropout)
        self.drop = ResidualDrop(dropout=dropout, drop_path=drop_path)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Map (B, N, D) to the same shape; the mask is (B, N), True on padding.

        With `last`, of pre-norm layers, only as many of the last tokens are computed and returned.
        """
        if last is not None:
            return self._last_tokens(x, key_padding_mask, last)

        def attend(h: Tensor) -> Tensor:
            at = with_positions(h, positions)
            return self.attn(at, at, h, key_padding_mask)

        x = residual(x, attend, norm=self.norm1, drop=self.drop, pre_norm=self.pre_norm)
        return residual(x, self.mlp, norm=self.norm2, drop=self.drop, pre_norm=self.pre_norm)

    def _last_tokens(self, x: Tensor, key_padding_mask: Tensor | None, count: int) -> Tensor:
        def attend(h: Tensor) -> Tensor:
            if self.attn.observer is not None:  # it is to see the attention of all tokens
                return self.attn(h, None, None, key_padding_mask)[:, -count:]
            return self.attn(h[:, -count:], h, h, key_padding_mask)

        x = x[:, -count:] + self.drop(attend(self.norm1(x)))
        return residual(x, self.mlp, norm=self.norm2, drop=self.drop, pre_norm=True)


class DecoderLayer(nn.Module):
    """Self attention of the queries, cross attention to the memory, MLP (DETR, appendix A.3)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        *,
        pre_norm: bool,
        activation: type[nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = Attention(dim, num_heads, dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, feedforward_dim, activation=activation, dropout=dropout)
        self.drop = ResidualDrop(dropout=dropout)

    def forward(
        self,
        x: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        memory_keys: Tensor,
        memory_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Map (B, Q, D) to the same shape; `memory_keys` is the memory with positions added."""

        def attend(h: Tensor) -> Tensor:
            at = h + query_positions
            return self.self_attn(at, at, h)

        def look(h: Tensor) -> Tensor:
            return self.cross_attn(h + query_positions, memory_keys, memory, memory_padding_mask)

        x = residual(x, attend, norm=self.norm1, drop=self.drop, pre_norm=self.pre_norm)
        x = residual(x, look, norm=self.norm2, drop=self.drop, pre_norm=self.pre_norm)
        return residual(x, self.mlp, norm=self.norm3, drop=self.drop, pre_norm=self.pre_norm)


def run_layer(layer: nn.Module, *inputs: Any, checkpointed: bool) -> Tensor:
    """Call a layer; if `checkpointed`, its activations are computed anew in the backward pass."""
    if checkpointed and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)


class Encoder(nn.Module):
    """A stack of encoder layers; pre-norm layers are followed by a LayerNorm."""

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        feedforward_dim: int,
        *,
        pre_norm: bool,
        dropout: float,
        activation: type[nn.Module] = nn.ReLU,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                num_heads,
                feedforward_dim,
                pre_norm=pre_norm,
                activation=activation,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()

    def forward(self, x: Tensor, positions: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """Map (B, N, D) to the same shape; the mask is (B, N), True on padding."""
        for layer in self.layers:
            x = run_layer(
                layer, x, positions, key_padding_mask, checkpointed=self.activation_checkpointing
            )
        return self.norm(x)


class Decoder(nn.Module):
    """A stack of decoder layers whose outputs all pass through one shared LayerNorm."""

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        feedforward_dim: int,
        *,
        pre_norm: bool,
        dropout: float,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, feedforward_dim, pre_norm=pre_norm, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        query_positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        memory_padding_mask: Tensor | None,
        *,
        all_layers: bool,
    ) -> Tensor:
        """Decode (B, Q, D) query positions, starting from zeros, to (L, B, Q, D).

        L is 1, the last layer, unless `all_layers`.
        """
        memory_keys = memory + memory_positions
        x = torch.zeros_like(query_positions)
        outputs = []
        for layer in self.layers:
            x = run_layer(
                layer,
                x,
                query_positions,
                memory,
                memory_keys,
                memory_padding_mask,
                checkpointed=self.activation_checkpointing,
            )
            outputs.append(x)
        return self.norm(torch.stack(outputs if all_layers else outputs[-1:]))


def initialize_xavier(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero attention biases, as the official DETR starts."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    for part in module.modules():
        if isinstance(part, Attention):
            nn.init.zeros_(part.qkv.bias)
            nn.init.zeros_(part.proj.bias)
