"""The official DETR and YOLOS: every published key, and what their files leave unsaid."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_kit.categories import coco_table
from detr_kit.checkpoints.keymap import require_fit
from detr_kit.checkpoints.official import open_official
from detr_kit.checkpoints.opened import OpenedCheckpoint
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import VARIANTS, build_model
from detr_kit.postprocess import to_detections
from detr_kit.sizes import SizeRule
from detr_kit.structures import ImageBatch
from tests.parity.official import CASES, sample_reference
from tests.parity.ours import official_args

Keys = Mapping[str, tuple[int, ...]]
FAMILIES = ("detr", "yolos")
# What the variants' names do not say of the official cases.
DETR_CASES: dict[str, dict[str, Any]] = {
    "detr_r50": {},
    "detr_r50_dc5": {"dilation": True},
    "detr_r101": {"backbone": "resnet101"},
    "detr_r18_pre_norm": {
        "backbone": "resnet18",
        "pre_norm": True,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "num_queries": 30,
    },
    "detr_r34_learned": {
        "backbone": "resnet34",
        "position_encoding": "learned",
        "encoder_layers": 2,
        "decoder_layers": 2,
        "hidden_dim": 128,
        "num_heads": 4,
        "feedforward_dim": 256,
        "num_queries": 25,
    },
}


def numbered(keys: Keys) -> dict[str, Tensor]:
    """Return a tensor a key, each of one number of its own; they take no memory."""
    return {
        key: torch.tensor(float(row)).expand(shape) for row, (key, shape) in enumerate(keys.items())
    }


OF_COCO = "categories of COCO, as the head has 91 columns"


def check_list(keys: Keys, case: str, settings: Mapping[str, Any]) -> None:
    """Open a list of keys, build the model on no device, and go back."""
    tensors = numbered(keys)
    opened = open_official(tensors, source=f"{case}.pth", args=official_args(settings))
    assert opened.dropped == ()
    assert len(opened.tensors) == len(keys)
    with torch.device("meta"):
        model = build_model(opened.spec.architecture, num_classes=91)
    require_fit(case, model.state_dict(), opened.tensors)
    assert opened.key_map is not None
    back = opened.key_map.to_theirs(opened.tensors)
    assert back.keys() == keys.keys()
    for key, tensor in back.items():
        assert tensor.shape == keys[key]
        assert tensor[(0,) * tensor.ndim] == tensors[key][(0,) * tensor.ndim], key


@pytest.mark.parametrize("case", CASES)
def test_every_key_is_used_and_comes_back(case: str) -> None:
    reference = sample_reference(case)
    check_list(reference.keys, case, reference.settings)


@pytest.mark.parametrize("case", CASES)
def test_every_key_of_the_full_references(case: str, shared_fixtures: Path) -> None:
    values = json.loads((shared_fixtures / "official" / f"{case}.json").read_text())
    keys = {key: tuple(shape) for key, shape in values.pop("keys").items()}
    assert keys == sample_reference(case).keys
    check_list(keys, case, values)


def opened_case(case: str, source: str | None = None, **changes: Any) -> OpenedCheckpoint:
    """Open a published list of keys as if its file held weights alone."""
    source = source or f"{case.replace('_', '-')}.pth"
    return open_official(numbered(sample_reference(case).keys), source=source, **changes)


def architecture(opened: OpenedCheckpoint, *left_out: str) -> dict[str, Any]:
    return {key: value for key, value in opened.spec.architecture.items() if key not in left_out}


@pytest.mark.parametrize("case", DETR_CASES)
def test_architecture_of_a_detr(case: str) -> None:
    args = official_args(sample_reference(case).settings)
    opened = opened_case(case, source="x.pth", args=args)
    expected = VARIANTS["detr_r50"] | DETR_CASES[case]
    expected |= {"backbone_norm": "frozen", "backbone_weights": None, "frozen_stages": 2}
    assert opened.spec.architecture == expected
    assert opened.notes == (OF_COCO,)  # training checkpoints leave nothing else open
    assert opened.spec.preprocessing.size_rule == SizeRule("detr", 800, 1333)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("yolos")])
def test_architecture_of_a_published_yolos(case: str) -> None:
    opened = opened_case(case)
    assert opened.spec.architecture == VARIANTS[case] | {"backbone_weights": None}
    height, width = VARIANTS[case]["position_size_hw"]
    assert opened.notes == (
        f"position_size_hw {height} x {width}, as published for this width",
        OF_COCO,
    )
    short_side = 512 if case == "yolos_ti" else 800
    rule = SizeRule("yolos_16", short_side, short_side * 1333 // 800)
    assert opened.spec.preprocessing.size_rule == rule


@pytest.mark.parametrize(
    ("source", "dilation"),
    [
        ("detr-r50-dc5-f0fb7ef5.pth", True),
        ("weights/DETR_DC5.pth", True),
        ("detr-r50-e632da11.pth", False),
        ("dc5/detr-r50.pth", False),  # a folder's name says nothing of the file
    ],
)
def test_published_dc5_files_are_known_by_their_names(source: str, dilation: bool) -> None:
    opened = opened_case("detr_r50", source)
    assert opened.spec.architecture["dilation"] is dilation
    assert opened.notes == (
        "num_heads 8, as published for this width",
        f"dilation {dilation}, as the file's name {'says' if dilation else 'does not say'} dc5",
        OF_COCO,
    )


def test_a_setting_that_is_given_wins_over_args_and_those_over_the_name() -> None:
    def dilation(**known: Any) -> Any:
        opened = opened_case("detr_r50", "detr-dc5.pth", **known)
        assert not any("dilation" in note for note in opened.notes)
        return opened.spec.architecture["dilation"]

    assert dilation(args={"dilation": False}) is False
    assert dilation(args={"dilation": False}, architecture={"dilation": True}) is True
    assert dilation(architecture={"dilation": False}) is False
    opened = opened_case(
        "detr_r50",
        args={"nheads": 4, "dropout": 0.3},
        architecture={"num_heads": 2, "padding": "official", "dropout": None},
    )
    assert opened.spec.architecture["num_heads"] == 2
    assert opened.spec.architecture["padding"] == "official"
    assert opened.spec.architecture["dropout"] == 0.3


def test_args_of_a_yolos() -> None:
    args = {"init_pe_size": [512, 864], "mid_pe_size": [512, 864], "eval_size": 640, "nheads": None}
    opened = opened_case("yolos_s", args=args)
    assert opened.notes == (OF_COCO,)
    assert opened.spec.preprocessing.size_rule == SizeRule("yolos_16", 640, 1066)
    # As many patches in other rows and columns.
    opened = opened_case("yolos_s", args={"init_pe_size": [864, 512]})
    assert opened.spec.architecture["position_size_hw"] == (864, 512)
    assert opened.spec.architecture["mid_position_size_hw"] == (864, 512)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_widths_ask_for_what_weights_do_not_tell(
    family: str, official_tensors: Callable[..., dict[str, Tensor]], untold: dict[str, Any]
) -> None:
    tensors = official_tensors(family)
    known = dict(untold[family])
    for setting in list(known):
        given = {key: value for key, value in known.items() if key != setting}
        with pytest.raises(DetrKitError, match=f"^x: its width .*: give {setting}$"):
            open_official(tensors, source="x", architecture=given)
    opened = open_official(tensors, source="x", architecture=known)
    assert architecture(opened).items() >= known.items()


# What no file of the official code holds, but a person or a damaged file may give.
BAD_SETTINGS: dict[str, dict[str, Any]] = {
    "detr": {
        "num_heads": ("x", 0, [2], 3),
        "dilation": ("maybe", True),  # a ResNet-18 has none
        "dropout": (1.5, "x"),
        "hidden_dim": (32,),
        "encoder_layers": (2,),
        "backbone": ("resnet50", "resnet19"),
        "depth": (1,),
        "family": ("yolos",),
        "num_quries": (5,),
    },
    "yolos": {
        "num_heads": ("x", 0, 5),
        "position_size_hw": (32, [32], "ab", (48, 48), (0, 0), (-32, -48), (32, 48, 48)),
        "mid_position_size_hw": (32, (32, 32)),
        "patch_size": (8, 0),
        "dilation": (True,),
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_that_cannot_be_are_one_line_with_their_name(
    family: str, official_tensors: Callable[..., dict[str, Tensor]], untold: dict[str, Any]
) -> None:
    tensors = official_tensors(family)
    for setting, values in BAD_SETTINGS[family].items():
        for value in values:
            given = {**untold[family], setting: value}
            with torch.device("meta"), pytest.raises(DetrKitError) as caught:
                open_official(tensors, source="file.pth", architecture=given).build()
            assert str(caught.value).startswith("file.pth: ")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "args"),
    [
        ("detr", {"nheads": "x"}),
        ("detr", {"nheads": 0}),
        ("detr", {"nheads": []}),
        ("detr", {"nheads": 2, "dropout": "x"}),
        ("yolos", {"init_pe_size": 32}),
        ("yolos", {"init_pe_size": []}),
        ("yolos", {"mid_pe_size": [32]}),
        ("yolos", {"eval_size": "x"}),
        ("yolos", {"eval_size": -1}),
    ],
)
def test_args_that_cannot_be_are_one_line(
    family: str,
    args: dict[str, Any],
    official_tensors: Callable[..., dict[str, Tensor]],
    untold: dict[str, Any],
) -> None:
    given = untold[family] if not args.keys() & {"nheads", "init_pe_size"} else {"num_heads": 2}
    given = {} if "nheads" in args else given
    with pytest.raises(DetrKitError, match=r"^file\.pth: .+$"):
        open_official(
            official_tensors(family), source="file.pth", args=args, architecture=given
        ).build()


def representative(keys: Keys) -> list[str]:
    """Return the keys without those of a ResNet's later blocks, which are like the first's."""
    later = ("layer1.1", "layer2", "layer3", "layer4")
    return [key for key in keys if not any(name in key for name in later)]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_missing_key_is_named(
    family: str, official_tensors: Callable[..., dict[str, Tensor]], untold: dict[str, Any]
) -> None:
    tensors = official_tensors(family)
    for key in representative({k: tuple(t.shape) for k, t in tensors.items()}):
        if key == "backbone.mid_pos_embed":  # a YOLOS may be without
            continue
        rest = {name: tensor for name, tensor in tensors.items() if name != key}
        with torch.device("meta"), pytest.raises(DetrKitError) as caught:
            open_official(rest, source="file.pth", architecture=untold[family]).build()
        assert str(caught.value).startswith("file.pth: ")
        assert key in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(), (0,), (2,), (3, 5), (1, 1, 1, 1, 1)])
def test_each_wrong_shape_is_one_line(
    family: str,
    shape: tuple[int, ...],
    official_tensors: Callable[..., dict[str, Tensor]],
    untold: dict[str, Any],
) -> None:
    tensors = official_tensors(family)
    for key in representative({k: tuple(t.shape) for k, t in tensors.items()}):
        changed = tensors | {key: torch.zeros(shape)}
        with torch.device("meta"), pytest.raises(DetrKitError) as caught:
            open_official(changed, source="file.pth", architecture=untold[family]).build()
        assert str(caught.value).startswith("file.pth: ")
        assert "\n" not in str(caught.value)
        # Where queries or class columns are counted, it is the others that do not fit.
        if tensors[key].ndim != len(shape):
            assert key in str(caught.value)


def test_unused_columns_of_coco_are_never_predicted(
    official_tensors: Callable[..., dict[str, Tensor]], untold: dict[str, Any]
) -> None:
    opened = open_official(official_tensors("yolos"), source="x", architecture=untold["yolos"])
    table = opened.spec.categories
    assert table == coco_table()
    assert (len(table), sum(table.used)) == (91, 80)
    model = opened.build()
    unused = [column for column, used in enumerate(table.used) if not used]
    with torch.no_grad():
        model.heads.class_head.layers[-1].bias[unused] = 100.0
        output = model(ImageBatch.from_images([torch.randn(3, 32, 48)]))
    assert set(output.logits.argmax(-1).flatten().tolist()) <= set(unused)
    (found,) = to_detections(output, [(32, 48)], table)
    assert len(found) == 4
    assert not set(found.category_ids.tolist()) & set(unused)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_numbers_of_columns(
    family: str, official_tensors: Callable[..., dict[str, Tensor]], untold: dict[str, Any]
) -> None:
    tensors = official_tensors(family, columns=4)

    def table_of(**given: Any) -> OpenedCheckpoint:
        return open_official(tensors, source="x", architecture=untold[family], **given)

    opened = table_of()
    assert opened.spec.categories.names == ("class_0", "class_1", "class_2", "class_3")
    assert opened.spec.categories.ids == (0, 1, 2, 3)
    assert opened.notes[-1].startswith("categories class_0 to class_3: the file does not name")
    named = table_of(categories={3: "owl", 1: "cat"})
    assert named.spec.categories.names == ("unused_0", "cat", "unused_2", "owl")
    assert named.spec.categories.used == (False, True, False, True)
    assert not any("categories" in note for note in named.notes)
    for wrong in (4, -1):
        with pytest.raises(DetrKitError, match=f"^x: category id {wrong} is none of .* 4 columns"):
            table_of(categories={1: "cat", wrong: "dog"})
    for empty in ({}, {1: "cat", 2: "cat"}):
        with pytest.raises(DetrKitError, match=r"^x: category table: "):
            table_of(categories=empty)


def test_names_are_given_to_91_columns_too(
    official_tensors: Callable[..., dict[str, Tensor]], untold: dict[str, Any]
) -> None:
    opened = open_official(
        official_tensors("yolos"), source="x", architecture=untold["yolos"], categories={90: "owl"}
    )
    assert opened.spec.categories.column_of == {90: 90}
