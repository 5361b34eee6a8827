"""Starting a run from a detector of another kind: what is taken over, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from detr_kit.checkpoints.official import official_tensors
from detr_kit.config import ModelConfig, RunConfig
from detr_kit.models.zoo import build_model, resolve
from detr_kit.training.run import train
from detr_kit.training.startup import initial_architecture, open_initial

SMALL = {
    "name": "detr_small",
    "backbone_norm": "frozen",
    "hidden_dim": 32,
    "num_heads": 2,
    "feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_queries": 6,
    "pre_norm": False,
}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Weights of an official DETR with 91 columns, as its training leaves them."""
    torch.manual_seed(3)
    numbers = resolve(ModelConfig(**SMALL))
    weights, _ = official_tensors(build_model(numbers, 91).state_dict(), numbers)
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": weights, "args": {"nheads": 2, "dilation": False}}, path)
    return path


def changed_model(config: RunConfig, **changes: Any) -> RunConfig:
    model = ModelConfig(**{**SMALL, "backbone_norm": None, **changes})
    return config.model_copy(update={"model": model})


@pytest.mark.parametrize(
    ("changes", "norm", "frozen"),
    [
        ({}, "frozen", 2),
        ({"frozen_stages": 0}, "frozen", 0),
        ({"backbone_norm": "batch"}, "batch", 0),
    ],
)
def test_norms_and_frozen_stages_come_with_the_detector(
    tiny_config: Callable[..., RunConfig],
    sample: Path,
    tmp_path: Path,
    official: Path,
    changes: dict[str, object],
    norm: str,
    frozen: int,
) -> None:
    config = changed_model(
        tiny_config(sample, tmp_path / "run"), init_from=str(official), **changes
    )
    architecture = initial_architecture(config, open_initial(config))
    assert (architecture["backbone_norm"], architecture["frozen_stages"]) == (norm, frozen)


def test_a_run_starts_from_official_weights_and_says_what_it_kept(
    tiny_config: Callable[..., RunConfig],
    sample: Path,
    tmp_path: Path,
    official: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = changed_model(
        tiny_config(
            sample, tmp_path / "run", epochs=1, optimizer={"lr": 1e-12, "lr_backbone": 1e-12}
        ),
        init_from=str(official),
        num_queries=8,
    )
    run = train(config)
    told = " ".join(capsys.readouterr().out.split())
    assert "3 loaded in part" in told
    assert "classes: 0 of 4 kept by name, new: circle" in told
    assert "queries: the first 6 of 6 kept, 2 new" in told
    source = torch.load(official, weights_only=True)["model"]
    trained = load_file(run.last / "model.safetensors")
    torch.testing.assert_close(
        trained["encoder.layers.0.attn.qkv.weight"],
        source["transformer.encoder.layers.0.self_attn.in_proj_weight"],
        atol=1e-6,
        rtol=0,
    )
    torch.testing.assert_close(
        trained["queries.weight"][:6], source["query_embed.weight"], atol=1e-6, rtol=0
    )
