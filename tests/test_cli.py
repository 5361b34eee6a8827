"""The commands, as a person types them: what they print, and one clear line for each mistake."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.cli import main
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD, parse_config
from detr_kit.data.sample import write_sample
from detr_kit.inference.info import count_gflops
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing, SizeRule

CONFIG = """
epochs: 1
batch_size: 4
model: {name: yolos_small, hidden_dim: 16, num_heads: 1, feedforward_dim: 16, depth: 1,
        num_queries: 4, position_size_hw: [32, 32]}
data:
  num_workers: 0
  augmentation: none
  train: {annotations: sample/annotations/train.json, images: sample/train}
  val: {annotations: sample/annotations/val.json, images: sample/val}
image_size: {rule: square, short_side: 32}
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a data set, a config and the checkpoint of a random YOLOS."""
    write_sample(tmp_path / "sample", "easy", train=4, val=2)
    (tmp_path / "run.yaml").write_text(CONFIG)
    coco = json.loads((tmp_path / "sample/annotations/val.json").read_text())
    torch.manual_seed(0)
    numbers = resolve(parse_config({"epochs": 1, "model": _model()}, "test").model)
    spec = DetectorSpec(
        numbers,
        CategoryTable.from_coco(coco["categories"]),
        Preprocessing(SizeRule("square", 32, 32), IMAGENET_MEAN, IMAGENET_STD),
    )
    save_detector(tmp_path / "detector", build_model(numbers, len(spec.categories)), spec)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _model() -> dict[str, object]:
    return {
        "name": "yolos_small",
        "hidden_dim": 16,
        "num_heads": 1,
        "feedforward_dim": 16,
        "depth": 1,
        "num_queries": 4,
        "position_size_hw": [32, 32],
    }


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command; return exit status, standard output and standard error."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["detr-kit", *arguments])
        code: int | str | None = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return code, out, err

    return command


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
        code, out, _ = run("info", source, "--size", "32", "32")
        assert code == 0
        assert "parameters" in out
    # By hand for the YOLOS of run.yaml: 16 values at 32 x 32, 4 patches, 4 + 1 other tokens.
    tokens, dim = 4 + 5, 16
    patches = 4 * 3 * 16 * 16 * dim
    block = tokens * (4 * dim * dim + 2 * dim * dim) + 2 * tokens * tokens * dim
    heads = 4 * (4 * dim * dim + dim * 5 + dim * 4)
    model = build_model(resolve(parse_config({"epochs": 1, "model": _model()}, "t").model), 4)
    assert count_gflops(model, (32, 32)) * 1e9 == patches + block + heads


def test_info_of_a_detr(run) -> None:  # type: ignore[no-untyped-def]
    recipe = Path(__file__).parents[1] / "configs" / "detr_r50.yaml"
    code, out, _ = run("info", str(recipe), "--size", "64", "64")
    assert code == 0
    assert "41.525M" in out
    assert "GFLOPs" in out


def test_sample_refuses_a_folder_in_use(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("sample", "sample")
    assert code == 1
    assert err.count("\n") == 1


def _drop_category(coco: dict) -> None:  # type: ignore[type-arg]
    used = coco["annotations"][0]["category_id"]
    coco["categories"] = [c for c in coco["categories"] if c["id"] != used]


def _change_json(change: Callable[[dict], object]) -> Callable[[], None]:  # type: ignore[type-arg]
    def prepare() -> None:
        path = Path("sample/annotations/train.json")
        coco = json.loads(path.read_text())
        change(coco)
        path.write_text(json.dumps(coco))

    return prepare


def _break_picture() -> None:
    for path in Path("sample/train").iterdir():
        path.write_bytes(path.read_bytes()[:100])


def _nothing() -> None:
    pass


TRAIN = ("train", "run.yaml", "output=new")
EVAL = ("--annotations", "sample/annotations/val.json", "--images", "sample/val")
MISTAKES = {
    "unknown key": (_nothing, (*TRAIN, "optimizer.lrr=1"), ("lrr", "did you mean 'optimizer.lr'")),
    "no such config": (_nothing, ("train", "none.yaml"), ("none.yaml", "no such config file")),
    "no such image folder": (_nothing, (*TRAIN, "data.train.images=gone"), ("gone",)),
    "no such json": (_nothing, (*TRAIN, "data.train.annotations=gone.json"), ("gone.json",)),
    "unknown category": (_change_json(_drop_category), TRAIN, ("train.json", "annotation", "cat")),
    "not COCO": (
        lambda: Path("sample/annotations/train.json").write_text("[]"),
        TRAIN,
        ("train.json", "not a COCO"),
    ),
    "broken picture": (_break_picture, TRAIN, ("sample/train/",)),
    "empty training set": (
        _change_json(lambda coco: coco["annotations"].clear()),
        TRAIN,
        ("train.json", "no objects"),
    ),
    "unknown model": (_nothing, (*TRAIN, "model.name=detr_r51"), ("detr_r51", "detr_r50")),
    "setting of the other family": (_nothing, (*TRAIN, "model.dilation=true"), ("dilation",)),
    "checkpoint of other shapes": (
        lambda: _replace_number("hidden_dim", 32),
        ("eval", "detector", *EVAL),
        ("detector", "shape"),
    ),
    "no such checkpoint": (_nothing, ("eval", "gone", *EVAL), ("gone",)),
    "fine-tuning from other shapes": (
        _nothing,
        (*TRAIN, "model.init_from=detector", "model.hidden_dim=32"),
        ("detector", "shapes"),
    ),
    "no picture to predict": (_nothing, ("predict", "detector", "gone.jpg"), ("gone.jpg",)),
    "nothing to resume": (_nothing, ("resume", "gone"), ("gone",)),
}


def _replace_number(name: str, value: int) -> None:
    path = Path("detector/detector.json")
    values = json.loads(path.read_text())
    values["architecture"][name] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(workplace: Path, run, mistake: str) -> None:  # type: ignore[no-untyped-def]
    prepare, arguments, named = MISTAKES[mistake]
    prepare()
    code, _, err = run(*arguments)
    assert code == 1
    assert err.count("\n") == 1, err
    assert err.startswith("detr-kit: ")
    for text in named:
        assert text in err
    if mistake != "broken picture":  # which is met after the run has begun
        assert not Path("new").exists()
    assert not list(Path().rglob("*.tmp*"))


def test_debug_shows_the_traceback(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detr_kit.errors import DetrKitError

    monkeypatch.setattr(sys, "argv", ["detr-kit", "train", "none.yaml", "--debug"])
    with pytest.raises(DetrKitError, match="no such config file"):
        main()


def test_interrupted_first_epoch_can_be_started_again(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    pictures = Path("sample/train")
    shutil.copytree(pictures, "kept")
    _break_picture()
    assert run(*TRAIN)[0] == 1
    shutil.rmtree(pictures)
    Path("kept").rename(pictures)
    assert run(*TRAIN)[0] == 0
