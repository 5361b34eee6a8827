"""Configs: bases, overrides, and the one line that a mistake gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from detr_kit.config import dump_config, load_config, parse_config
from detr_kit.errors import DetrKitError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_says_how_to_run_it(path: Path) -> None:
    config = load_config(path)
    assert parse_config(yaml.safe_load(dump_config(config)), "dumped") == config
    header = path.read_text().split("\noutput:")[0]
    assert f"configs/{path.name}" in header


def test_bases_are_merged_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "low.yaml").write_text("epochs: 3\nmodel: {name: detr_r50, num_queries: 7}\n")
    (tmp_path / "top/run.yaml").write_text("base: ../low.yaml\nmodel: {num_queries: 9}\n")
    config = load_config(tmp_path / "top/run.yaml", ["model.hidden_dim=64", "epochs=5"])
    assert (config.epochs, config.model.name, config.model.num_queries) == (5, "detr_r50", 9)
    assert config.model.hidden_dim == 64


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("epochs: 1\nmodel: {name: x}\n", ["optimiser.lr=1"], "'optimiser'; did you mean 'optimi"),
        ("epochs: 1\nmodel: {name: x, query: 3}\n", [], r"unknown key 'model\.query'"),
        ("epochs: 1\nmodel: {name: x}\n", ["epochs"], "expected key=value"),
        ("epochs: 0\nmodel: {name: x}\n", [], "key 'epochs'"),
        ("epochs: many\nmodel: {name: x}\n", [], "key 'epochs'"),
        (
            "epochs: 1\nmodel: {name: x}\n",
            ["batch_size=Auto"],
            "'batch_size': must be a number, or",
        ),
        ("epochs: 1\nmodel: {name: x}\n", ["batch_size=0"], "key 'batch_size'"),
        ("model: {name: x}\n", [], "key 'epochs' is missing"),
        ("epochs: 1\nmodel: {name: x}\n", ["data.train.images=i"], r"data\.train\.annotations"),
        ("epochs: [1\n", [], "not a readable YAML file"),
        ("- 1\n", [], "expected a mapping"),
        ("base: run.yaml\n", [], "leads back to itself"),
        ("base: gone.yaml\n", [], r"gone\.yaml: no such config file"),
        ("epochs: ${nowhere}\nmodel: {name: x}\n", [], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(DetrKitError, match=message) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
