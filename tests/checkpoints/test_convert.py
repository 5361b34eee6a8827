"""Writing a detector in another form: nothing is lost, and nothing is left half-written."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints import convert as convert_module
from detr_kit.checkpoints.convert import convert
from detr_kit.checkpoints.detector import DetectorSpec
from detr_kit.checkpoints.official import official_content
from detr_kit.checkpoints.reading import read_tensors
from detr_kit.checkpoints.sources import load_detector, open_checkpoint
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import VARIANTS
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

pytestmark = pytest.mark.usefixtures("no_network")
Make = Callable[..., Any]
FORMS = ("detr_kit", "official", "huggingface")
# What transformers can take, and what a file of the official code does not tell.
POST_NORM: dict[str, dict[str, Any]] = {"detr": {"pre_norm": False}, "yolos": {}}


def named(folder: Path, form: str) -> Path:
    return folder / (f"{form}.pth" if form == "official" else form)


def without_counts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all but the counts of batches, which norms that are frozen do not keep."""
    return {key: t for key, t in tensors.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("family", ["detr", "yolos"])
def test_every_form_leads_to_every_other(
    family: str, tmp_path: Path, save_own: Make, untold: Any, assert_same: Make
) -> None:
    source = save_own(family, **POST_NORM[family])
    expected = without_counts(load_file(source / "model.safetensors"))
    # A way that goes from each form to each of the others once.
    for step, form in enumerate((*FORMS[1:], *FORMS[:1], *FORMS[2:0:-1], *FORMS[:1])):
        known = untold[family] if source.suffix == ".pth" else {}
        out = named(tmp_path / str(step), form)
        convert(source, out, form=form, architecture=known)
        opened = open_checkpoint(out, untold[family])
        assert_same(without_counts(opened.tensors), expected)
        opened.build()
        source = out


@pytest.mark.parametrize("family", ["detr", "yolos"])
def test_an_official_file_comes_back_bit_for_bit(
    family: str, tmp_path: Path, official_tensors: Make, untold: Any, assert_same: Make
) -> None:
    tensors = official_tensors(family)
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "own", architecture=untold[family])
    convert(tmp_path / "own", tmp_path / "again.pth", form="official")
    with torch.serialization.safe_globals([argparse.Namespace]):
        written = torch.load(tmp_path / "again.pth", weights_only=True)
    assert written.keys() == {"model", "args"}
    assert_same(written["model"], tensors)
    # Each tensor is stored once and whole, not as a view of a larger one.
    for tensor in written["model"].values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_own_folders_keep_what_the_detector_is(
    tmp_path: Path, save_own: Make, difference: Make
) -> None:
    own = save_own("yolos", table=CategoryTable((3, 7, 90), ("a", "b", "c"), (True, False, True)))
    convert(own, tmp_path / "again")
    (one, spec), (other, again) = load_detector(own), load_detector(tmp_path / "again")
    assert again == spec
    assert difference(one, other) == 0


def test_official_weights_of_a_detr_with_batch_norms_compute_the_same(
    tmp_path: Path, save_own: Make, difference: Make
) -> None:
    own = save_own("detr")  # its norms are batch norms, its layers normalise first
    convert(own, tmp_path / "w.pth", form="official")
    written = read_tensors(tmp_path / "w.pth")
    assert not any(key.endswith("num_batches_tracked") for key in written)
    again, _ = load_detector(tmp_path / "w.pth")
    # Frozen norms are folded into the convolutions, batch norms are not.
    assert difference(load_detector(own)[0], again) < 1e-12


def test_settings_and_categories_are_kept(
    tmp_path: Path, official_tensors: Make, untold: Any
) -> None:
    torch.save(official_tensors("yolos", columns=4), tmp_path / "w.pth")
    opened = convert(
        tmp_path / "w.pth",
        tmp_path / "own",
        architecture={**untold["yolos"], "padding": "official"},
        categories={1: "cat", 3: "owl"},
    )
    assert opened.kind == "official YOLOS"
    _, spec = load_detector(tmp_path / "own")
    assert spec == opened.spec
    assert spec.architecture["padding"] == "official"
    assert spec.categories.column_of == {1: 1, 3: 3}
    assert spec.origin == str(tmp_path / "w.pth")
    # In a folder for transformers, a column without a category has the hub's name for it.
    convert(tmp_path / "own", tmp_path / "hf", form="huggingface")
    table = open_checkpoint(tmp_path / "hf").spec.categories
    assert table.used == (False, True, False, True)


def test_ids_that_transformers_cannot_keep_are_told(tmp_path: Path, save_own: Make) -> None:
    table = CategoryTable((3, 7), ("cat", "dog"))
    own = save_own("yolos", table=table)
    note = "category ids become the numbers of their columns, from 0; names are kept"
    assert note in convert(own, tmp_path / "hf", form="huggingface").notes
    assert open_checkpoint(tmp_path / "hf").spec.categories.ids == (0, 1)
    plain = save_own("yolos", "plain")
    assert note not in convert(plain, tmp_path / "hf2", form="huggingface").notes


def refused(source: Path, out: Path, form: Any, told: str, **known: Any) -> None:
    """Require one line, and that nothing is written."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(DetrKitError) as caught:
        convert(source, out, form=form, **known)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.rglob("*")) == before


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_overwritten(tmp_path: Path, save_own: Make, form: str) -> None:
    own = save_own("yolos")
    out = named(tmp_path, form)
    out.mkdir()
    refused(own, out, form, f"{out}: it exists; give a new name")
    out.rmdir()
    out.write_text("mine")
    refused(own, out, form, f"{out}: it exists; give a new name")
    assert out.read_text() == "mine"
    refused(own, own, form, f"{own}: it exists; give a new name")


@pytest.mark.parametrize("name", ["w", "w.pt", "w.safetensors"])
def test_an_official_file_ends_in_pth(tmp_path: Path, save_own: Make, name: str) -> None:
    refused(save_own("yolos"), tmp_path / name, "official", "give a name in .pth")


@pytest.mark.parametrize(
    ("family", "changes", "form", "told"),
    [
        ("detr", {}, "huggingface", "transformers' DETR has no pre_norm True"),
        (
            "detr",
            {"pre_norm": False, "backbone_norm": "group"},
            "huggingface",
            "transformers' DETR has no backbone_norm group",
        ),
        (
            "detr",
            {"backbone": "plain", "positions_at_input": True},
            "huggingface",
            "no backbone plain, pre_norm True, positions_at_input True",
        ),
        ("detr", {"backbone_stages": 2, "pre_norm": False}, "huggingface", "backbone_stages 2"),
        ("detr", {"backbone_norm": "group"}, "official", "DETR has no backbone_norm group"),
        ("detr", {"backbone": "plain"}, "official", "the official DETR has no backbone plain"),
        (
            "yolos",
            {"mid_position_size_hw": (32, 32)},
            "huggingface",
            "one size for both position tables, not (32, 48) and (32, 32)",
        ),
    ],
)
def test_what_the_other_side_lacks_is_refused(
    family: str, changes: dict[str, Any], form: str, told: str, tmp_path: Path, save_own: Make
) -> None:
    refused(save_own(family, **changes), named(tmp_path, form), form, told)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "timm/resnet18"},
        {"backbone_stages": 3},
        {"positions_at_input": True},
    ],
)
def test_a_detr_that_the_official_code_lacks_is_refused(change: dict[str, Any]) -> None:
    numbers = VARIANTS["detr_r50"] | {"backbone_norm": "frozen"}
    assert official_content({}, spec_of(numbers))[0]["model"] == {}
    with pytest.raises(DetrKitError, match=r"^the official DETR has no (backbone|positions_at)"):
        official_content({}, spec_of(numbers | change))


def spec_of(numbers: dict[str, Any], short_side: int = 800) -> DetectorSpec:
    rule = "detr" if numbers["family"] == "detr" else "yolos_16"
    size_rule = SizeRule(rule, short_side, short_side * 1333 // 800)
    preprocessing = Preprocessing(size_rule, IMAGENET_MEAN, IMAGENET_STD)
    return DetectorSpec(numbers, CategoryTable((0,), ("cat",)), preprocessing)


def test_what_official_weights_leave_unsaid_is_told() -> None:
    first = "category names and ids are not in such a file: its columns are numbered from 0"
    assert official_content({}, spec_of(VARIANTS["yolos_s"]))[1] == (first,)
    _, notes = official_content({}, spec_of(VARIANTS["yolos_s"] | {"norm_eps": 1e-12}))
    assert notes == (first, "norm_eps 1e-12 becomes 1e-06 in the official code")
    # A YOLOS's picture size is among the settings, a DETR's is not.
    assert official_content({}, spec_of(VARIANTS["yolos_s"], 640))[1] == (first,)
    detr = VARIANTS["detr_r50"] | {"backbone_norm": "frozen"}
    assert official_content({}, spec_of(detr))[1] == (first,)
    _, notes = official_content({}, spec_of(detr, 640))
    assert notes[1:] == ("the official code resizes and normalises pictures otherwise",)


def test_official_weights_written_here_tell_everything_but_names(
    tmp_path: Path, save_own: Make
) -> None:
    for family in ("detr", "yolos"):
        own = save_own(family, f"own_{family}", **POST_NORM[family])
        convert(own, tmp_path / f"{family}.pth", form="official")
        again = open_checkpoint(tmp_path / f"{family}.pth")
        assert again.spec.architecture | {"backbone_norm": ""} == (
            open_checkpoint(own).spec.architecture | {"backbone_norm": "", "frozen_stages": 2}
            if family == "detr"
            else open_checkpoint(own).spec.architecture | {"backbone_norm": ""}
        )


@pytest.mark.parametrize("form", FORMS)
def test_a_source_that_is_not_whole_leaves_nothing(
    tmp_path: Path, official_tensors: Make, untold: Any, form: str
) -> None:
    tensors = official_tensors("yolos")
    del tensors["backbone.norm.bias"]
    torch.save(tensors, tmp_path / "w.pth")
    known = untold["yolos"]
    out = named(tmp_path, form)
    refused(tmp_path / "w.pth", out, form, "missing: backbone.norm.bias", architecture=known)
    refused(tmp_path / "gone", out, form, "does not exist")
    wrong = {**known, "num_heads": 7}
    refused(tmp_path / "w.pth", out, form, "num_heads 7", architecture=wrong)


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, save_own: Make, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = save_own("yolos")

    def fill(*arguments: Any, **_: Any) -> None:
        path = next(one for one in arguments if isinstance(one, Path))
        (path / "part" if path.is_dir() else path).write_bytes(b"half")
        raise OSError("no space left on device")

    for name in ("save_detector", "save_file"):
        monkeypatch.setattr(convert_module, name, lambda *a, **k: fill(*reversed(a), **k))
    monkeypatch.setattr(torch, "save", fill)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="no space left"):
        convert(own, named(tmp_path, form), form=form)  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before


def test_new_folders_on_the_way_are_made(tmp_path: Path, save_own: Make) -> None:
    own = save_own("yolos")
    for form in FORMS:
        out = named(tmp_path / "a" / form / "b", form)
        convert(own, out, form=form)  # type: ignore[arg-type]
        assert not [path for path in out.parent.iterdir() if re.search("tmp|old", path.name)]
