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


def output_of(logits: torch.Tensor, boxes_cxcywh: torch.Tensor) -> ModelOutput:
    """The prediction behind a first layer that must not be read."""
    return ModelOutput(
        torch.stack([torch.full_like(logits, torch.nan), logits]),
        torch.stack([torch.full_like(boxes_cxcywh, torch.nan), boxes_cxcywh]),
    )


def test_one_image_by_hand() -> None:
    # columns: cat, unused, dog, no object; exp of the logits is 1 2 5 2 and 6 2 1 1
    logits = torch.tensor([[[1.0, 2, 5, 2], [6, 2, 1, 1]]]).log()
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0]]])
    (found,) = to_detections(output_of(logits, boxes), [(100, 200)], TABLE)
    assert found.names == ["cat", "dog"]
    assert found.category_ids.tolist() == [3, 90]
    np.testing.assert_allclose(found.scores, [0.6, 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        found.boxes_xyxy, [[0, 0, 100, 100], [80, 30, 120, 70]], rtol=1e-6, atol=1e-5
    )


def test_an_unused_column_takes_probability_but_is_never_predicted() -> None:
    logits = torch.tensor([[[1.0, 98, 0.5, 0.5]]]).log()
    (found,) = to_detections(output_of(logits, torch.full((1, 1, 4), 0.5)), [(10, 10)], TABLE)
    assert found.names == ["cat"]
    np.testing.assert_allclose(found.scores, [0.01], rtol=1e-5)


def test_threshold_keeps_scores_at_least_as_high() -> None:
    logits = torch.tensor([[[1.0, 0, 0, 1], [3, 0, 0, 1], [1, 0, 0, 3]]]).log()
    output = output_of(logits, torch.full((1, 3, 4), 0.5))
    (found,) = to_detections(output, [(10, 10)], TABLE, threshold=0.5)
    assert found.scores.tolist() == pytest.approx([0.75, 0.5])
    assert len(to_detections(output, [(10, 10)], TABLE)[0]) == 3
    assert len(to_detections(output, [(10, 10)], TABLE, threshold=0.9)[0]) == 0


@settings(max_examples=30, deadline=None)
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
    logits = rng.normal(0, 3, (len(sizes_hw), queries, columns + 1))
    boxes = rng.random((len(sizes_hw), queries, 4))
    table = CategoryTable(
        tuple(10 + 3 * i for i in range(columns)),
        tuple(f"n{i}" for i in range(columns)),
        tuple(used),
    )
    found = to_detections(output_of(torch.tensor(logits), torch.tensor(boxes)), sizes_hw, table)
    for image, (height, width) in enumerate(sizes_hw):
        expected = []
        for query in range(queries):
            powers = np.exp(logits[image, query] - logits[image, query].max())
            chances = powers / powers.sum()
            best = max((c for c in range(columns) if used[c]), key=lambda c: chances[c])
            cx, cy, w, h = boxes[image, query]
            corners = (cx - w / 2) * width, (cy - h / 2) * height
            corners += (cx + w / 2) * width, (cy + h / 2) * height
            expected.append((chances[best], table.ids[best], table.names[best], corners))
        expected.sort(key=lambda row: -row[0])
        np.testing.assert_allclose(found[image].scores, [row[0] for row in expected], rtol=1e-6)
        assert found[image].category_ids.tolist() == [row[1] for row in expected]
        assert found[image].names == [row[2] for row in expected]
        np.testing.assert_allclose(
            found[image].boxes_xyxy, [row[3] for row in expected], rtol=1e-6, atol=1e-3
        )


def test_half_precision_is_widened_first() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 5, 4, generator=generator).bfloat16()
    boxes = torch.rand(1, 5, 4, generator=generator).bfloat16()
    (half,) = to_detections(output_of(logits, boxes), [(333, 777)], TABLE)
    (full,) = to_detections(output_of(logits.float(), boxes.float()), [(333, 777)], TABLE)
    assert (half.boxes_xyxy == full.boxes_xyxy).all()
    assert (half.scores == full.scores).all()


def test_a_head_of_another_width_is_refused() -> None:
    output = output_of(torch.zeros(1, 2, 5), torch.zeros(1, 2, 4))
    with pytest.raises(DetrKitError, match=r"5 columns, but 3 categories .* make 4"):
        to_detections(output, [(10, 10)], TABLE)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_output_that_is_not_finite_names_its_images(where: str, value: float) -> None:
    logits, boxes = torch.zeros(3, 2, 4), torch.full((3, 2, 4), 0.5)
    (logits if where == "logits" else boxes)[1, 0, 1] = value
    with pytest.raises(DetrKitError, match=r"not finite for image b\.jpg$"):
        to_detections(
            output_of(logits, boxes), [(9, 9)] * 3, TABLE, image_names=["a.jpg", "b.jpg", "c.jpg"]
        )
    with pytest.raises(DetrKitError, match="not finite for image 1 of the batch"):
        to_detections(output_of(logits, boxes), [(9, 9)] * 3, TABLE)
