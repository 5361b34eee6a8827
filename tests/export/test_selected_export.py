"""The check of graphs whose queries are selected from the encoder, in the order of their scores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.export.check import Arrays, Difference, Run, differences
from detr_kit.export.graphs import GRAPHS
from detr_kit.export.metadata import ExportOptions, FileMetadata
from detr_kit.export.program import export_program
from detr_kit.export.selected import SELECTED, given_tokens, selects_tokens, telling_tokens
from detr_kit.export.torch_file import program_run
from detr_kit.inference.detector import Detector
from detr_kit.models.tracing import traceable_copy
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import TracedBatch
from tests.drawn import draw_values
from tests.export.small_models import TABLE
from tests.export.test_sigmoid_export import DEFORMABLE, PREPROCESSING, SMALL

SELECTING = ("two_stage", "dino", "rt", "softmax")
DRAWN = (
    "box_head.layers.2.weight",
    "class_head.layers.0.weight",
    "cross_attn.offsets.weight",
    "cross_attn.weights.weight",
)
FP32 = 1e-4  # the bound of single precision
CASES = ((2, (160, 320)), (1, (203, 157)))
Change = Callable[[Tensor, Tensor], Tensor]


def selecting_model(kind: str, **changes: Any) -> Any:
    """Heads and attention are drawn wide: another token, rank or level makes other detections."""
    torch.manual_seed(0)
    config = ModelConfig(**{**SMALL, "hidden_dim": 32, **DEFORMABLE[kind], **changes})
    model = build_model(resolve(config), num_classes=len(TABLE))
    draw_values(model)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(DRAWN):
                tensor.normal_(0, 0.5)
    return model.eval()


def tie_all_tokens(model: Any) -> None:
    """Let the choice of tokens be one of rounding."""
    with torch.no_grad():
        model.queries.heads.class_head.last.weight.mul_(1e-7)


def metadata(model: Any, *, postprocess: bool = False) -> FileMetadata:
    options = ExportOptions(mask=True, preprocess=False, postprocess=postprocess, precision="fp32")
    return FileMetadata(TABLE, PREPROCESSING, options, model.scoring)


def graph_of(
    model: Any,
    change: Change = lambda index, scores: index,
    *,
    tells: bool = True,
    gathers: int = 0,
) -> Run:
    """What a graph does that makes `change` of the indices of its top-k.

    It looks up its tokens `gathers` places beside those that it has chosen.
    """
    copied: Any = traceable_copy(model, mask=True)
    queries, count = copied.queries, copied.queries.num_queries
    told: dict[str, Tensor] = {}

    def best(scores: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.pad(scores.masked_fill(padding_mask, -torch.inf), (count, 0), value=-torch.inf)
        told[SELECTED] = change(scores.topk(count, dim=1).indices, scores)
        missing = scores.gather(1, told[SELECTED]) == -torch.inf
        return (told[SELECTED] - count + gathers).clamp(min=0), missing

    queries._best = best
    graph = GRAPHS[True, False](copied, TABLE)

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            batch = TracedBatch(*(torch.from_numpy(value) for value in inputs.values()))
            found = graph.scored(batch)
        told_now = told if tells else {}
        return {name: value.numpy() for name, value in (found | told_now).items()}

    return run


def worst(run: Run, model: Any) -> Difference:
    found = differences(run, model, metadata(model), cases=CASES)
    return max(found, key=lambda difference: difference.largest)


def other_order(index: Tensor, scores: Tensor) -> Tensor:
    return index.flip(1)


def others_at_the_cut_off(index: Tensor, scores: Tensor) -> Tensor:
    """Of as many again, every second one."""
    return scores.topk(2 * index.shape[1], dim=1).indices[:, ::2]


def the_worst(index: Tensor, scores: Tensor) -> Tensor:
    return (
        scores.masked_fill(scores == -torch.inf, torch.inf)
        .topk(index.shape[1], dim=1, largest=False)
        .indices
    )


@pytest.mark.parametrize("kind", SELECTING)
def test_a_graph_that_does_the_same_has_no_difference(kind: str) -> None:
    model = selecting_model(kind)
    assert worst(graph_of(model), model).largest < 1e-5


@pytest.mark.parametrize("change", [other_order, others_at_the_cut_off])
@pytest.mark.parametrize("kind", SELECTING)
def test_tokens_that_are_scored_the_same_may_be_chosen_otherwise(kind: str, change: Change) -> None:
    model = selecting_model(kind)
    tie_all_tokens(model)
    assert worst(graph_of(model, change), model).largest < 1e-5
    assert worst(graph_of(model, change, tells=False), model).largest > 0.1


@pytest.mark.parametrize(
    ("change", "least"), [(other_order, 2e-4), (others_at_the_cut_off, 2e-4), (the_worst, 0.1)]
)
@pytest.mark.parametrize("kind", SELECTING)
def test_a_choice_that_is_not_of_the_best_is_a_difference(
    kind: str, change: Change, least: float
) -> None:
    model = selecting_model(kind)
    found = worst(graph_of(model, change), model)
    assert found.scores > least
    assert found.boxes < 1e-5


def test_a_wrong_choice_is_a_difference_where_nothing_is_likely() -> None:
    model = selecting_model("rt")
    with torch.no_grad():
        model.queries.heads.class_head.last.bias.fill_(-12.0)
    assert worst(graph_of(model, the_worst), model).scores > 0.1


def swap_levels_of_sampling(model: Any) -> None:
    offsets = model.decoder.layers[0].cross_attn.offsets
    with torch.no_grad():
        levels = offsets.weight.view(2, 2, 2, 2, -1)  # heads, levels, points, xy
        levels.copy_(levels.flip(1))
        levels = offsets.bias.view(2, 2, 2, 2)
        levels.copy_(levels.flip(1))


def shift_levels(model: Any) -> None:
    """Let the decoder find each level where another one begins."""

    def shift(decoder: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        queries, memory, *others = inputs
        height, width = memory.sizes_hw[0]
        return queries, memory.with_tokens(memory.tokens.roll(height * width, 1)), *others

    model.decoder.register_forward_pre_hook(shift)


def swap_weights_of_layers(model: Any) -> None:
    """Exchange the values of two decoder layers."""
    first, second = (layer.mlp.state_dict() for layer in model.decoder.layers)
    first = {key: value.clone() for key, value in first.items()}
    model.decoder.layers[0].mlp.load_state_dict(second)
    model.decoder.layers[1].mlp.load_state_dict(first)


def swap_weights_of_selection(model: Any) -> None:
    """Score tokens by each other's channels."""
    with torch.no_grad():
        last = model.queries.heads.class_head.last
        last.weight.copy_(last.weight.roll(1, 1))


def swap_sides_of_proposals(model: Any) -> None:
    with torch.no_grad():
        last = model.queries.heads.box_head.last
        last.weight.copy_(last.weight.roll(1, 0))


FAULTS = (
    swap_levels_of_sampling,
    shift_levels,
    swap_weights_of_layers,
    swap_weights_of_selection,
    swap_sides_of_proposals,
)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", SELECTING)
def test_what_is_wrong_with_a_graph_is_found(kind: str, fault: Callable[[Any], None]) -> None:
    model = selecting_model(kind)
    wrong = copy.deepcopy(model)
    fault(wrong)
    assert worst(graph_of(wrong), model).largest > 20 * FP32


@pytest.mark.parametrize("kind", SELECTING)
def test_other_tokens_than_those_chosen_are_found(kind: str) -> None:
    model = selecting_model(kind)
    assert worst(graph_of(model, gathers=1), model).largest > 100 * FP32


def test_the_model_selects_by_itself_again() -> None:
    model = selecting_model("rt")
    own = model.queries
    tokens = torch.arange(6, 12).expand(2, -1)
    with given_tokens(model, tokens) as given:
        assert model.queries is given
    assert model.queries is own
    assert not hasattr(own, "tokens")


def test_another_number_of_tokens_is_an_error() -> None:
    model = selecting_model("rt")

    def run(inputs: Arrays) -> Arrays:
        found = graph_of(model)(inputs)
        return found | {SELECTED: found[SELECTED][:, 1:]}

    with pytest.raises(DetrKitError, match=r"selects \(2, 5\) tokens, its model 6"):
        worst(run, model)


def test_a_graph_without_a_selection_cannot_tell_of_it() -> None:
    onnx = pytest.importorskip("onnx")
    with pytest.raises(DetrKitError, match="selects no tokens, but its model does"):
        telling_tokens(onnx.ModelProto())


def test_models_with_learned_queries_select_nothing() -> None:
    assert selects_tokens(selecting_model("rt"))
    assert not selects_tokens(selecting_model("deformable"))
    assert not selects_tokens(nn.Linear(1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "postprocess"), [("dino", False), ("rt", True)])
def test_programs_of_many_queries_pass_and_broken_ones_do_not(kind: str, postprocess: bool) -> None:
    model = selecting_model(kind, num_queries=100)
    wrong = copy.deepcopy(model)
    swap_levels_of_sampling(wrong)
    found = []
    for one in (model, wrong):
        program = export_program(one, TABLE, mask=True, postprocess=postprocess)
        run = program_run(program, selects=True)
        cases = differences(run, model, metadata(model, postprocess=postprocess), cases=CASES)
        found.append(max(case.largest for case in cases))
    assert found[0] < 1e-5
    assert found[1] > 100 * FP32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision", "postprocess"),
    [
        ("rt", "fp32", False),
        ("rt", "fp16", True),
        ("dino", "fp16", False),
    ],
)
def test_files_of_many_queries_pass(
    kind: str, precision: Any, postprocess: bool, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    from detr_kit.export.onnx_file import export_onnx

    model = selecting_model(kind, num_queries=300)
    detector = Detector(model, TABLE, PREPROCESSING, "cpu")
    report = export_onnx(
        detector, tmp_path / "a.onnx", precision=precision, postprocess=postprocess
    )
    limit = 1e-5 if precision == "fp32" else 0.05
    assert max(one.largest for one in report.differences) < limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "postprocess"), [(swap_levels_of_sampling, True), (swap_weights_of_selection, False)]
)
def test_broken_files_of_many_queries_are_refused(
    fault: Callable[[Any], None],
    postprocess: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxscript")
    from detr_kit.export import assembly
    from detr_kit.export.onnx_file import export_onnx

    right = assembly.core_graph

    def wrong(model: nn.Module, *others: Any) -> Any:
        copied = copy.deepcopy(model)
        fault(copied)
        return right(copied, *others)

    monkeypatch.setattr(assembly, "core_graph", wrong)
    detector = Detector(selecting_model("rt", num_queries=300), TABLE, PREPROCESSING, "cpu")
    with pytest.raises(DetrKitError, match="the exported graph differs from the model by"):
        export_onnx(detector, tmp_path / "a.onnx", postprocess=postprocess)
    assert list(tmp_path.iterdir()) == []
