"""Which tokens a graph made its queries of, so that its model can make them of the same.

Queries that are selected from the encoder come in the order of their scores. Rounding alone swaps
tokens that are scored about the same, and chooses between two at the cut-off: from there on, graph
and model compute other things, and neither is wrong. So the model is given the graph's choice, and
the choice is compared apart from what follows.

Shape legend: B images, Q queries, S tokens of all levels together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from detr_kit.errors import DetrKitError
from detr_kit.models.selection import SelectedQueries

if TYPE_CHECKING:
    import onnx

# Besides a graph's own outputs: (B, Q) int64 places of its tokens, as its top-k tells them. The
# first Q places stand for no token, see `SelectedQueries._best` for sizes that are symbols.
SELECTED = "selected_tokens"


def selects_tokens(model: nn.Module) -> bool:
    return isinstance(getattr(model, "queries", None), SelectedQueries)


def telling_tokens(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of an ONNX model that selects tokens, with `SELECTED` as one more output.

    Raises DetrKitError where nothing is selected in it.
    """
    import onnx

    told = onnx.ModelProto()
    told.CopyFrom(graph)
    # Nodes are sorted: post-processing, which sorts too, comes after.
    best = next((node for node in told.graph.node if node.op_type == "TopK"), None)
    if best is None:
        raise DetrKitError("the exported graph selects no tokens, but its model does")
    told.graph.node.append(onnx.helper.make_node("Identity", [best.output[1]], [SELECTED]))
    value = onnx.helper.make_tensor_value_info(SELECTED, onnx.TensorProto.INT64, None)
    told.graph.output.append(value)
    return told


class TellingTokens(TorchDispatchMode):
    """Keeps the indices of the first top-k that runs within, as `tokens`: those of `SELECTED`."""

    tokens: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.topk.default and self.tokens is None:
            self.tokens = found[1]
        return found


class GivenTokens(SelectedQueries):
    """Makes queries of tokens that are given, and keeps by how much they are not the best.

    `tokens` are those of `SELECTED`. `difference` is a quarter of the largest difference between
    the logits (logarithms, of a softmax) of a token and of the one that its rank belongs to: what a
    probability of a half moves by. In probabilities, a wrong choice among unlikely ones would hide.
    """

    tokens: Tensor
    difference: float

    def _best(self, scores: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if padding_mask is not None:
            scores = scores.masked_fill(padding_mask, -torch.inf)
        places = F.pad(scores, (self.num_queries, 0), value=-torch.inf)
        best = places.topk(self.num_queries, dim=1).values
        taken = places.gather(1, self.tokens)
        apart = torch.where(taken == best, 0.0, (taken - best).abs())  # both may stand for none
        self.difference = float(apart.max()) / 4
        return (self.tokens - self.num_queries).clamp(min=0), taken == -torch.inf


@contextmanager
def given_tokens(model: Any, tokens: Tensor) -> Iterator[GivenTokens]:
    """Let a model that selects tokens take those that a graph took, for the time being.

    The queries that do so are yielded. Raises DetrKitError for tokens that no graph of the model
    can have selected.
    """
    own = model.queries
    if tokens.ndim != 2 or tokens.shape[1] != own.num_queries:
        raise DetrKitError(
            f"the exported graph selects {tuple(tokens.shape)} tokens, its model {own.num_queries}"
        )
    given = copy.copy(own)
    given.__class__ = GivenTokens
    given.tokens = tokens
    model.queries = given
    try:
        yield given
    finally:
        model.queries = own
