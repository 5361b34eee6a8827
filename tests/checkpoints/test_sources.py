"""What can be opened, whatever it is kept as, and what is said of everything else."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from detr_kit.checkpoints import sources
from detr_kit.checkpoints.convert import convert
from detr_kit.checkpoints.sources import load_detector, open_checkpoint
from detr_kit.errors import DetrKitError
from detr_kit.inference.detector import Detector
from detr_kit.inference.info import describe
from detr_kit.models.vit import ViT

pytestmark = pytest.mark.usefixtures("no_network")
FAMILIES = ("detr", "yolos")
Make = Callable[..., Any]


@pytest.fixture
def official_file(tmp_path: Path, official_tensors: Make) -> Callable[..., Path]:
    """Write a small official file; keywords are what stands beside the weights."""

    def write(family: str, name: str = "w.pth", *, legacy: bool = False, **beside: Any) -> Path:
        content = {"model": official_tensors(family), **beside}
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        return tmp_path / name

    return write


def every_kind(
    family: str, tmp_path: Path, save_own: Make, official_file: Make
) -> dict[str | Path, int]:
    """Write a family's checkpoints of every local kind; return them with their class columns."""
    own = save_own(family, "run/best", **({"pre_norm": False} if family == "detr" else {}))
    convert(own, tmp_path / "hf", form="huggingface")
    shutil.copytree(tmp_path / "hf", tmp_path / "bin")
    (tmp_path / "bin/model.safetensors").unlink()
    weights = sources.read_tensors(tmp_path / "hf/model.safetensors")
    torch.save(weights, tmp_path / "bin/pytorch_model.bin")
    official = official_file(family)
    return {
        own: 3,
        own.parent: 3,
        str(own): 3,
        own / "model.safetensors": 3,
        tmp_path / "hf": 3,
        str(tmp_path / "hf"): 3,
        tmp_path / "hf/model.safetensors": 3,
        tmp_path / "bin": 3,
        tmp_path / "bin/pytorch_model.bin": 3,
        official: 91,
        str(official): 91,
        official_file(family, "legacy.pth", legacy=True, epoch=3): 91,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_local_kind_opens_without_network(
    family: str, tmp_path: Path, save_own: Make, official_file: Make, untold: Any
) -> None:
    for source, columns in every_kind(family, tmp_path, save_own, official_file).items():
        known = untold[family] if columns == 91 else {}
        state = torch.random.get_rng_state()
        model, spec = load_detector(source, known)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not model.training
        assert spec.architecture["family"] == family
        assert len(spec.categories) == columns


OF_COCO = "categories of COCO, as the head has 91 columns"


def test_a_training_checkpoint_predicts_at_once(tmp_path: Path, official_file: Make) -> None:
    args = argparse.Namespace(nheads=2, dilation=False, dropout=0.0)
    path = official_file("detr", args=args, epoch=3, optimizer={"state": {}})
    detector = Detector.from_checkpoint(path, device="cpu")
    (found,) = detector.predict(Image.new("RGB", (64, 48), "red"), threshold=0.0)
    assert len(found) == 4
    assert {detector.categories.names[i] for i in found.category_ids} == set(found.names)
    told = describe(path, size_hw=(64, 64))
    assert told["weights"] == str(path)
    assert told["notes"] == OF_COCO
    assert told["categories"].startswith("80: person, bicycle, ")


def test_what_a_file_leaves_open_is_told(official_file: Make, untold: Any) -> None:
    opened = open_checkpoint(
        official_file("detr", "my-dc5.pth"), {**untold["detr"]} | {"dilation": False}
    )
    assert opened.notes == (OF_COCO,)
    opened = open_checkpoint(official_file("detr"), untold["detr"])
    assert opened.notes == ("dilation False, as the file's name does not say dc5", OF_COCO)
    # A file named dc5 of a network that has none.
    with pytest.raises(DetrKitError, match=r"my-dc5\.pth: dilation needs resnet50"):
        open_checkpoint(official_file("detr", "my-dc5.pth"), untold["detr"]).build()


def test_settings_reach_every_kind(
    tmp_path: Path, save_own: Make, official_file: Make, untold: Any
) -> None:
    for source in every_kind("yolos", tmp_path, save_own, official_file):
        known = {**untold["yolos"], "padding": "official"}
        assert open_checkpoint(source, known).spec.architecture["padding"] == "official"
        nothing = open_checkpoint(source, {**known, "padding": None, "dropout": None}).spec
        assert nothing == open_checkpoint(source, untold["yolos"]).spec
        with pytest.raises(DetrKitError, match=r"no setting 'pading'; did you mean 'padding'\?$"):
            open_checkpoint(source, {**known, "pading": "official"})
        with pytest.raises(DetrKitError, match=r"no setting 'levels'; it is for Deformable DETR$"):
            open_checkpoint(source, {**known, "levels": 2})
        with pytest.raises(DetrKitError, match=r"a YOLOS has no setting 'seed'$"):
            open_checkpoint(source, {**known, "seed": 2})


def test_an_older_checkpoint_takes_settings_that_it_does_not_name_yet(save_own: Make) -> None:
    path = save_own("yolos") / "detector.json"
    values = json.loads(path.read_text())
    del values["architecture"]["frozen_stages"]
    path.write_text(json.dumps(values))
    architecture = open_checkpoint(path.parent, {"frozen_stages": 1}).spec.architecture
    assert architecture["frozen_stages"] == 1


def test_categories_are_for_official_files_alone(
    tmp_path: Path, save_own: Make, official_file: Make, untold: Any
) -> None:
    for source, columns in every_kind("yolos", tmp_path, save_own, official_file).items():
        if columns == 91:
            opened = open_checkpoint(source, untold["yolos"], {7: "owl"})
            assert opened.spec.categories.column_of == {7: 7}
            continue
        with pytest.raises(DetrKitError, match="it names its categories itself"):
            open_checkpoint(source, categories={0: "owl"})


def resnet_classifier() -> dict[str, Tensor]:
    return torchvision.models.resnet18(weights=None).state_dict()


def deit_classifier() -> dict[str, Tensor]:
    vit = ViT(
        dim=24, depth=1, num_heads=2, feedforward_dim=32, patch_size=16, num_detection_tokens=1,
        position_size_hw=(32, 32), mid_position_size_hw=None,
    )  # fmt: skip
    tensors = {key: value for key, value in vit.state_dict().items() if key != "det_token"}
    return tensors | {"head.weight": torch.zeros(10, 24), "head.bias": torch.zeros(10)}


def deformable_detr() -> dict[str, Tensor]:
    names = (
        "transformer.level_embed",
        "transformer.encoder.layers.0.self_attn.sampling_offsets.weight",
        "transformer.decoder.layers.0.cross_attn.attention_weights.bias",
        "transformer.reference_points.weight",
        *(f"class_embed.{layer}.weight" for layer in range(6)),
        *(f"bbox_embed.{layer}.layers.{i}.bias" for layer in range(6) for i in range(3)),
        *(f"input_proj.{level}.0.weight" for level in range(4)),
        "query_embed.weight",
    )
    return {name: torch.zeros(2, 2) for name in names}


STRANGERS: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "ResNet": (resnet_classifier, "a ResNet classifier's weights, not a detector's: give them as"),
    "DeiT": (deit_classifier, "a ViT classifier's weights, not a detector's: give them as"),
    "Deformable DETR": (
        deformable_detr,
        "not an official DETR checkpoint; unknown: transformer.level_embed, ",
    ),
    "segmentation": (
        lambda: {
            f"detr.{key}": torch.zeros(1) for key in ("query_embed.weight", "input_proj.bias")
        },
        "this is a DETR for segmentation, which is not supported",
    ),
    "another": (
        lambda: {f"stem.{i}.weight": torch.zeros(1) for i in range(9)},
        "no official DETR or YOLOS: its keys (stem.0.weight, stem.1.weight, stem.2.weight ...) are",
    ),
}


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_other_architectures_are_told_what_they_are(
    tmp_path: Path, kind: str, wrapped: bool
) -> None:
    make, told = STRANGERS[kind]
    content: Any = make()
    torch.save({"model": content} if wrapped else content, tmp_path / "w.pth")
    with pytest.raises(DetrKitError) as caught:
        open_checkpoint(tmp_path / "w.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'w.pth'}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "lost"), [("detr", "query_embed.weight"), ("yolos", "backbone.det_token")]
)
def test_a_detector_without_queries_is_not_taken_for_something_else(
    family: str, lost: str, tmp_path: Path, official_tensors: Make
) -> None:
    tensors = official_tensors(family)
    del tensors[lost]
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(DetrKitError, match=rf"not a whole official .* checkpoint: {lost} is miss"):
        open_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_huggingface_weights_without_their_config_ask_for_the_folder(
    family: str, suffix: str, tmp_path: Path, save_own: Make
) -> None:
    own = save_own(family, **({"pre_norm": False} if family == "detr" else {}))
    convert(own, tmp_path / "hf", form="huggingface")
    alone = (tmp_path / "alone").with_suffix(suffix)
    if suffix == ".bin":
        torch.save(sources.read_tensors(tmp_path / "hf/model.safetensors"), alone)
    else:
        shutil.copy(tmp_path / "hf/model.safetensors", alone)
    with pytest.raises(DetrKitError, match=r"a Hugging Face model's weights; give the folder"):
        open_checkpoint(alone)


def test_folders_that_are_none_of_these(tmp_path: Path, save_own: Make) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights_alone").mkdir()
    torch.save({}, tmp_path / "weights_alone/pytorch_model.bin")
    for name in ("empty", "weights_alone"):
        for source in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(DetrKitError, match=r"is none; expected a folder with"):
                open_checkpoint(source)
    own = save_own("yolos")
    (own / "model.safetensors").unlink()
    with pytest.raises(DetrKitError, match=r"model\.safetensors is missing"):
        open_checkpoint(own)


def test_a_run_that_was_not_evaluated_yet_names_its_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_own: Make
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("first", "best"):  # a run may have any name
        save_own("yolos", f"{run}/last")
        for source in (run, f"{run}/best", Path(run), Path(run, "best")):
            with pytest.raises(DetrKitError) as raised:
                open_checkpoint(source)
            assert str(raised.value) == (
                f"{source}: the run has made no evaluation yet, and so has no best/; use {run}/last"
            )
        open_checkpoint(f"{run}/last").build()
    # Nothing is said of a state that is not whole, or of a best/ that is there and damaged.
    Path("first/best").mkdir()
    with pytest.raises(DetrKitError, match="is none; expected"):
        open_checkpoint("first")
    Path("first/best").rmdir()
    Path("first/last/model.safetensors").unlink()
    with pytest.raises(DetrKitError, match="is none; expected"):
        open_checkpoint("first")


def test_a_folder_with_impossible_numbers_is_one_line(save_own: Make) -> None:
    own = save_own("yolos")
    spec = json.loads((own / "detector.json").read_text())
    for setting, value in (("num_heads", 0), ("hidden_dim", -24), ("depth", "two")):
        changed = {**spec, "architecture": {**spec["architecture"], setting: value}}
        (own / "detector.json").write_text(json.dumps(changed))
        with pytest.raises(DetrKitError, match=r"own: .+$"):
            load_detector(own)


class TestHubNames:
    """Which texts are looked up on the hub; none of these tests asks it."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
        names: list[str] = []

        def fetch(name: str) -> Path:
            names.append(name)
            raise DetrKitError("asked")

        monkeypatch.setattr(sources, "fetch_model", fetch)
        monkeypatch.chdir(tmp_path)
        return names

    @pytest.mark.parametrize(
        "name", ["facebook/detr-resnet-50", "hustvl/yolos-tiny@main", "o/n@refs/pr/1", "o.w_n/n.1"]
    )
    def test_names(self, asked: list[str], name: str) -> None:
        with pytest.raises(DetrKitError, match=r"^asked$"):
            open_checkpoint(name)
        assert asked == [name]
        with pytest.raises(DetrKitError, match="does not exist"):
            open_checkpoint(Path(name))
        assert asked == [name]

    @pytest.mark.parametrize(
        "path",
        [
            "runs/fisrt",
            "runs/first/bset",
            "detr.pth",
            "weights/detr-r50.pth",
            "weights/model.safetensors",
            "weights/pytorch_model.bin",
            "./yolos",
            "../o/n",
            "/o/n",
            "~/yolos",
            "o/n@",
            "o n/x",
            "",
            "o/n\n",
        ],
    )
    def test_paths(self, asked: list[str], path: str) -> None:
        Path("runs").mkdir()
        with pytest.raises(DetrKitError, match=r"expected a folder with"):
            open_checkpoint(path)
        assert asked == []

    def test_what_is_here_is_not_looked_up(
        self, asked: list[str], save_own: Make, tmp_path: Path
    ) -> None:
        save_own("yolos", "owner/name")
        open_checkpoint("owner/name").build()
        (tmp_path / "owner/empty").mkdir()
        with pytest.raises(DetrKitError, match=r"is none; expected"):
            open_checkpoint("owner/empty")
        assert asked == []


def test_a_name_that_no_file_system_takes_is_one_line() -> None:
    with pytest.raises(DetrKitError, match="File name too long"):
        open_checkpoint("x" * 300)


def test_the_home_folder_is_known_by_its_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_own: Make
) -> None:
    save_own("yolos", "own")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_checkpoint("~/own").kind == "detr_kit"
