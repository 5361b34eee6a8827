from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detr_kit.models.anchors import grid_anchors
from detr_kit.models.heads import DetectionHeads
from detr_kit.models.pyramid import Pyramid, flatten_levels
from detr_kit.models.queries import LearnedAnchors, LearnedQueries
from detr_kit.models.selection import SelectedQueries

DIM = 16


def memory_of(*sizes_hw: tuple[int, int], padded: bool = False) -> Pyramid:
    """Two pictures' random tokens; the second fills half of each map's width if `padded`."""
    generator = torch.Generator().manual_seed(3)
    levels = []
    for height, width in sizes_hw:
        features = torch.randn(2, DIM, height, width, generator=generator, dtype=torch.float64)
        mask = None
        if padded:
            mask = torch.zeros(2, height, width, dtype=torch.bool)
            mask[1, :, -(-width // 2) :] = True
        levels.append((features, mask))
    return flatten_levels(levels)


def selected(content: str, *, queries: int = 5, groups: int = 1, scoring: str = "sigmoid"):
    torch.manual_seed(0)
    heads = DetectionHeads(DIM, 3, class_layers=1, scoring=scoring)
    return SelectedQueries(queries, DIM, heads, content=content, groups=groups).double()


def scores_of(module: SelectedQueries, memory: Pyramid) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens' features, class logits and boxes, straight from the definition."""
    anchors, usable = grid_anchors(memory)
    features = module.norm(module.transform(memory.tokens * usable.unsqueeze(-1)))
    boxes = (module.heads.box_head(features) + anchors).sigmoid()
    return features, module.heads.class_head(features), boxes


@pytest.mark.parametrize("content", ["tokens", "learned", "proposals"])
def test_the_best_tokens_become_queries(content: str) -> None:
    module, memory = selected(content), memory_of((6, 5), (3, 3))
    queries = module(memory)
    features, logits, boxes = scores_of(module, memory)
    scores = logits[..., 0] if content == "proposals" else logits.amax(-1)
    for image in range(2):
        best = scores[image].argsort(descending=True)[:5]
        torch.testing.assert_close(queries.reference[image], boxes[image, best])
        of_best = logits[image, best]
        if content == "proposals":
            of_best = of_best[:, :1].expand(-1, 3)
        torch.testing.assert_close(queries.proposals.logits[image], of_best)
        if content == "tokens":
            torch.testing.assert_close(queries.content[image], features[image, best])
        elif content == "learned":
            assert torch.equal(queries.content[image], module.content.weight)
    assert queries.missing is None
    assert (queries.positions is not None) == (content == "proposals")
    assert queries.proposals.layer_logits.shape == (1, 2, 5, 3)
    assert queries.proposals.scoring == "sigmoid"


def test_no_object_is_no_reason_to_choose_a_token() -> None:
    module, memory = selected("tokens", scoring="softmax"), memory_of((4, 4))
    with torch.no_grad():
        module.heads.class_head.last.bias[-1] = 3.0
    logits = scores_of(module, memory)[1]
    best = logits.softmax(-1)[..., :-1].amax(-1).argsort(dim=1, descending=True)[:, :5]
    expected = logits.gather(1, best.unsqueeze(-1).expand(-1, -1, 4))
    torch.testing.assert_close(module(memory).proposals.logits, expected)


@pytest.mark.parametrize("content", ["tokens", "learned", "proposals"])
def test_gradients_reach_the_proposals_and_not_the_queries(content: str) -> None:
    module, memory = selected(content), memory_of((6, 5))
    tokens = memory.tokens.requires_grad_()
    queries = module(memory.with_tokens(tokens))
    assert not queries.reference.requires_grad
    assert queries.content.requires_grad == (content != "tokens")
    if content == "proposals":
        assert torch.autograd.grad(queries.content.sum(), tokens, allow_unused=True) == (None,)
    proposals = module(memory.with_tokens(tokens)).proposals
    (proposals.logits.sum() + proposals.boxes_cxcywh.sum()).backward()
    assert (tokens.grad.abs().sum(-1) > 0).sum(1).tolist() == [5, 5]
    assert module.transform.weight.grad.any()


def test_proposals_are_encoded_into_positions_and_content() -> None:
    module, memory = selected("proposals"), memory_of((6, 5))
    queries = module(memory)
    encoded = module.positions_norm(module.positions(module.sine(queries.reference)))
    torch.testing.assert_close(queries.positions, encoded[..., :DIM])
    torch.testing.assert_close(queries.content, encoded[..., DIM:])


@pytest.mark.parametrize("content", ["tokens", "learned", "proposals"])
def test_padding_is_never_chosen_before_a_real_token(content: str) -> None:
    module = selected(content, queries=9)
    memory = memory_of((4, 3), padded=True)  # 8 real cells in the second picture
    with torch.no_grad():  # what stands for padding scores best of all
        module.norm.weight.zero_()
        module.norm.bias.normal_()
        module.transform.bias.normal_()
    queries = module(memory)
    assert queries.missing.sum(1).tolist() == [0, 1]
    assert queries.missing[1, -1]
    alone = memory_of((4, 3)).tokens.view(2, 4, 3, DIM)[1:, :, :2].reshape(1, 8, DIM)
    of_alone = module(Pyramid(alone, ((4, 2),)))
    real = torch.tensor([[True] * 8 + [False]])
    assert torch.equal(of_alone.missing, ~real)

    def in_order(boxes: Tensor) -> Tensor:  # all score alike here
        return boxes[boxes[:, 0].argsort(stable=True)][:, :2].sort(0).values

    torch.testing.assert_close(
        in_order(queries.reference[1, :8]), in_order(of_alone.reference[0, :8])
    )


def test_there_are_as_many_queries_as_asked_for_even_of_fewer_tokens() -> None:
    module, memory = selected("tokens", queries=20), memory_of((2, 3), (1, 2))
    queries = module(memory)
    assert queries.content.shape == (2, 20, DIM)
    assert queries.missing.sum(1).tolist() == [12, 12]
    assert not queries.missing[:, :8].any()
    fewer = selected("tokens", queries=8)
    fewer.load_state_dict(module.state_dict())
    torch.testing.assert_close(queries.reference[:, :8], fewer(memory).reference)
    assert queries.content.isfinite().all()


def test_groups_share_the_boxes_and_differ_in_content() -> None:
    module, memory = selected("learned", groups=3), memory_of((4, 3), padded=True)
    queries = module.train()(memory)
    assert queries.content.shape == (2, 15, DIM)
    assert torch.equal(queries.reference[:, :5], queries.reference[:, 10:])
    assert not torch.equal(queries.content[:, :5], queries.content[:, 5:10])
    assert queries.missing.shape == (2, 15)
    assert queries.proposals.logits.shape == (2, 5, 3)
    assert module.eval()(memory).content.shape == (2, 5, DIM)


def test_autocast_leaves_the_gradients_of_the_weights() -> None:
    """A weight cast without a gradient would be remembered by autocast, and never learn."""
    module, memory = selected("tokens").float(), memory_of((4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        proposals = module(memory.with_tokens(memory.tokens.float())).proposals
    assert proposals.logits.dtype == proposals.boxes_cxcywh.dtype == torch.float32
    (proposals.logits.sum() + proposals.boxes_cxcywh.square().sum()).backward()
    assert module.transform.weight.grad.any()
    assert module.heads.class_head.last.weight.grad.any()


@pytest.mark.parametrize(("kind", "numbers"), [(LearnedQueries, 2), (LearnedAnchors, 4)])
def test_learned_queries_are_the_same_for_all_pictures(kind: type, numbers: int) -> None:
    torch.manual_seed(0)
    module, memory = kind(5, DIM, groups=3), memory_of((2, 2))
    training, evaluation = module.train()(memory), module.eval()(memory)
    assert training.content.shape == (2, 15, DIM)
    assert evaluation.content.shape == (2, 5, DIM)
    assert evaluation.reference.shape == (2, 5, numbers)
    torch.testing.assert_close(training.reference[:, :5], evaluation.reference)
    assert torch.equal(evaluation.content[0], evaluation.content[1])
    assert ((evaluation.reference > 0) & (evaluation.reference < 1)).all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(memory).reference, evaluation.reference)
