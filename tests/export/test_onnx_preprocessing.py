from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.errors import DetrKitError
from detr_kit.export.check import check_preprocessing
from detr_kit.export.preprocessing_graph import OPSET, preprocessing_graph, size_nodes
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeHW, SizeRule
from detr_kit.structures import CollatedImages

onnxruntime = pytest.importorskip("onnxruntime")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RULES = ("detr", "yolos_16", "huggingface", "huggingface_16", "fit", "square")
SIDES = st.one_of(st.integers(1, 5000), st.integers(1, 20), st.sampled_from((16, 480, 800, 1333)))


@cache
def size_session(rule: SizeRule) -> Any:
    text = f"""<ir_version: 10, opset_import: ["": {OPSET}]>
        sizes (int64[2] size) => (int64[2] target) {{ {size_nodes(rule)} }}"""
    return onnxruntime.InferenceSession(onnx.parser.parse_model(text).SerializeToString())


def session_of(preprocessing: Preprocessing, **options: Any) -> Any:
    model = preprocessing_graph(preprocessing, ir_version=10, **options)
    return onnxruntime.InferenceSession(model.SerializeToString())


def drawn(count: int, size_hw: SizeHW) -> np.ndarray:
    shape = (count, *size_hw, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@settings(deadline=None)  # the first example of a rule builds its session
@given(
    name=st.sampled_from(RULES),
    short_and_long=st.sampled_from(((800, 1333), (480, 640), (512, None), (16, 17), (333, 16))),
    size_hw=st.one_of(st.tuples(SIDES, SIDES), SIDES.map(lambda side: (side, side))),
)
def test_a_graph_computes_the_size_of_the_rule(
    name: str, short_and_long: tuple[int, int | None], size_hw: SizeHW
) -> None:
    rule = SizeRule(name, *short_and_long)
    (target,) = size_session(rule).run(None, {"size": np.array(size_hw)})
    assert tuple(target) == rule.target_hw(size_hw)


@pytest.mark.parametrize(
    "size_hw", [(60, 90), (300, 207), (96, 128), (150, 131)], ids=lambda size: f"{size}"
)
def test_a_graph_resizes_within_a_level_of_pillow_and_normalises(size_hw: SizeHW) -> None:
    preprocessing = Preprocessing(SizeRule("detr", 96, 160), MEAN, STD)
    images = drawn(2, size_hw)
    (pixels,) = session_of(preprocessing).run(None, {"images": images})
    resized = [torch.from_numpy(preprocessing.apply(image)) for image in images]
    expected = CollatedImages.from_images(resized, [size_hw] * 2, [0, 1]).normalized(MEAN, STD)
    assert pixels.dtype == np.float32
    assert pixels.shape == tuple(expected.pixels.shape)
    levels = np.abs(pixels - expected.pixels.numpy()) * np.array(STD)[:, None, None] * 255
    assert levels.max() < 1.001
    assert (levels > 0.5).mean() < 0.01


def test_a_picture_of_the_right_size_is_only_normalised() -> None:
    preprocessing = Preprocessing(SizeRule("square", 32), MEAN, STD)
    images = drawn(1, (32, 32))
    (pixels,) = session_of(preprocessing).run(None, {"images": images})
    whole = CollatedImages(torch.from_numpy(images), ((32, 32),), ((32, 32),), (0,))
    np.testing.assert_array_equal(pixels, whole.normalized(MEAN, STD).pixels.numpy())


def test_original_sizes_are_those_of_the_pictures() -> None:
    preprocessing = Preprocessing(SizeRule("fit", 32), MEAN, STD)
    session = session_of(preprocessing, original_sizes=True)
    _, sizes_hw = session.run(None, {"images": drawn(3, (20, 44))})
    assert sizes_hw.tolist() == [[20, 44]] * 3


def run_of(preprocessing: Preprocessing) -> Any:
    session = session_of(preprocessing)
    return lambda inputs: {"pixels": session.run(None, inputs)[0]}


def test_the_check_tells_how_far_resizing_is_from_pillow() -> None:
    preprocessing = Preprocessing(SizeRule("detr", 64, 96), MEAN, STD)
    assert 0.5 < check_preprocessing(run_of(preprocessing), preprocessing) < 1.001


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Preprocessing(SizeRule("detr", 64, 100), MEAN, STD), "the size rule says"),
        (Preprocessing(SizeRule("detr", 64, 96), (0.5, 0.456, 0.406), STD), "of 255 levels off"),
    ],
    ids=["size", "mean"],
)
def test_the_check_fails_for_other_preprocessing(other: Preprocessing, message: str) -> None:
    with pytest.raises(DetrKitError, match=message):
        check_preprocessing(run_of(other), Preprocessing(SizeRule("detr", 64, 96), MEAN, STD))
