from __future__ import annotations

import json
import re

import pytest

from detr_kit.errors import DetrKitError
from detr_kit.export.metadata import ExportOptions, FileMetadata
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from tests.export.small_models import TABLE

METADATA = FileMetadata(
    TABLE,
    Preprocessing(SizeRule("detr", 800, None), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    ExportOptions(mask=False, preprocess=True, postprocess=True, precision="int8"),
)
RAW, PROCESSED = "scores boxes_cxcywh", "boxes_xyxy scores category_ids"


def test_metadata_survive_being_written_as_texts() -> None:
    texts = METADATA.to_texts()
    assert all(isinstance(text, str) for text in texts.values())
    assert FileMetadata.from_texts(texts, "a.onnx") == METADATA


def test_texts_are_json_that_others_can_read() -> None:
    texts = METADATA.to_texts()
    assert json.loads(texts["categories"])[0] == {"id": 2, "name": "cat", "used": True}
    assert json.loads(texts["preprocessing"])["size"]["short_side"] == 800


def test_a_file_of_others_is_told_from_a_damaged_one() -> None:
    with pytest.raises(DetrKitError, match=r"a\.onnx: not written by `detr-kit export`"):
        FileMetadata.from_texts({"names": "{0: 'cat'}"}, "a.onnx")
    texts = METADATA.to_texts()
    del texts["categories"]
    with pytest.raises(DetrKitError, match="its metadata lack categories"):
        FileMetadata.from_texts(texts, "a.onnx")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("format_version", "99", "format version 99 is unknown"),
        ("categories", "{", "damaged"),
        ("categories", "[]", "damaged: category table"),
        ("categories", '[{"id": 1}]', "damaged"),
        ("preprocessing", "{}", "damaged: preprocessing: key 'size' is missing"),
        ("export_options", '{"mask": true}', "damaged"),
    ],
)
def test_what_cannot_be_read_is_named(key: str, text: str, message: str) -> None:
    with pytest.raises(DetrKitError, match=rf"^a\.onnx: .*{re.escape(message)}"):
        FileMetadata.from_texts({**METADATA.to_texts(), key: text}, "a.onnx")


@pytest.mark.parametrize(
    ("mask", "preprocess", "postprocess", "inputs", "outputs"),
    [
        (True, False, False, "pixels padding_mask", RAW),
        (False, False, False, "pixels", RAW),
        (True, False, True, "pixels padding_mask original_sizes_hw", PROCESSED),
        (False, False, True, "pixels original_sizes_hw", PROCESSED),
        (False, True, False, "images", RAW),
        (False, True, True, "images", PROCESSED),
    ],
)
def test_options_decide_inputs_and_outputs(
    mask: bool, preprocess: bool, postprocess: bool, inputs: str, outputs: str
) -> None:
    options = ExportOptions(mask, preprocess, postprocess, "fp32")
    assert options.inputs == tuple(inputs.split())
    assert options.outputs == tuple(outputs.split())


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(DetrKitError, match="mask and preprocess exclude each other"):
        ExportOptions(mask=True, preprocess=True, postprocess=False, precision="fp32")
    with pytest.raises(DetrKitError, match="precision 'fp8' is unknown; there are fp32, fp16"):
        ExportOptions(mask=True, preprocess=False, postprocess=False, precision="fp8")  # type: ignore[arg-type]
