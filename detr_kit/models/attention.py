"""Multi-head attention for all families, for self and for cross attention.

Shape legend: B images, N queries, M keys, D channels, h heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.dropout import attention_with_dropout, dropout
from detr_kit.models.linear import Linear, linear


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2) with packed projections.

    `qkv` holds the query, key and value projections one after the other, which is the layout of
    both `nn.MultiheadAttention.in_proj_weight` and of the ViTs' `attn.qkv`. Positions are added
    to queries and keys by the caller.

    Where `observer` is set, the weights are computed explicitly and handed to it as
    (B, h, N, M), each row summing to one; otherwise the fused kernel runs.

    Raises DetrKitError where `dim` is not a multiple of `num_heads`.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise DetrKitError(f"hidden_dim {dim} is not a multiple of num_heads {num_heads}")
        self.dim = dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.observer: Callable[[Tensor], object] | None = None

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        blocked: Tensor | None = None,
    ) -> Tensor:
        """Attend from (B, N, D) to (B, M, D); keys are queries and values are keys if left out.

        `key_padding_mask` is (B, M) bool, True where a key must not be attended to. `blocked` is
        (N, M) bool, True where a query must not attend to a key, in all images alike. At least one
        key must be left to every query.
        """
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = (self.split_heads(x) for x in self.project(query, key, value))
        allowed = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
        if blocked is not None:
            unblocked = ~blocked.expand(query.shape[0], 1, -1, -1)
            allowed = unblocked if allowed is None else allowed & unblocked
        if self.observer is not None:
            weights = self._weights(q, k, allowed)
            self.observer(weights)
            mixed = dropout(weights, self.dropout, training=self.training) @ v
        else:
            mixed = self.mix(q, k, v, allowed)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        """Attend from (B, h, N, d) to (B, h, M, d) by the fused kernel.

        `allowed`, which broadcasts to (B, h, N, M), is False where a key must not be attended to.
        """
        if self.training and self.dropout > 0:
            return attention_with_dropout(q, k, v, allowed, self.dropout)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Apply the three projections in as few matrix products as the inputs allow."""
        if query is key and key is value:
            return self.qkv(query).chunk(3, dim=-1)
        dim, weight, bias = self.dim, self.qkv.weight, self.qkv.bias
        if query is key:
            q, k = linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
            return q, k, linear(value, weight[2 * dim :], bias[2 * dim :])
        q = linear(query, weight[:dim], bias[:dim])
        if key is value:
            return q, *linear(key, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        k = linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim])
        return q, k, linear(value, weight[2 * dim :], bias[2 * dim :])

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, h, N, D / h)"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def _weights(q: Tensor, k: Tensor, allowed: Tensor | None) -> Tensor:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        # Softmax overflows in half precision no less than exp does: it runs in fp32 there.
        wide = torch.promote_types(scores.dtype, torch.float32)
        return scores.softmax(dim=-1, dtype=wide).to(scores.dtype)
