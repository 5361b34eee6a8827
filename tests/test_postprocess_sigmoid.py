"""Detections of models that score by sigmoids: the best pairs of query and category."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError
from detr_kit.postprocess import to_detections
from detr_kit.structures import ModelOutput

TABLE = CategoryTable((3, 5, 90), ("cat", "unused_5", "dog"), (True, False, True))


def output_of(probabilities: torch.Tensor, boxes_cxcywh: torch.Tensor) -> ModelOutput:
    """The prediction behind a first layer that must not be read."""
    logits = probabilities.logit()
    return ModelOutput(
        torch.stack([torch.full_like(logits, torch.nan), logits]),
        torch.stack([torch.full_like(boxes_cxcywh, torch.nan), boxes_cxcywh]),
        "sigmoid",
    )


def test_one_image_by_hand() -> None:
    probabilities = torch.tensor([[[0.7, 0.99, 0.6], [0.1, 0.98, 0.65], [0.2, 0.9, 0.3]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0], [0.1, 0.1, 0.1, 0.1]]])
    (found,) = to_detections(output_of(probabilities, boxes), [(100, 200)], TABLE)
    # The first query gives two detections, the last none; the unused column never wins.
    assert found.names == ["cat", "dog", "dog"]
    assert found.category_ids.tolist() == [3, 90, 90]
    np.testing.assert_allclose(found.scores, [0.7, 0.65, 0.6], rtol=1e-6)
    first = [80, 30, 120, 70]
    np.testing.assert_allclose(
        found.boxes_xyxy, [first, [0, 0, 100, 100], first], rtol=1e-6, atol=1e-5
    )


def test_threshold_keeps_scores_at_least_as_high() -> None:
    output = output_of(
        torch.tensor([[[0.5, 0.9, 0.2], [0.75, 0.9, 0.4]]]), torch.full((1, 2, 4), 0.5)
    )
    (found,) = to_detections(output, [(10, 10)], TABLE, threshold=0.5)
    assert found.scores.tolist() == pytest.approx([0.75, 0.5])
    assert len(to_detections(output, [(10, 10)], TABLE, threshold=0.9)[0]) == 0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 12),
    used=st.lists(st.booleans(), min_size=1, max_size=6).filter(any),
    sizes_hw=st.lists(
        st.tuples(st.integers(1, 3000), st.integers(1, 3000)), max_size=3, min_size=1
    ),
)
def test_equal_to_a_plain_loop(
    seed: int, queries: int, used: list[bool], sizes_hw: list[tuple[int, int]]
) -> None:
    rng = np.random.default_rng(seed)
    columns = len(used)
    logits = rng.normal(-2, 3, (len(sizes_hw), queries, columns))
    boxes = rng.random((len(sizes_hw), queries, 4))
    table = CategoryTable(
        tuple(10 + 3 * i for i in range(columns)),
        tuple(f"n{i}" for i in range(columns)),
        tuple(used),
    )
    output = ModelOutput(torch.tensor(logits)[None], torch.tensor(boxes)[None], "sigmoid")
    found = to_detections(output, sizes_hw, table)
    for image, (height, width) in enumerate(sizes_hw):
        rows = []
        for query in range(queries):
            cx, cy, w, h = boxes[image, query]
            corners = (cx - w / 2) * width, (cy - h / 2) * height
            corners += (cx + w / 2) * width, (cy + h / 2) * height
            for column in np.flatnonzero(used):
                score = 1 / (1 + np.exp(-logits[image, query, column]))
                rows.append((score, table.ids[column], table.names[column], corners))
        best = sorted(rows, key=lambda row: -row[0])[:queries]
        np.testing.assert_allclose(found[image].scores, [row[0] for row in best], rtol=1e-6)
        assert found[image].category_ids.tolist() == [row[1] for row in best]
        assert found[image].names == [row[2] for row in best]
        np.testing.assert_allclose(
            found[image].boxes_xyxy, [row[3] for row in best], rtol=1e-6, atol=1e-3
        )


def test_half_precision_is_widened_first() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 5, 3, generator=generator).bfloat16()
    boxes = torch.rand(1, 1, 5, 4, generator=generator).bfloat16()
    (half,) = to_detections(ModelOutput(logits, boxes, "sigmoid"), [(333, 777)], TABLE)
    full = ModelOutput(logits.float(), boxes.float(), "sigmoid")
    (expected,) = to_detections(full, [(333, 777)], TABLE)
    assert (half.boxes_xyxy == expected.boxes_xyxy).all()
    assert (half.scores == expected.scores).all()


@pytest.mark.parametrize("columns", [2, 4])
def test_a_head_of_another_width_is_refused(columns: int) -> None:
    output = output_of(torch.full((1, 2, columns), 0.5), torch.zeros(1, 2, 4))
    with pytest.raises(DetrKitError, match=rf"{columns} columns, but there are 3 categories"):
        to_detections(output, [(10, 10)], TABLE)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_what_is_not_finite_names_its_image_also_in_a_query_that_finds_nothing(
    where: str, value: float
) -> None:
    output = output_of(torch.full((3, 2, 3), 0.5), torch.full((3, 2, 4), 0.5))
    with torch.no_grad():
        output.logits[:, 0] -= 20  # the other query takes both places
        (output.logits if where == "logits" else output.boxes_cxcywh)[1, 0, 1] = value
    with pytest.raises(DetrKitError, match=r"not finite for image b\.jpg$"):
        to_detections(output, [(9, 9)] * 3, TABLE, image_names=["a.jpg", "b.jpg", "c.jpg"])


def test_a_category_may_be_ruled_out() -> None:
    output = output_of(torch.full((1, 2, 3), 0.5), torch.full((1, 2, 4), 0.5))
    output.logits[..., 0] = -torch.inf
    assert to_detections(output, [(9, 9)], TABLE)[0].names == ["dog", "dog"]
