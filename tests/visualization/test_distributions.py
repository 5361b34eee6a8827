"""The numbers behind the charts of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detr_kit.data.coco_file import CocoColumns, read_columns
from detr_kit.visualization.check_charts import counts_between, number_bins
from detr_kit.visualization.distributions import MAP_CELLS, distributions_of


def columns_of(
    tmp_path: Path, images: list[dict], annotations: list[dict], categories: list[dict]
) -> CocoColumns:
    path = tmp_path / "coco.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return read_columns(path)


def image(id_: int, width: int = 64, height: int = 32) -> dict:
    return {"id": id_, "file_name": f"{id_}.jpg", "width": width, "height": height}


def annotation(
    image_id: int, box_xywh: list[float] | None, category_id: int = 1, **more: int
) -> dict:
    box = {} if box_xywh is None else {"bbox": box_xywh}
    return {"id": 1, "image_id": image_id, "category_id": category_id, **box, **more}


CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]


def test_objects_are_counted_by_image_and_category(tmp_path: Path) -> None:
    columns = columns_of(
        tmp_path,
        [image(7), image(3), image(7), image(4)],
        [
            annotation(3, [0, 0, 4, 4]),
            annotation(3, None, 5),
            annotation(3, [0, 0, 8, 8], iscrowd=1),
            annotation(7, [0, 0, 1, 1], 99),
            annotation(99, [0, 0, 2, 8], 5),
        ],
        [*CATEGORIES, {"id": 1, "name": "again"}],
    )
    numbers = distributions_of(columns)
    assert (numbers.num_objects, numbers.num_crowd, numbers.num_unknown_category) == (4, 1, 1)
    assert numbers.image_row.tolist() == [1, 1, 1, 0, -1]
    # The second image 7 is no image without objects.
    assert numbers.objects_of_image.tolist() == [1, 2, 0, 0]
    assert numbers.num_empty == 1
    assert (numbers.median_objects, numbers.max_objects) == (1, 2)
    assert numbers.category_rows.tolist() == [0, 1]
    assert numbers.objects_of_category.tolist() == [1, 2]
    assert numbers.sides.tolist() == [4, 1, 4]
    assert numbers.log_aspects.tolist() == [0, 0, -2]
    assert numbers.annotation_of_share.tolist() == [0, 3]


def test_unusable_boxes_are_left_out(tmp_path: Path) -> None:
    boxes = [
        [0, 0, float("nan"), 4],
        [0, 0, -3, 4],
        [0, 0, 0, 4],
        [100, 0, 4, 4],
        [-8, -8, 16, 16],
        [1e200, 0, 1e200, 1e200],
        [0, 0, 1e-300, 1e-300],
    ]
    columns = columns_of(
        tmp_path,
        [image(1), image(2, 0, 0)],
        [annotation(1, box) for box in boxes] + [annotation(2, [0, 0, 4, 9])],
        CATEGORIES,
    )
    numbers = distributions_of(columns)
    assert numbers.annotation_of_side.tolist() == [3, 4, 5, 6, 7]
    assert numbers.sides == pytest.approx([4, 16, 1e200, 1e-300, 6])
    assert np.isfinite(numbers.log_aspects).all()
    # One reaches into its image, with a quarter of its area; another image has no size.
    assert numbers.annotation_of_share[0] == 4
    assert numbers.shares[0] == pytest.approx((64 / (64 * 32)) ** 0.5)
    assert 7 not in numbers.annotation_of_share


def test_coverage_equals_the_boxes_drawn_one_by_one(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    width, height = 200, 100
    corners = np.sort(draw.uniform(-20, 220, (300, 2, 2)), axis=1)
    boxes_xyxy = corners.reshape(-1, 4) * [1, 0.5, 1, 0.5]
    boxes_xywh = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)
    columns = columns_of(
        tmp_path,
        [image(1, width, height)],
        [annotation(1, box) for box in boxes_xywh.tolist()],
        CATEGORIES,
    )
    expected = np.zeros((MAP_CELLS, MAP_CELLS), dtype=int)
    for x0, y0, x1, y1 in boxes_xyxy.clip(0, [width, height, width, height]):
        if x1 > x0 and y1 > y0:
            rows = slice(int(y0 / height * MAP_CELLS), int(np.ceil(y1 / height * MAP_CELLS)))
            places = slice(int(x0 / width * MAP_CELLS), int(np.ceil(x1 / width * MAP_CELLS)))
            expected[rows, places] += 1
    assert expected.max() > 50
    assert np.array_equal(distributions_of(columns).coverage, expected)


def test_nothing_at_all(tmp_path: Path) -> None:
    numbers = distributions_of(columns_of(tmp_path, [], [], []))
    assert (numbers.num_objects, numbers.num_empty, numbers.max_objects) == (0, 0, 0)
    assert numbers.median_objects == 0
    assert numbers.coverage.sum() == 0


def test_values_beyond_the_edges_are_counted_in_the_outermost_bins() -> None:
    values = np.array([-np.inf, -5.0, 0.5, 1.0, 1.5, 2.0, 99.0, np.inf])
    assert counts_between(values, np.array([0.0, 1.0, 2.0])).tolist() == [3, 5]


@pytest.mark.parametrize(
    ("of_image", "starts"),
    [
        ([0, 0], [0, 1, 2, 3, 4]),
        ([1, 7], [0, *range(1, 8)]),
        ([0, 100], [0, *range(1, 101, 5)]),
        ([1] * 1000 + [900], [0, 1, 2, 3, 4]),
    ],
)
def test_bars_for_numbers_of_objects(of_image: list[int], starts: list[int]) -> None:
    assert number_bins(np.array(of_image)) == starts
