"""Groups of detection tokens that learn side by side, of which one predicts (one-to-many).

Source: Chen et al. 2023 ("Group DETR"), section 3.2, whose decoder has groups of queries. YOLOS
has no decoder: here they are detection tokens of its ViT.

Shape legend: B images, P patches, G groups of Q detection tokens, N = 1 + P + Q tokens, D channels,
h heads, M = N + (G - 1) * Q tokens in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detr_kit.models.transformer import EncoderLayer, residual


class GroupedLayer(EncoderLayer):
    """A pre-norm encoder layer that can take several groups of detection tokens.

    Class token and patches see the first group only, as if there were no other; each other group
    sees class token, patches and itself. Keys are an encoder layer's.
    """

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        last: int | None = None,
        groups: int = 1,
        size: int = 0,
    ) -> Tensor:
        """Map (B, M, D) to the same shape, with `groups` of `size` tokens each at the end.

        The mask is (B, N), of the tokens with the first group. With `last`, only as many of the
        last tokens are computed and returned. One group is an encoder layer's work; several take
        no `positions`.
        """
        if groups == 1:
            return super().forward(x, positions, key_padding_mask, last)
        h = self.norm1(x)
        query = h
        if last is not None:
            x, query = x[:, -last:], h[:, -last:]
        x = x + self.drop(self._attend(query, h, key_padding_mask, groups, size))
        return residual(x, self.mlp, norm=self.norm2, drop=self.drop, pre_norm=True)

    def _attend(
        self, query: Tensor, h: Tensor, mask: Tensor | None, groups: int, size: int
    ) -> Tensor:
        """Attend from the last tokens (B, n, D), all groups among them, to (B, M, D)."""
        shared, extra = h.shape[1] - groups * size, (groups - 1) * size
        attn = self.attn
        if attn.observer is not None:  # it is to see the attention that there is without groups
            with torch.no_grad():
                attn(h[:, :-extra], None, None, mask)
        # Projected once: what differs between the groups is only who sees whom.
        q, k, v = (attn.split_heads(part) for part in attn.project(query, h, h))
        # The places of a group are those of the first: one mask serves all.
        allowed = None if mask is None else ~mask[:, None, None, :]
        mixed = [attn.mix(q[:, :, :-extra], k[:, :, :-extra], v[:, :, :-extra], allowed)]
        seen_k, seen_v = k[:, :, :shared], v[:, :, :shared]
        others = (part[:, :, -extra:].split(size, dim=2) for part in (q, k, v))
        for own_q, own_k, own_v in zip(*others, strict=True):
            keys, values = torch.cat([seen_k, own_k], dim=2), torch.cat([seen_v, own_v], dim=2)
            mixed.append(attn.mix(own_q, keys, values, allowed))
        return attn.proj(torch.cat([part.transpose(1, 2) for part in mixed], dim=1).flatten(2))
