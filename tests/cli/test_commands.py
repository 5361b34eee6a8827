"""The commands, as a person types them: what they print and write."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detr_kit.checkpoints.detector import read_spec
from detr_kit.checkpoints.official_keys import DETR_KEYS
from detr_kit.cli import main
from detr_kit.config import ModelConfig, load_config
from detr_kit.inference.info import count_gflops
from detr_kit.models.zoo import build_model, resolve


def test_train_evaluate_predict(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("train", "run.yaml", "output=runs/first")
    assert code == 0
    assert "epoch 1" in out
    code, out, _ = run(
        "eval", "runs/first", "--annotations", "sample/annotations/val.json",
        "--images", "sample/val", "--json", "figures.json", "--results", "results.json",
    )  # fmt: skip
    assert code == 0
    assert "AP50" in out
    figures = json.loads(Path("figures.json").read_text())
    code, out, _ = run(
        "score", "results.json", "--annotations", "sample/annotations/val.json",
        "--json", "again.json",
    )  # fmt: skip
    assert code == 0
    again = json.loads(Path("again.json").read_text())
    assert figures["num_detections"] == 8
    assert {**again, "seconds": 0} == {**figures, "seconds": 0}
    code, out, _ = run(
        "predict", "runs/first", "sample/val", "--out", "drawn", "--json", "found.json",
        "--threshold", "0",
    )  # fmt: skip
    assert code == 0
    assert "2 pictures, 8 objects" in out
    assert len(list(Path("drawn").iterdir())) == 2
    assert len(json.loads(Path("found.json").read_text())) == 8


def test_predict_without_an_output_prints_what_it_found(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("predict", "detector", "sample/val", "--threshold", "1")
    assert code == 0
    assert out.count("nothing found") == 2


def test_info_of_config_and_checkpoint(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    for source in ("run.yaml", "detector"):
        code, out, _ = run("info", source)
        assert code == 0
        assert "parameters" in out
        assert "at 32 x 32, which a picture of 480 x 640 is resized to; a" in unwrapped(out)
        assert "pictures size rule square, 32, " in unwrapped(out)
        numbers = [line.split() for line in out.split("numbers")[1].splitlines()]
        assert ["num_queries", "4"] in numbers  # one a line
        assert ["scoring", "softmax"] in numbers
        code, out, _ = run("info", source, "--size", "64", "48")
        assert code == 0
        assert "at 64 x 48; a multiplication and its addition count as one" in unwrapped(out)
    # By hand for the YOLOS of run.yaml: 16 values at 32 x 32, 4 patches, 4 + 1 other tokens. Its
    # only block is the last one: all tokens give keys and values, the 4 of detections the rest.
    tokens, dim = 4 + 5, 16
    patches = 4 * 3 * 16 * 16 * dim
    block = tokens * 2 * dim * dim + 4 * (2 * dim * dim + 2 * dim * dim) + 2 * 4 * tokens * dim
    heads = 4 * (4 * dim * dim + dim * 5 + dim * 4)
    model = build_model(resolve(load_config("run.yaml").model), 4)
    assert count_gflops(model, (32, 32)) * 1e9 == patches + block + heads


def test_info_of_a_changed_config(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(
        "info", "run.yaml", "model.num_queries=7", "image_size.rule=fit", "image_size.short_side=64"
    )
    assert code == 0
    assert "num_queries 7" in unwrapped(out)
    assert "at 48 x 64, which a picture of 480 x 640 is resized to" in unwrapped(out)
    assert "weights random initialisation" in unwrapped(out)
    code, out, _ = run("info", "run.yaml", "model.init_from=detector")
    assert "weights those of detector" in unwrapped(out)


def test_products_of_every_size_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones take another way on CPUs; without it, the counter knows all by itself."""
    small = {"hidden_dim": 128, "num_heads": 2, "depth": 2, "num_queries": 10}
    numbers = resolve(ModelConfig(name="yolos_small", feedforward_dim=512, **small))
    model = build_model(numbers, 4)
    counted = count_gflops(model, (512, 512))
    monkeypatch.setattr("detr_kit.models.linear.onednn_product", None)
    assert count_gflops(model, (512, 512)) == counted


def test_info_of_a_detr(run) -> None:  # type: ignore[no-untyped-def]
    recipe = Path(__file__).parents[2] / "configs" / "detr_r50.yaml"
    code, out, _ = run("info", str(recipe), "--size", "64", "64")
    assert code == 0
    assert "41.525M" in out
    assert "GFLOPs" in out


# What the file of a model with these numbers does not tell.
def test_convert_to_every_form_and_back(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("convert", "detector", "detector_hf", "--to", "huggingface")
    assert code == 0
    assert "detector: detr_kit" in out
    assert "4 class columns, 4 used" in out
    assert "category ids become the numbers of their columns" in out
    assert out.splitlines()[-1] == "written to detector_hf"
    code, out, _ = run("convert", "detector_hf", "official/w.pth", "--to", "official")
    assert code == 0
    assert "detector_hf: Hugging Face YOLOS" in out
    assert "category names and ids are not in such a file" in out
    code, out, _ = run("convert", "official/w.pth", "again")
    assert code == 0
    assert "official/w.pth: official YOLOS" in out
    assert "categories class_0 to class_3: the file does not name them" in out
    found = load_file("again/model.safetensors")
    for key, tensor in load_file("detector/model.safetensors").items():
        assert torch.equal(found[key], tensor)
    assert sorted(path.name for path in Path().iterdir() if "." in path.name) == ["run.yaml"]


def test_converted_folders_are_used_like_any_other(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    assert run("convert", "detector", "hf", "--to", "huggingface")[0] == 0
    (workplace / "hf/preprocessor_config.json").unlink()
    code, out, _ = run("info", "hf", "--size", "32", "32")
    assert code == 0
    assert "no preprocessor_config.json: the yolos processor's defaults are used" in unwrapped(out)
    code, out, _ = run("predict", "hf", "sample/val", "--threshold", "0", "--json", "found.json")
    assert code == 0
    assert "2 pictures, 8 objects" in out
    assert {one["category_id"] for one in json.loads(Path("found.json").read_text())} <= set(
        range(4)
    )


def unwrapped(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def official(workplace: Path) -> str:
    """The name of a training checkpoint of the official code, of a small DETR."""
    torch.manual_seed(0)
    small = {"encoder_layers": 1, "decoder_layers": 1, "hidden_dim": 16, "num_heads": 2}
    numbers = resolve(ModelConfig(name="detr_small", feedforward_dim=16, num_queries=4, **small))
    weights = DETR_KEYS.to_theirs(build_model(numbers, 91).state_dict())
    args = argparse.Namespace(nheads=2, dilation=False, lr=1e-4, output_dir="")
    torch.save({"model": weights, "epoch": 3, "args": args}, "detr.pth")
    return "detr.pth"


def test_official_weights_are_used_as_they_are(workplace: Path, run, official: str) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("info", official, "--size", "64", "64")
    assert code == 0
    assert "80: person, bicycle, car" in unwrapped(out)
    assert "size rule detr, 800, 1333" in unwrapped(out)
    shutil.copy("sample/val/" + sorted(os.listdir("sample/val"))[0], "one.png")
    code, out, _ = run("predict", official, "one.png", "--threshold", "0", "--json", "found.json")
    assert code == 0
    assert "1 picture, 4 objects" in out


def test_annotations_name_the_columns_of_official_weights(  # type: ignore[no-untyped-def]
    workplace: Path, run, official: str
) -> None:
    annotations = "sample/annotations/val.json"
    code, out, _ = run("convert", official, "named", "--annotations", annotations)
    assert code == 0
    assert "91 class columns, 4 used" in out
    categories = json.loads(Path(annotations).read_text())["categories"]
    table = read_spec("named").categories
    assert [table.names[column] for column in table.column_of.values()] == [
        category["name"] for category in categories
    ]
    assert list(table.column_of) == [category["id"] for category in categories]
    code, _, err = run("convert", official, "new", "--to", "other")
    assert code == 2
    assert "huggingface" in err


def test_sample_refuses_a_folder_in_use(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("sample", "sample")
    assert code == 1
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detr_kit.errors import DetrKitError

    monkeypatch.setattr(sys, "argv", ["detr-kit", "train", "none.yaml", "--debug"])
    with pytest.raises(DetrKitError, match="no such config file"):
        main()
