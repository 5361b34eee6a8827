"""Kinds of mistakes and their costs, against results and labels that are edited."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr_kit.evaluation import error_kinds as module
from detr_kit.evaluation.error_kinds import KINDS, error_kinds
from detr_kit.evaluation.options import ScoringOptions
from tests.evaluation.error_scenes import (
    FIXED,
    Box,
    Found,
    Object,
    evaluated,
    kinds_by_row,
    random_scene,
)


def iou_of(one: Box, other: Box) -> float:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def one_by_one(
    objects: list[Object], found: list[Found], wrong: list[int], agnostic: bool
) -> dict[int, tuple[str, int]]:
    """The kind and the partner of each wrong detection, in plain Python."""
    answer = {}
    for row in wrong:
        image, class_, box, _ = found[row]
        best: dict[bool, tuple[float, int]] = {True: (0.0, -1), False: (0.0, -1)}
        for place, (own_image, own_class, own_box, crowd) in enumerate(objects):
            same = agnostic or own_class == class_
            if own_image == image and not crowd and iou_of(box, own_box) > best[same][0]:
                best[same] = (iou_of(box, own_box), place)
        (iou, partner), (other_iou, other) = best[True], best[False]
        if 0.1 <= iou < 0.5:
            answer[row] = ("localisation", partner)
        elif other_iou >= 0.5:
            answer[row] = ("classification", other)
        elif iou >= 0.5:
            answer[row] = ("duplicate", partner)
        else:
            answer[row] = ("both", other) if other_iou >= 0.1 else ("background", -1)
    return answer


def mended(
    objects: list[Object],
    found: list[Found],
    about: dict[int, int],
    missed: set[int],
    *,
    reclassify: bool,
) -> list[Found]:
    """Results where the detections of `about` lie on their object, or are gone."""
    best: dict[int, int] = {}
    for row in sorted(about, key=lambda row: -found[row][3]):
        if about[row] in missed:
            best.setdefault(about[row], row)
    edited = []
    for row, (image, class_, box, score) in enumerate(found):
        if row not in about:
            edited.append((image, class_, box, score))
        elif best.get(about[row]) == row:
            _, own_class, own_box, _ = objects[about[row]]
            edited.append((image, own_class if reclassify else class_, own_box, score))
    return edited


def ap_of(objects: list[Object], found: list[Found], options: ScoringOptions) -> float:
    value = evaluated(objects, found, options, classes=4).metrics.ap50
    assert value is not None
    return value


@FIXED
@given(seed=st.integers(0, 2**32 - 1), agnostic=st.booleans())
def test_kinds_and_costs_equal_those_of_edited_results(seed: int, agnostic: bool) -> None:
    objects, found = random_scene(seed)
    options = ScoringOptions(class_agnostic=agnostic)
    evaluation = evaluated(objects, found, options, classes=4)
    errors = error_kinds(evaluation)
    matches = evaluation.table.at(0)
    wrong, missed = matches.rows[matches.is_false].tolist(), set(matches.missed.tolist())
    expected = one_by_one(objects, found, wrong, agnostic)
    assert kinds_by_row(errors) == {row: kind for row, (kind, _) in expected.items()}
    assert dict(zip(errors.rows.tolist(), errors.partners.tolist(), strict=True)) == {
        row: partner for row, (_, partner) in expected.items()
    }
    assert sum(errors.counts.values()) == len(wrong) + len(errors.missed_objects)
    about = {
        kind: {row: partner for row, (own, partner) in expected.items() if own == kind}
        for kind in KINDS
    }
    covered = {*about["localisation"].values(), *about["classification"].values()}
    assert errors.missed_objects.tolist() == sorted(missed - covered)
    if errors.ap is None:
        assert evaluation.metrics.ap50 is None
        return
    base = ap_of(objects, found, options)
    assert errors.ap == pytest.approx(base, abs=1e-12)
    for kind in ("localisation", "classification"):
        moves = kind == "classification"  # equal scores may stand by class, so keep it otherwise
        edited = mended(objects, found, about[kind], missed, reclassify=moves)
        gained = ap_of(objects, edited, options) - base
        assert errors.costs[kind] == pytest.approx(gained, abs=1e-12)
    for kind in ("both", "duplicate", "background"):
        edited = [each for row, each in enumerate(found) if row not in about[kind]]
        gained = ap_of(objects, edited, options) - base
        assert errors.costs[kind] == pytest.approx(gained, abs=1e-12)
    edited = [each for row, each in enumerate(found) if row not in wrong]
    gained = ap_of(objects, edited, options) - base
    assert errors.false_positive_cost == pytest.approx(gained, abs=1e-12)


@FIXED
@given(seed=st.integers(0, 2**32 - 1))
def test_costs_of_missed_objects_equal_those_of_edited_labels(seed: int) -> None:
    objects, found = random_scene(seed)
    evaluation = evaluated(objects, found, classes=4)
    errors = error_kinds(evaluation)
    matches = evaluation.table.at(0)
    counted = matches.classes[~matches.ignored].tolist()
    base = evaluation.metrics.per_class_ap50
    known = [name for name, value in base.items() if value is not None]
    for gone, cost in (
        (errors.missed_objects, errors.costs["missed"]),
        (matches.missed, errors.missed_cost),
    ):
        left = [each for row, each in enumerate(objects) if row not in gone.tolist()]
        edited = evaluated(left, found, classes=4).metrics.per_class_ap50
        # a class of which nothing is left to find has no AP there
        empty = {f"class {k}": 0.0 if k in counted else 1.0 for k in range(4)}
        values = [empty[name] if edited[name] is None else edited[name] for name in known]
        if not known:
            assert cost is None
            continue
        gained = np.mean(values) - np.mean([base[name] for name in known])
        assert cost == pytest.approx(gained, abs=1e-12)


@FIXED
@given(seed=st.integers(0, 2**32 - 1))
def test_no_cost_is_below_0_and_parts_change_nothing(seed: int) -> None:
    evaluation = evaluated(*random_scene(seed), classes=4)
    errors = error_kinds(evaluation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", 3)
        in_parts = error_kinds(evaluation)
    assert in_parts.counts == errors.counts
    np.testing.assert_array_equal(in_parts.kinds, errors.kinds)
    np.testing.assert_array_equal(in_parts.partners, errors.partners)
    for cost in (*errors.costs.values(), errors.false_positive_cost, errors.missed_cost):
        assert cost is None if errors.ap is None else cost >= -1e-12
