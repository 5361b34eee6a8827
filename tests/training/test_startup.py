"""Starting a run from a detector of another kind: what is taken over, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.official_keys import DETR_KEYS
from detr_kit.config import ModelConfig, RunConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import build_model, resolve
from detr_kit.training.run import resume, train
from detr_kit.training.startup import initial_architecture, initial_model, open_initial

TABLE = CategoryTable((1,), ("circle",))
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
    weights = DETR_KEYS.to_theirs(build_model(numbers, 91).state_dict())
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
        ({"backbone_norm": "batch"}, "batch", 2),
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


def test_a_detector_that_is_not_whole_starts_no_run(
    tiny_config: Callable[..., RunConfig], sample: Path, tmp_path: Path, official: Path
) -> None:
    content = torch.load(official, weights_only=True)
    del content["model"]["transformer.decoder.layers.0.norm2.bias"]
    torch.save(content, official)
    config = changed_model(tiny_config(sample, tmp_path / "run"), init_from=str(official))
    with pytest.raises(DetrKitError, match=r"missing: transformer\.decoder\..*norm2\.bias"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "yolos_small"}, "its family is detr, but the configured model's is yolos"),
        ({**SMALL, "backbone": "resnet34"}, "its backbone is resnet18, but .* is resnet34"),
    ],
)
def test_another_kind_of_detector_is_named(
    tiny_config: Callable[..., RunConfig],
    sample: Path,
    tmp_path: Path,
    official: Path,
    changes: dict[str, object],
    told: str,
) -> None:
    config = tiny_config(sample, tmp_path / "run")
    model = ModelConfig(**{"init_from": str(official), **changes})
    with pytest.raises(DetrKitError, match=f"checkpoint.pth: {told}"):
        train(config.model_copy(update={"model": model}))


def test_another_normalisation_is_warned_of(
    tiny_config: Callable[..., RunConfig], sample: Path, tmp_path: Path, official: Path
) -> None:
    config = changed_model(tiny_config(sample, tmp_path / "run"), init_from=str(official))
    size = config.image_size.model_copy(update={"std": (0.5, 0.5, 0.5)})
    start = initial_model(config.model_copy(update={"image_size": size}), TABLE)
    assert start.weights[-1].startswith("warning: image_size.std is (0.5, 0.5, 0.5) here and (0.2")
    assert start.architecture["backbone_weights"] is None
    assert not any("image_size" in line for line in initial_model(config, TABLE).weights)


def test_a_resumed_run_needs_its_source_no_more(
    tiny_config: Callable[..., RunConfig],
    sample: Path,
    tmp_path: Path,
    official: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(sample, tmp_path / "run", epochs=2)
    train(changed_model(config, init_from=str(official)), stop_after_epoch=1)
    official.unlink()
    capsys.readouterr()
    resume(tmp_path / "run")
    told = " ".join(capsys.readouterr().out.split())
    assert "trained, started from" in told
    assert "random" not in told
