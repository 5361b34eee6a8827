from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from detr_kit.models.compiled import MAX_VARIANTS, compile_model
from detr_kit.models.transformer import DecoderLayer, EncoderLayer
from detr_kit.structures import ImageBatch

pytestmark = [
    # Dynamo asks every input for its gradient, and hides the warning only where warnings are no
    # errors.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    # PyTorch 2.11's own compiler uses what it deprecates.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
]
Build = Callable[..., nn.Module]
Make = Callable[..., ImageBatch]
BATCHES = (
    ((64, 96), (50, 40)),
    ((96, 96), (96, 96)),
    ((64, 64),),
    ((128, 64), (96, 64), (33, 40)),
    ((48, 80), (80, 48)),
    ((112, 113), (112, 113)),
    ((65, 80),),
    ((70, 201), (90, 33), (20, 31), (90, 201)),
)
TOLERANCE = 2e-5  # relative to the largest gradient or output of a tensor


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


def assert_same(ours: nn.Module, plain: nn.Module, batch: ImageBatch, *, train: bool) -> None:
    results = []
    for model in (ours, plain):
        model.train(train)
        with torch.set_grad_enabled(train):
            output = model(batch, all_layers=True)
        tensors = {"logits": output.layer_logits, "boxes": output.layer_boxes_cxcywh}
        if train:
            model.zero_grad()
            (output.layer_logits.square().sum() + output.layer_boxes_cxcywh.sum()).backward()
            tensors |= {key: p.grad for key, p in model.named_parameters()}
        results.append(tensors)
    for key, mine in results[0].items():
        theirs = results[1][key]
        assert (mine - theirs).abs().max() <= TOLERANCE * (1 + theirs.abs().max()), key


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param(
            "detr_small", {"backbone": "plain", "encoder_layers": 3}, marks=pytest.mark.slow
        ),
        ("yolos_small", {}),
        ("yolos_small", {"patch_supervision": True}),
    ],
)
def test_compilations_are_few_whatever_the_sizes(
    monkeypatch: pytest.MonkeyPatch,
    build: Build,
    make_batch: Make,
    name: str,
    changes: dict[str, Any],
) -> None:
    # Tracing without generating code: it is what decides about compiling again.
    counter = CompileCounter()
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self, **options: compile_module(self, backend=counter, **options),
    )
    ours, plain = (build(name, dropout=0.0, **changes) for _ in range(2))
    compile_model(ours)
    seen = []
    for _ in range(2):
        for train in (True, False):
            for sizes in BATCHES:
                assert_same(ours, plain, make_batch(*sizes), train=train)
                seen.append(counter.frame_count)
    kinds = 2  # encoder and decoder layers, or blocks and the last block
    assert 2 <= seen[-1] <= kinds * MAX_VARIANTS
    # All has been compiled after a padded batch, an unpadded one and a single image.
    half = len(BATCHES)
    assert seen[2] == seen[half - 1]
    assert seen[half + 2] == seen[-1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
@pytest.mark.parametrize("name", ["detr_small", "yolos_small"])
def test_compiled_outputs_and_gradients_equal_the_plain_ones(
    build: Build, make_batch: Make, name: str
) -> None:
    changes = {"backbone": "plain"} if name == "detr_small" else {}
    ours, plain = (build(name, dropout=0.0, **changes) for _ in range(2))
    compile_model(ours)
    for train in (True, False):
        for sizes in BATCHES[:4]:
            assert_same(ours, plain, make_batch(*sizes), train=train)


def test_keys_stay_and_a_copy_is_not_compiled(build: Build) -> None:
    model = build("detr_small", backbone="plain")
    keys = list(model.state_dict())
    compile_model(model)
    assert list(model.state_dict()) == keys
    layers = [m for m in model.modules() if isinstance(m, (EncoderLayer, DecoderLayer))]
    assert len(layers) == 3
    assert all(layer._compiled_call_impl is not None for layer in layers)
    assert all(
        layer._compiled_call_impl is None
        for layer in copy.deepcopy(model).modules()
        if isinstance(layer, (EncoderLayer, DecoderLayer))
    )
