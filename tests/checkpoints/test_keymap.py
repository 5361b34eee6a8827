"""Names of tensors, translated both ways; and what is said of those that do not fit."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detr_kit.checkpoints import hf_keys, official_keys
from detr_kit.checkpoints.keymap import KeyMap, Rule, require_fit
from detr_kit.errors import DetrKitError

MAPS = {
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
    ),
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
    key_map = MAPS[name]
    rule = data.draw(st.sampled_from(key_map.rules))
    theirs = {
        part.format(**values): torch.full((2, 3), float(row)) for row, part in enumerate(rule.parts)
    }
    ours, dropped = key_map.to_ours(theirs)
    if dropped:  # backbone.head.weight, for example
        assert not ours
        return
    assert ours.keys() == {rule.ours.format(**values)}
    back = key_map.to_theirs(ours)
    # By order too: q, k and v are not interchangeable.
    assert list(back) == list(theirs)
    for key, tensor in theirs.items():
        assert torch.equal(back[key], tensor)


@pytest.mark.parametrize("name", MAPS)
def test_no_two_rules_lead_to_the_same_name(name: str) -> None:
    values = {"i": "1", "j": "2", "p": "weight", "rest": "conv9.weight"}
    ours = [rule.ours.format(**values) for rule in MAPS[name].rules]
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
