"""Files that were changed at random go through the check and the repair."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detr_kit.data.checks.fix import fix
from detr_kit.data.checks.run import check
from detr_kit.errors import DetrKitError
from tests.data.checks.corpus import NEVER_REPAIRED, coco, whole

# Values that a json may hold anywhere, and numbers that mean something somewhere.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 5, 6, 3, 7, 10, 11, -1, 2**31, 2**53, 2**63 - 1, 2**63, 10**400]),
    st.sampled_from([0.5, -0.0, 1e-9, 1e300, -1e300, float("nan"), float("inf"), 79.999, 100.004]),
    st.integers(-10, 120),
    st.floats(-10, 120),
    st.sampled_from(["", "a.jpg", "../x", "\0", "5", "0.5", "\ud800", "é\n", "a" * 300]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.sampled_from(["id", "x"]), inner)
    ),
    max_leaves=5,
)
BASES = [
    coco(),
    coco([[-5, 3, 30, 40], [90, 70, 30, 30], [10, 10, 0, 5]]),
    whole([[10, 20, 40, 60], [60, 5, 95, 75], [55, 40, 100, 80]]),
    whole([[0.1, 0.2, 0.3, 0.4], [0.5, 0.05, 0.25, 0.5]]),
]
LEFT_FOR = {
    "overshoot": ("most of it lies outside", "width and height swapped"),
    "outside_image": ("width and height swapped",),
    "unknown_category": ("no category",),
}
QUICK = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value that stands in `value`."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield (*path, key)
        yield from paths_of(inner, (*path, key))


def mutate(content: Any, choose: random.Random, value: Any) -> None:
    """Replace, delete or double one value of `content`, in place."""
    path = choose.choice(list(paths_of(content)) or [()])
    if not path:
        return
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    action = choose.choice(["replace", "replace", "delete", "double"])
    if action == "delete":
        del holder[path[-1]]
    elif action == "double" and isinstance(holder, list):
        holder.insert(choose.randrange(len(holder) + 1), copy.deepcopy(holder[path[-1]]))
    else:
        holder[path[-1]] = value


def check_and_fix(folder: Path, data: bytes) -> None:
    """Hold whatever a user may have to what is promised for it."""
    path, out = folder / "labels.json", folder / "fixed.json"
    path.write_bytes(data)
    for written in (out, out.with_suffix(".log.txt")):
        written.unlink(missing_ok=True)
    report = check(path)
    try:
        result = fix(path, out)
    except DetrKitError as error:
        is_other_format = "a repair would remove all" in str(error)
        assert is_other_format or report.count("not_coco") == 1
        return
    left = {found.kind: found for found in result.left}
    # A malformed category and its objects stay, and so does a list that is empty.
    excused = {"not_coco"} | NEVER_REPAIRED | {"duplicate_category", "mixed_formats"}
    # What is left with a reason says so.
    for kind, reasons in LEFT_FOR.items():
        cases = left[kind].cases if kind in left else ()
        if all(any(reason in case.text for reason in reasons) for case in cases):
            excused.add(kind)
    if "not_coco" in left and any("categor" in case.text for case in left["not_coco"].cases):
        excused.add("unknown_category")
    if "size_missing" in left:
        excused.add("looks_normalised")
    # A negative area of a crowd without a box: there is no other to be had.
    if "wrong_area" in left:
        records = json.loads(out.read_bytes())["annotations"]
        boxless = [record for record in records if record.get("bbox") is None]
        tiny = [one for one in records if one.get("bbox") and max(one["bbox"]) <= 1.001]
        assert left["wrong_area"].count <= len(boxless) + len(tiny)
        excused.add("wrong_area")
    for found in left.values():
        if found.kind == "looks_normalised" and "of corners, centres" in found.cases[0].text:
            excused.add("looks_normalised")
    assert set(left) <= excused
    for case in left["not_coco"].cases if "not_coco" in left else ():
        assert case.text.startswith(("categor", "images: the list is empty"))


@QUICK
@given(
    st.sampled_from(BASES),
    st.lists(st.tuples(st.integers(0, 2**32), VALUES), min_size=1, max_size=4),
)
def test_values_changed_at_random_never_break_the_check_or_the_repair(
    tmp_path_factory: pytest.TempPathFactory, base: Any, mutations: list[tuple[int, Any]]
) -> None:
    content = copy.deepcopy(base)
    for seed, value in mutations:
        mutate(content, random.Random(seed), copy.deepcopy(value))
    check_and_fix(tmp_path_factory.getbasetemp(), json.dumps(content).encode())


BYTES = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"-", b"e9", b"NaN", b"\0"]),
)


@QUICK
@given(
    st.sampled_from(BASES),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), BYTES), min_size=1, max_size=3),
)
def test_bytes_changed_at_random_never_break_the_check_or_the_repair(
    tmp_path_factory: pytest.TempPathFactory, base: Any, mutations: list[tuple[float, int, bytes]]
) -> None:
    data = json.dumps(base).encode()
    for where, num_removed, inserted in mutations:
        place = int(where * len(data))
        data = data[:place] + inserted + data[place + num_removed :]
    check_and_fix(tmp_path_factory.getbasetemp(), data)


@QUICK
@given(
    st.lists(
        st.lists(st.floats(-20, 130) | st.integers(-20, 130), min_size=4, max_size=4),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([1, 0.01]),
)
def test_boxes_of_any_kind_are_sound_after_the_repair(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[list[float]], scale: float
) -> None:
    content = coco([(np.array(box) * scale).tolist() for box in boxes])
    for record in content["annotations"]:
        record["area"] = record["bbox"][2] * record["bbox"][3]
    check_and_fix(tmp_path_factory.getbasetemp(), json.dumps(content).encode())
