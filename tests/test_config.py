"""Configs: bases, overrides, and the one line that a mistake gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from detr_kit.config import RunConfig, dump_config, load_config, parse_config
from detr_kit.config_faults import known_keys, nearest_keys
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


@pytest.mark.parametrize(
    ("text", "overrides", "source"),
    [
        ("", ["epochs=0"], "override 'epochs=0': key 'epochs': "),
        ("", ["seed=1", "optimiser.lr=1"], "override 'optimiser.lr=1': unknown key 'optimiser'"),
        ("", ["model={name: x, depth: 0}"], "override 'model={name: x, depth: 0}': key 'model.d"),
        ("", ["image_size.mean=[1,2,x]"], "override 'image_size.mean=[1,2,x]': key 'image_size."),
        ("", ["epochs=0", "epochs=-1"], "override 'epochs=-1': key 'epochs': "),
        ("seed: -1\n", ["epochs=2", "model.depth=3"], "FILE: key 'seed': "),
        ("model: {depth: 0}\n", ["model.num_queries=2"], "FILE: key 'model.depth': "),
        # What is missing is nobody's.
        ("", ["data.train.images=i"], "FILE: key 'data.train.annotations' is missing"),
    ],
)
def test_a_wrong_override_is_named_in_the_place_of_the_file(
    tmp_path: Path, text: str, overrides: list[str], source: str
) -> None:
    (tmp_path / "base.yaml").write_text("epochs: 1\nmodel: {name: x}\n")
    path = tmp_path / "run.yaml"
    path.write_text("base: base.yaml\n" + text)
    with pytest.raises(DetrKitError) as caught:
        load_config(path, overrides)
    assert str(caught.value).startswith(source.replace("FILE", str(path)))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", ["optimizer.lr"]),
        ("clip", ["optimizer.clip"]),
        ("learning_rate", ["optimizer.lr"]),
        ("wd", ["optimizer.weight_decay"]),
        ("model.lr", ["optimizer.lr"]),
        ("decay", ["optimizer.decay", "average.decay"]),
        ("optimizer.lrr", ["optimizer.lr"]),
        ("optimiser", ["optimizer"]),
        ("image_size.short", ["image_size.short_side", "image_size.train_short_sides"]),
        ("workers", ["data.num_workers"]),
        ("augment", ["data.augmentation"]),
        ("model.weights", ["model.backbone_weights"]),
        ("model.pretrained", []),
        ("model.num_classes", []),
        ("device", []),
        ("n", []),
        ("image_size.size", []),  # there are too many
    ],
)
def test_an_unknown_key_is_taken_for_a_near_one_alone(key: str, meant: list[str]) -> None:
    assert nearest_keys(key, known_keys(RunConfig)) == meant
    values: dict[str, Any] = {"epochs": 1, "model": {"name": "x"}}
    section, _, name = key.rpartition(".")
    (values.setdefault(section, {}) if section else values)[name] = 1
    with pytest.raises(DetrKitError) as caught:
        parse_config(values, "run.yaml")
    hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else ""
    assert str(caught.value) == f"run.yaml: unknown key {key!r}{hint}"
