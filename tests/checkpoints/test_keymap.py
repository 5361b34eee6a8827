"""Names of tensors, translated both ways; and what is said of those that do not fit."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from detr_kit.checkpoints import hf_keys, official_keys
from detr_kit.checkpoints.hf_keys_deformable import deformable_keys
from detr_kit.checkpoints.hf_keys_rtdetr import rtdetr_keys
from detr_kit.checkpoints.keymap import KeyMap, Rule, require_fit
from detr_kit.errors import DetrKitError

NEWER = {
    "one stage": deformable_keys("timm", 6, refinement=False, two_stage=False),
    "refined": deformable_keys("transformers", 6, refinement=True, two_stage=False),
    "two stages": deformable_keys("timm", 6, refinement=True, two_stage=True),
    "RT-DETR": rtdetr_keys("transformers", frozen_norms=True),
    "RT-DETR, timm": rtdetr_keys("timm", frozen_norms=False),
}
MAPS = NEWER | {
    key_map.name: key_map
    for key_map in (
        official_keys.DETR_KEYS,
        official_keys.YOLOS_KEYS,
        hf_keys.DETR_TIMM_KEYS,
        hf_keys.DETR_RESNET_KEYS,
        hf_keys.YOLOS_KEYS,
    )
}
TOY = KeyMap(
    "toy",
    rules=(
        Rule(("q.{i}.{p}", "k.{i}.{p}", "v.{i}.{p}"), "qkv.{i}.{p}"),
        Rule("fc{j}.{p}", "mlp.{j}.{p}"),
        Rule("cnn.{rest}", "body.{rest}"),
        Rule("both.{i}.{p}", ("first.{i}.{p}", "second.{i}.{p}")),
    ),
    copies=(("linear.copy{j}.{p}", "fc{j}.{p}"),),
    repeated=(("mlp.9.{p}", "mlp.8.{p}"),),
    aliases=(("net.{rest}", "cnn.{rest}"), ("linear{j}.{p}", "fc{j}.{p}")),
    dropped={"{rest}.count": "counts nothing", "extra.{p}": "not needed"},
)

NUMBERS = st.integers(0, 999).map(str)
PLACEHOLDERS = st.fixed_dictionaries(
    {
        "i": NUMBERS,
        "j": NUMBERS,
        "p": st.sampled_from(["weight", "bias"]),
        "rest": st.from_regex(r"[a-z0-9_]{1,6}(\.[a-z0-9_]{1,6}){0,2}", fullmatch=True),
    }
)


@given(data=st.data(), name=st.sampled_from(sorted(MAPS)), values=PLACEHOLDERS)
def test_every_rule_is_its_own_inverse(
    data: st.DataObject, name: str, values: dict[str, str]
) -> None:
    # The heads of the layer after the last are those of the proposals.
    assume(not (name == "two stages" and values["i"] == "6"))
    key_map = MAPS[name]
    rule = data.draw(st.sampled_from(key_map.rules))
    theirs = {
        part.format(**values): torch.full((2, 4), float(row)) for row, part in enumerate(rule.parts)
    }
    ours, dropped = key_map.to_ours(theirs)
    if dropped:  # backbone.head.weight, for example
        assert not ours
        return
    assert ours.keys() >= {piece.format(**values) for piece in rule.pieces}
    needed = {piece.format(**values): ours[piece.format(**values)] for piece in rule.pieces}
    back = key_map.to_theirs(needed)
    # By order too: q, k and v are not interchangeable.
    assert list(back) == list(theirs)
    for key, tensor in theirs.items():
        assert torch.equal(back[key], tensor)


@pytest.mark.parametrize("name", MAPS)
def test_no_two_rules_lead_to_the_same_name(name: str) -> None:
    values = {"i": "1", "j": "2", "p": "weight", "rest": "conv9.weight"}
    ours = [piece.format(**values) for rule in MAPS[name].rules for piece in rule.pieces]
    theirs = [part.format(**values) for rule in MAPS[name].rules for part in rule.parts]
    assert len(set(ours)) == len(ours)
    assert len(set(theirs)) == len(theirs)


def tensors(*keys: str) -> dict[str, Tensor]:
    return {key: torch.full((2,), float(row)) for row, key in enumerate(keys)}


def test_parts_are_stacked_in_the_rules_order_whatever_the_files() -> None:
    ours, _ = TOY.to_ours(tensors("v.3.bias", "q.3.bias", "k.3.bias"))
    assert ours["qkv.3.bias"].tolist() == [1, 1, 2, 2, 0, 0]


def test_other_spellings_mean_the_same_and_are_written_as_the_first() -> None:
    ours, _ = TOY.to_ours(tensors("net.a.weight", "linear2.bias"))
    assert list(ours) == ["body.a.weight", "mlp.2.bias"]
    assert list(TOY.to_theirs(ours)) == ["cnn.a.weight", "fc2.bias"]


def test_dropped_keys_are_told_and_not_written() -> None:
    given = tensors("fc1.bias", "cnn.bn1.count", "net.bn1.count", "extra.weight")
    ours, dropped = TOY.to_ours(given)
    assert list(ours) == ["mlp.1.bias"]
    assert dropped == ("cnn.bn1.count", "net.bn1.count", "extra.weight")
    # A batch norm that trains counts its batches in a scalar.
    ours |= {"body.bn1.count": torch.tensor(7), "body.bn2.count": torch.zeros(1)}
    assert list(TOY.to_theirs(ours)) == ["fc1.bias"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("fc1.bias", "fc1.bias.x", "fcx.bias"), "unknown: fc1.bias.x, fcx.bias"),
        (("xfc1.bias", "fc1.biases"), "unknown: xfc1.bias, fc1.biases"),
        (("q.0.bias", "v.0.bias", "q.1.bias"), "missing: k.0.bias, k.1.bias, v.1.bias"),
        (("fc1.bias", "linear1.bias"), "twice: linear1.bias"),
        (("k.0.bias", "other"), "unknown: other; missing: q.0.bias, v.0.bias"),
        (tuple(f"x{i}" for i in range(10)), "unknown: " + ", ".join(f"x{i}" for i in range(10))),
        (
            tuple(f"x{i}" for i in range(12)),
            "unknown: " + ", ".join(f"x{i}" for i in range(10)) + " and 2 more",
        ),
    ],
)
def test_what_does_not_translate_is_listed(keys: tuple[str, ...], told: str) -> None:
    with pytest.raises(DetrKitError, match=re.escape(f"not a toy checkpoint; {told}") + "$"):
        TOY.to_ours(tensors(*keys))


def test_a_tensor_is_cut_into_several_of_ours_and_put_together_again() -> None:
    given = {"both.3.weight": torch.arange(8.0).view(2, 4)}
    ours, _ = TOY.to_ours(given)
    assert list(ours) == ["first.3.weight", "second.3.weight"]
    assert ours["second.3.weight"].tolist() == [[2, 3], [6, 7]]
    back = TOY.to_theirs(dict(reversed(list(ours.items()))))  # whatever the order
    assert torch.equal(back["both.3.weight"], given["both.3.weight"])


@pytest.mark.parametrize("shape", [(4,), (), (2, 3)])
def test_what_cannot_be_cut_is_named(shape: tuple[int, ...]) -> None:
    told = f"of shapes that cannot be cut: both.0.weight {shape}"
    with pytest.raises(DetrKitError, match=re.escape(told) + "$"):
        TOY.to_ours({"both.0.weight": torch.zeros(shape)})


def test_a_copy_is_dropped_beside_its_original_and_read_without_it() -> None:
    bias = torch.ones(2)
    ours, dropped = TOY.to_ours({"linear.copy1.bias": bias, "linear1.bias": bias.clone()})
    assert (list(ours), dropped) == (["mlp.1.bias"], ("linear.copy1.bias",))
    assert TOY.dropped_because(dropped[0]) == "the same tensor is there under another name"
    assert TOY.to_ours({"linear.copy1.bias": bias})[0]["mlp.1.bias"] is bias


@pytest.mark.parametrize("other", [torch.zeros(2), torch.ones(3), torch.ones(2).half()])
def test_a_copy_that_differs_is_named(other: Tensor) -> None:
    with pytest.raises(DetrKitError, match=r"differing copies: linear\.copy1\.bias$"):
        TOY.to_ours({"linear.copy1.bias": torch.ones(2), "fc1.bias": other})


def test_what_is_left_out_repeats_another() -> None:
    given = tensors("fc8.bias", "fc8.weight", "fc9.weight")
    ours, _ = TOY.to_ours(given)
    assert ours["mlp.9.bias"] is given["fc8.bias"]
    assert ours["mlp.9.weight"] is given["fc9.weight"]


@pytest.mark.parametrize("shape", [(3,), (), (2, 2)])
def test_parts_of_other_shapes_are_named(shape: tuple[int, ...]) -> None:
    given = tensors("q.0.bias", "k.0.bias", "v.0.bias", "fc1.bias")
    given["k.0.bias"] = torch.zeros(shape)
    told = f"of shapes that do not stack: q.0.bias (2,), k.0.bias {shape}, v.0.bias (2,)"
    with pytest.raises(DetrKitError, match=re.escape(told) + "$"):
        TOY.to_ours(given)


def test_scalars_do_not_stack() -> None:
    with pytest.raises(DetrKitError, match=r"do not stack: q\.0\.bias \(\), k\.0\.bias \(\)"):
        TOY.to_ours({f"{part}.0.bias": torch.tensor(1.0) for part in "qkv"})


def test_tensors_without_a_place_are_listed() -> None:
    with pytest.raises(DetrKitError, match=r"^toy has no place for .*; unknown: head\.bias$"):
        TOY.to_theirs(tensors("mlp.1.bias", "head.bias"))


def test_misfits_have_the_sources_names() -> None:
    expected = tensors("mlp.1.bias", "qkv.0.weight", "body.a")
    found = {"body.a": torch.zeros(3), "mlp.2.bias": torch.zeros(1)}
    with pytest.raises(DetrKitError) as caught:
        require_fit("file.pth", expected, found, TOY)
    assert str(caught.value) == (
        "file.pth: its tensors do not fit the detector; "
        "missing: fc1.bias, q.0.weight, k.0.weight, v.0.weight; "
        "unexpected: fc2.bias; "
        "of another shape: cnn.a (3,) instead of (2,)"
    )
    require_fit("file.pth", expected, expected, TOY)


@pytest.mark.parametrize(
    ("name", "article"), [("official DETR", "an"), ("Hugging Face YOLOS", "a")]
)
def test_the_heading_is_a_sentence(name: str, article: str) -> None:
    with pytest.raises(DetrKitError, match=f"^not {article} {name} checkpoint; unknown: x$"):
        KeyMap(name, rules=()).to_ours(tensors("x"))
