from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError
from detr_kit.export.graphs import GRAPHS
from detr_kit.export.program import export_program, save_program
from detr_kit.models.attention import Attention
from detr_kit.models.folding import FoldedConv2d
from detr_kit.models.tracing import traceable_copy
from detr_kit.postprocess import to_detections
from detr_kit.structures import ImageBatch
from tests.export.small_models import MODELS, TABLE, batch_of, expected_scores, small_model

# None of them are those of the example that is traced.
EQUAL_SIZES = (
    ((64, 64),),
    ((97, 141), (97, 141)),
    ((60, 120),) * 3,
    ((128, 96),),
    ((33, 290),),
    ((31, 17),),
)
MIXED_SIZES = (
    ((97, 141), (160, 120), (131, 103), (24, 31)),
    ((64, 96), (96, 64)),
    ((32, 290), (64, 33)),
)


def needs_timm(kind: str) -> None:
    if str(MODELS[kind][1].get("backbone")).startswith("timm/"):
        pytest.importorskip("timm")


@cache
def exported(kind: str, mask: bool, postprocess: bool = False) -> tuple[nn.Module, ExportedProgram]:
    """Each of them takes seconds: tests share them."""
    model = small_model(kind)
    return model, export_program(model, TABLE, mask=mask, postprocess=postprocess)


def inputs_of(batch: ImageBatch, mask: bool) -> list[Tensor]:
    return [batch.pixels, batch.padding_mask] if mask else [batch.pixels]


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert list(got) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(got[name], values, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", MODELS)
def test_a_graph_finds_what_the_model_does(kind: str) -> None:
    """Run as it is, without being traced, in the order of operations that is."""
    needs_timm(kind)
    model = small_model(kind)
    for mask in (False, True):
        if kind == "squeeze" and mask:
            continue
        graph = GRAPHS[mask, False](traceable_copy(model, mask=mask), TABLE)
        for sizes in MIXED_SIZES[::2] if mask else EQUAL_SIZES[4:]:
            batch = batch_of(*sizes)
            found = graph(*inputs_of(batch, mask))
            assert_same(found, expected_scores(model, batch), 1e-9)


@pytest.mark.parametrize(
    ("kind", "mask"),
    [
        ("detr", True),
        ("learned", True),
        ("lite0", True),
        ("yolos", True),
        ("yolos", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("detr", False),
                ("group", True),
                ("dc5", True),
                ("lite0_batch", False),
                ("squeeze", False),
                ("official", True),
                ("yolos_official", True),
            )
        ),
    ],
)
def test_a_program_takes_any_number_and_size_of_pictures(kind: str, mask: bool) -> None:
    needs_timm(kind)
    model, program = exported(kind, mask)
    run = program.module()
    for sizes in EQUAL_SIZES + MIXED_SIZES * mask:
        batch = batch_of(*sizes)
        found = run(*inputs_of(batch, mask))
        assert_same(found, expected_scores(model, batch), 1e-9)


@pytest.mark.parametrize("kind", ["detr", "yolos"])
def test_what_a_program_finds_does_not_depend_on_padding(kind: str) -> None:
    _, program = exported(kind, True)
    run = program.module()
    batch = batch_of(*MIXED_SIZES[0])
    together = run(batch.pixels, batch.padding_mask)
    for row, (height, width) in enumerate(batch.sizes_hw):
        alone = batch.pixels[row : row + 1, :, :height, :width]
        found = run(alone, torch.zeros(1, height, width, dtype=torch.bool))
        assert_same({k: v[row : row + 1] for k, v in together.items()}, found, 1e-9)


def test_pixels_may_be_channels_last() -> None:
    model, program = exported("detr", True)
    batch = batch_of((97, 141), (60, 120))
    pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
    found = program.module()(pixels, batch.padding_mask)
    assert_same(found, expected_scores(model, batch), 1e-9)


@pytest.mark.parametrize("mask", [False, True])
def test_detections_are_those_of_the_post_processing(mask: bool) -> None:
    if mask:
        model = small_model("yolos")
        run: nn.Module = GRAPHS[True, True](traceable_copy(model, mask=True), TABLE)
    else:
        model, program = exported("plain", False, postprocess=True)
        run = program.module()
    originals = ((480, 640), (333, 500))
    batch = batch_of((97, 141), (60, 120) if mask else (97, 141))
    found = run(*inputs_of(batch, mask), torch.tensor(originals))
    assert list(found) == ["boxes_xyxy", "scores", "category_ids"]
    with torch.no_grad():
        expected = to_detections(model(batch), originals, TABLE)
    for row, detections in enumerate(expected):
        assert found["category_ids"][row].tolist() == detections.category_ids.tolist()
        for name in ("scores", "boxes_xyxy"):
            wanted = torch.from_numpy(getattr(detections, name))
            torch.testing.assert_close(found[name][row].float(), wanted, rtol=1e-6, atol=0)


def test_equal_scores_stay_in_order_and_unused_columns_never_win() -> None:
    model = small_model("plain")
    last = model.heads.class_head.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 9.0, 1.0, 0.5, 0.0, 2.0]))
    batch = batch_of((40, 50))
    sizes_hw = torch.tensor([[40, 50]])
    graph = GRAPHS[False, True](traceable_copy(model, mask=False), TABLE)
    found = graph(batch.pixels, sizes_hw)
    assert found["category_ids"].unique().tolist() == [7]
    boxes_cxcywh = expected_scores(model, batch)["boxes_cxcywh"]
    centers = (found["boxes_xyxy"][..., :2] + found["boxes_xyxy"][..., 2:]) / 2
    torch.testing.assert_close(centers, boxes_cxcywh[..., :2] * sizes_hw.flip(1))
    with_scores = GRAPHS[False, False](traceable_copy(model, mask=False), TABLE)
    assert not with_scores(batch.pixels)["scores"][..., 1].any()


@pytest.mark.slow
def test_a_saved_program_runs_without_this_library(tmp_path: Path) -> None:
    model, program = exported("yolos", True)
    save_program(program, tmp_path / "deep" / "yolos.pt2")
    batch = batch_of((97, 141), (60, 80))
    torch.save((batch.pixels, batch.padding_mask), tmp_path / "inputs.pt")
    code = (
        "import sys, torch; sys.modules['detr_kit'] = None; "
        "run = torch.export.load('deep/yolos.pt2').module(); "
        "torch.save(run(*torch.load('inputs.pt')), 'found.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert_same(torch.load(tmp_path / "found.pt"), expected_scores(model, batch), 1e-9)


@pytest.mark.parametrize("kind", ["detr", "yolos"])
def test_the_model_stays_as_it_is(kind: str) -> None:
    model = small_model(kind, frozen_stages=1).train()
    model.heads.requires_grad_(False)
    seen: list[Tensor] = []
    for part in model.modules():
        if isinstance(part, Attention):
            part.observer = seen.append
    batch = batch_of((64, 96), (96, 64))
    before = expected_scores(model.eval(), batch)
    model.train()
    state = copy.deepcopy(model.state_dict())
    trained = [name for name, part in model.named_parameters() if part.requires_grad]
    kinds = [type(part) for part in model.modules()]
    hooks = [len(part._forward_pre_hooks) for part in model.modules()]
    seen.clear()
    graph = GRAPHS[True, False](traceable_copy(model, mask=True), TABLE)
    graph(batch.pixels, batch.padding_mask)
    assert not seen
    assert all(part.training for part in (model, model.heads))
    assert trained == [name for name, part in model.named_parameters() if part.requires_grad]
    assert kinds == [type(part) for part in model.modules()]
    assert hooks == [len(part._forward_pre_hooks) for part in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert_same(expected_scores(model.eval(), batch), before, 0)
    assert seen


def test_frozen_norms_leave_nothing_but_convolutions() -> None:
    model, program = exported("detr", True)
    assert any(isinstance(part, FoldedConv2d) for part in model.modules())
    assert not [name for name in program.state_dict if "running" in name]
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    # Only their shifts, as biases of the convolutions, are more than the model's parameters.
    count = sum(value.numel() for value in program.state_dict.values() if value.ndim > 1)
    assert count == sum(value.numel() for value in model.parameters() if value.ndim > 1)


class DataTypes(TorchDispatchMode):
    """Notes the types of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


@pytest.mark.parametrize("kind", ["detr", "yolos"])
def test_nothing_is_computed_in_double_precision(kind: str) -> None:
    model = traceable_copy(small_model(kind, torch.float32), mask=True)
    batch = batch_of((60, 120), (97, 50), dtype=torch.float32)
    with DataTypes() as types, torch.no_grad():
        GRAPHS[True, True](model, TABLE)(batch.pixels, batch.padding_mask, torch.ones(2, 2).long())
    assert types.seen == {torch.float32, torch.int64, torch.bool}


def test_sizes_out_of_range_are_refused() -> None:
    learned, yolos = (exported(kind, True)[1].module() for kind in ("learned", "yolos"))

    def run(program: nn.Module, *size: int) -> None:
        pixels = torch.zeros(1, 3, *size, dtype=torch.float64)
        program(pixels, torch.zeros(1, *size, dtype=torch.bool))

    side = 16 * 50  # the stride times the rows of the table
    run(learned, 16, side)
    run(yolos, 16, 64)
    for program, size in ((learned, (16, side + 1)), (yolos, (15, 64))):
        with pytest.raises((AssertionError, RuntimeError), match=r"size\(\)\[[23]\]|shape\[[23]\]"):
            run(program, *size)


def test_what_cannot_be_exported_is_named() -> None:
    with pytest.raises(DetrKitError, match="a Linear cannot be exported"):
        export_program(nn.Linear(2, 2), TABLE)
    with pytest.raises(DetrKitError, match="6 columns, but 1 categories"):
        export_program(small_model("plain"), CategoryTable((1,), ("cat",)))
    with pytest.raises(DetrKitError, match=r"yolos\.pt: a program's file ends in \.pt2"):
        save_program(exported("yolos", True)[1], "yolos.pt")


def test_timm_networks_that_cannot_be_exported_are_named() -> None:
    pytest.importorskip("timm")
    with pytest.raises(DetrKitError, match="without a padding mask only"):
        export_program(small_model("squeeze"), TABLE)
    with pytest.raises(DetrKitError, match='padding "independent" can'):
        export_program(small_model("lite0", padding="official"), TABLE, mask=False)
    with pytest.raises(DetrKitError, match="hgnetv2_b0 cannot be exported for pictures of any"):
        export_program(small_model("lite0", backbone="timm/hgnetv2_b0"), TABLE)


def test_a_pooling_that_rounds_up_is_not_taken_to_hold_for_every_size() -> None:
    """Whether its last window starts inside the picture depends on the size."""
    model = small_model("detr")
    model.backbone.body.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    with pytest.raises(Exception, match="Constraints violated"):
        export_program(model, TABLE, mask=False)
