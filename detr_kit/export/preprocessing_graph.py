"""Resizing and normalising as ONNX operators, to be put in front of a detector's graph.

The graphs are written in ONNX's own text form. `size` is int64 [2], (height, width) throughout.
"""

from __future__ import annotations

import onnx
import onnx.checker
import onnx.parser

from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

# Resize knows antialiasing from 18 on.
OPSET = 18


def preprocessing_graph(
    preprocessing: Preprocessing, *, ir_version: int, original_sizes: bool = False
) -> onnx.ModelProto:
    """Return a model from `images` to `pixels`.

    `images` is (B, H, W, 3) uint8 RGB of any one size, `pixels` (B, 3, H', W') float32, resized by
    the size rule and normalised as `Preprocessing.apply` and `CollatedImages.normalized` do. With
    `original_sizes` the model also gives `original_sizes_hw` (B, 2) int64, the size of `images`.

    ONNX Runtime resizes to within 1 of 255 levels of Pillow.
    """
    outputs = "float[batch, 3, height, width] pixels"
    if original_sizes:
        outputs += ", int64[batch, 2] original_sizes_hw"
    text = f"""
        <ir_version: {ir_version}, opset_import: ["" : {OPSET}]>
        preprocessing (uint8[batch, image_height, image_width, 3] images) => ({outputs})
        {{
            size = Shape <start = 1, end = 3> (images)
            {size_nodes(preprocessing.size_rule)}
            planes = Transpose <perm = [0, 3, 1, 2]> (images)
            planes_shape = Shape <start = 0, end = 2> (planes)
            resized_shape = Concat <axis = 0> (planes_shape, target)
            resized = Resize <
                mode = "linear", coordinate_transformation_mode = "half_pixel",
                antialias = 1, exclude_outside = 1
            > (planes, , , resized_shape)
            levels = Cast <to = {onnx.TensorProto.FLOAT}> (resized)
            white = Constant <value = float {{255.0}}> ()
            fractions = Div(levels, white)
            mean = Constant <value = float[3, 1, 1] {_numbers(preprocessing.mean)}> ()
            std = Constant <value = float[3, 1, 1] {_numbers(preprocessing.std)}> ()
            centered = Sub(fractions, mean)
            pixels = Div(centered, std)
            {_ORIGINAL_SIZES if original_sizes else ""}
        }}
    """
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    return model


def size_nodes(rule: SizeRule) -> str:
    """Return nodes that compute `target`, int64 [2], of `size` as `SizeRule.target_hw` does."""
    if rule.rule == "square":
        side = rule.short_side
        return f"target = Constant <value = int64[2] {{{side}, {side}}}> ()"
    sides = f"""
        short_side = Constant <value = double {{{float(rule.short_side)!r}}}> ()
        one = Constant <value = int64 {{1}}> ()
        size_d = Cast <to = {_DOUBLE}> (size)
    """
    if rule.rule == "fit":
        return sides + _FIT
    exact = "exact = Identity(short_side)" if rule.long_side is None else _capped(rule.long_side)
    return "\n".join(
        [
            sides,
            _EXTREMES,
            exact,
            "rounded = Round(exact)",
            "factor = Identity(exact)" if rule.rule.startswith("huggingface") else _FACTOR_DETR,
            _AROUND,
            _KEPT_LYING if rule.rule == "huggingface_16" else _KEPT,
            _FLOORED_16 if rule.rule.endswith("_16") else "target = Identity(around)",
        ]
    )


def _numbers(values: tuple[float, ...]) -> str:
    return "{" + ", ".join(repr(float(value)) for value in values) + "}"


_DOUBLE, _INT64 = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64

# Python divides integers exactly rounded, and so do doubles as long as the integers are exact.
_EXTREMES = f"""
    low = ReduceMin <keepdims = 0> (size)
    high = ReduceMax <keepdims = 0> (size)
    low_d = Cast <to = {_DOUBLE}> (low)
    high_d = Cast <to = {_DOUBLE}> (high)
"""


def _capped(long_side: int) -> str:
    """The short side at which the long side keeps the cap, at most `short_side`."""
    return f"""
        long_side = Constant <value = double {{{float(long_side)!r}}}> ()
        ratio = Div(high_d, low_d)
        long_d = Mul(ratio, short_side)
        passes = Greater(long_d, long_side)
        scaled = Mul(long_side, low_d)
        short_d = Div(scaled, high_d)
        exact = Where(passes, short_d, short_side)
    """


# A stripe whose short side rounds to 0 keeps the cap on its long side.
_FACTOR_DETR = """
    nothing = Constant <value = double {0.0}> ()
    vanishes = Equal(rounded, nothing)
    factor = Where(vanishes, exact, rounded)
"""
_AROUND = f"""
    rounded_i = Cast <to = {_INT64}> (rounded)
    short_i = Max(rounded_i, one)
    turn = Constant <value = int64[2] {{1, 0}}> ()
    other_d = Gather(size_d, turn)
    product = Mul(factor, size_d)
    quotient = Div(product, other_d)
    truncated = Cast <to = {_INT64}> (quotient)
    long_i = Max(truncated, one)
    is_short = Equal(size, low)
    scaled_size = Where(is_short, short_i, long_i)
"""
_KEPT = """
    fits = Equal(low, rounded_i)
    around = Where(fits, size, scaled_size)
"""
# YOLOS's processor has no exception for upright pictures of the right width.
_KEPT_LYING = """
    matches = Equal(low, rounded_i)
    first = Constant <value = int64 {0}> ()
    image_h = Gather(size, first)
    lies = Equal(image_h, low)
    fits = And(matches, lies)
    around = Where(fits, size, scaled_size)
"""
_FLOORED_16 = """
    sixteen = Constant <value = int64 {16}> ()
    patches = Div(around, sixteen)
    floored = Mul(patches, sixteen)
    target = Max(floored, sixteen)
"""
_FIT = f"""
    scales = Div(short_side, size_d)
    scale = ReduceMin <keepdims = 0> (scales)
    product = Mul(size_d, scale)
    truncated = Cast <to = {_INT64}> (product)
    target = Max(truncated, one)
"""
_ORIGINAL_SIZES = """
    batch_size = Shape <start = 0, end = 1> (images)
    unit = Constant <value = int64[1] {1}> ()
    rows = Concat <axis = 0> (batch_size, unit)
    original_sizes_hw = Expand(size, rows)
"""
