"""One clear line for each mistake, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


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


def _exported() -> None:
    Path("x.onnx").write_bytes(b"")


def _nothing() -> None:
    pass


class _Asks:
    """Asks, when it is unpickled, to run a command that makes the folder `new`."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("mkdir new",)


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
    "missing picture": (
        lambda: Path("sample/val/000002.jpg").unlink(),
        TRAIN,
        ("sample/val/000002.jpg: no such image file (1 of the 2 images of", "on_bad_image=skip"),
    ),
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
    "an exported file": (_exported, ("info", "x.onnx"), ("x.onnx: an exported file; give the",)),
    "a checkpoint with a config's value": (
        _nothing,
        ("info", "detector", "model.num_queries=7"),
        ("detector: only a config (.yaml) takes key=value, and this is none: 'model.num_q",),
    ),
    "a loss that does not fit, asked about": (
        _nothing,
        ("info", "run.yaml", "loss.classification=focal"),
        ("loss.classification 'focal' needs model.scoring 'sigmoid'",),
    ),
    "an unknown key, asked about": (
        _nothing,
        ("info", "run.yaml", "model.num_querys=7"),
        (
            "override 'model.num_querys=7': unknown key 'model.num_querys'",
            "did you mean 'model.num_queries'",
        ),
    ),
    "no picture to predict": (_nothing, ("predict", "detector", "gone.jpg"), ("gone.jpg",)),
    "conversion of nothing": (_nothing, ("convert", "gone", "new"), ("gone", "does not exist")),
    "conversion onto a folder": (
        _nothing,
        ("convert", "detector", "sample"),
        ("sample: it exists",),
    ),
    "conversion to a file of another name": (
        _nothing,
        ("convert", "detector", "new", "--to", "official"),
        ("new: official weights are one file; give a name in .pth",),
    ),
    "conversion with a setting of the other family": (
        _nothing,
        ("convert", "detector", "new", "dilation=true"),
        ("detector: a YOLOS has no setting 'dilation'",),
    ),
    "conversion with half a setting": (
        _nothing,
        ("convert", "detector", "new", "num_heads"),
        ("'num_heads': expected key=value",),
    ),
    "conversion with names that are known": (
        _nothing,
        ("convert", "detector", "new", "--annotations", "sample/annotations/val.json"),
        ("detector: it names its categories itself",),
    ),
    "conversion with annotations that are gone": (
        _nothing,
        ("convert", "detector", "new", "--annotations", "gone.json"),
        ("gone.json",),
    ),
    "weights that ask to run code": (
        lambda: torch.save({"model": {"a": torch.zeros(1)}, "x": _Asks()}, "evil.pth"),
        ("predict", "evil.pth", "sample/val"),
        ("evil.pth: not loaded: it asks to run code (", "system)"),
    ),
    "weights cut off": (
        lambda: Path("cut.pth").write_bytes(b"PK\x03\x04" + bytes(99)),
        ("info", "cut.pth"),
        ("cut.pth: not a readable weights file",),
    ),
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


def test_interrupted_first_epoch_can_be_started_again(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    pictures = Path("sample/train")
    shutil.copytree(pictures, "kept")
    _break_picture()
    assert run(*TRAIN)[0] == 1
    shutil.rmtree(pictures)
    Path("kept").rename(pictures)
    assert run(*TRAIN)[0] == 0
