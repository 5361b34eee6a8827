from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from detr_kit.errors import DetrKitError
from detr_kit.export.onnx_detector import OnnxDetector
from detr_kit.export.opening import open_predictor
from tests.export.onnx_files import (
    assert_same_detections,
    drawn_pictures,
    exported_file,
    small_detector,
)

PICTURES = drawn_pictures((100, 130), (200, 90), (96, 120), (100, 130))

# Imports of torch fail in it, and detections are printed.
WITHOUT_TORCH = """
import json, sys
import numpy as np

class Refused:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "onnx", "onnxscript"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refused())
from detr_kit.export.opening import open_predictor

predictor = open_predictor(sys.argv[1])
found = predictor.predict(list(np.load(sys.argv[2])), threshold=0.0)
assert not {"torch", "onnx", "onnxscript"} & sys.modules.keys()
print(json.dumps([[row.names, row.scores.tolist(), row.boxes_xyxy.tolist()] for row in found]))
"""


def detector_of(kind: str, **options: Any) -> OnnxDetector:
    return OnnxDetector.from_file(exported_file(kind, **options).path)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("plain", {}),
        ("yolos", {}),
        ("plain", {"preprocess": True, "postprocess": True}),
        pytest.param("yolos", {"preprocess": True, "postprocess": True}, marks=pytest.mark.slow),
        pytest.param("detr", {"mask": False}, marks=pytest.mark.slow),
        pytest.param("yolos", {"mask": False}, marks=pytest.mark.slow),
        pytest.param("detr", {"postprocess": True}, marks=pytest.mark.slow),
        pytest.param("yolos", {"mask": False, "postprocess": True}, marks=pytest.mark.slow),
        pytest.param("detr", {"preprocess": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_file_finds_what_the_detector_finds(kind: str, options: dict[str, Any]) -> None:
    found = detector_of(kind, **options).predict(PICTURES, threshold=0.0)
    expected = small_detector(kind).predict(PICTURES, threshold=0.0)
    # Resizing in the graph is one of 255 levels off here and there.
    scores, pixels = (1e-3, 0.1) if "preprocess" in options else (1e-5, 1e-3)
    assert_same_detections(found, expected, scores=scores, pixels=pixels)


def test_thresholds_and_batches_are_those_of_every_predictor() -> None:
    predictor = detector_of("plain")
    everything = predictor.predict(PICTURES, threshold=0.0)
    least = float(np.median(np.concatenate([found.scores for found in everything])))
    some = predictor.predict(PICTURES, threshold=least, batch_size=2)
    assert 0 < sum(map(len, some)) < sum(map(len, everything))
    assert_same_detections(some, [one.above(least) for one in everything], scores=1e-6, pixels=1e-3)
    assert everything[0].names != ["unused_5"] * len(everything[0])


def test_threads_may_share_a_file() -> None:
    predictor = detector_of("plain")
    expected = predictor.predict(PICTURES, threshold=0.0)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: predictor.predict(PICTURES, threshold=0.0), range(8)):
            assert_same_detections(found, expected, scores=1e-6, pixels=1e-3)


def test_the_number_of_threads_changes_nothing_else() -> None:
    predictor = OnnxDetector.from_file(exported_file("plain").path, threads=1)
    assert predictor.session.get_session_options().intra_op_num_threads == 1
    expected = detector_of("plain").predict(PICTURES, threshold=0.0)
    found = predictor.predict(PICTURES, threshold=0.0)
    assert_same_detections(found, expected, scores=1e-6, pixels=1e-3)
    with pytest.raises(DetrKitError, match="threads: expected at least 1, got 0"):
        OnnxDetector.from_file(exported_file("plain").path, threads=0)


@pytest.mark.parametrize("options", [{}, {"preprocess": True, "postprocess": True}], ids=str)
def test_torch_is_not_needed(tmp_path: Path, options: dict[str, Any]) -> None:
    pictures = np.stack(drawn_pictures((100, 130), (100, 130)))
    np.save(tmp_path / "pictures.npy", pictures)
    path = exported_file("plain", **options).path
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(path), str(tmp_path / "pictures.npy")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    expected = OnnxDetector.from_file(path).predict(list(pictures), threshold=0.0)
    for (names, scores, boxes), one in zip(json.loads(process.stdout), expected, strict=True):
        assert names == one.names
        np.testing.assert_allclose(scores, one.scores, atol=1e-6)
        np.testing.assert_allclose(boxes, one.boxes_xyxy, atol=1e-3)


def test_output_that_is_not_finite_names_the_picture(tmp_path: Path) -> None:
    model = onnx.load(exported_file("plain").path)
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [4])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(4, np.nan, np.float32), bias.name))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(DetrKitError, match="output is not finite for image number 0 of the list"):
        OnnxDetector.from_file(tmp_path / "a.onnx").predict(PICTURES[0])


def test_files_that_are_none_of_ours_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DetrKitError, match=r"none\.onnx: no such file$"):
        OnnxDetector.from_file(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(DetrKitError, match=r"text\.onnx: ONNX Runtime cannot load it: .+") as error:
        OnnxDetector.from_file(tmp_path / "text.onnx")
    assert "\n" not in str(error.value)
    model = onnx.load(exported_file("plain").path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(DetrKitError, match="not written by `detr-kit export`"):
        OnnxDetector.from_file(tmp_path / "other.onnx")


def test_metadata_that_do_not_fit_the_graph_are_refused(tmp_path: Path) -> None:
    model = onnx.load(exported_file("plain").path)
    options = next(e for e in model.metadata_props if e.key == "export_options")
    options.value = options.value.replace('"mask": true', '"mask": false')
    onnx.save(model, tmp_path / "a.onnx")
    message = "its inputs are pixels, padding_mask, but its metadata say pixels$"
    with pytest.raises(DetrKitError, match=message):
        OnnxDetector.from_file(tmp_path / "a.onnx")


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported_file("plain").path
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DetrKitError, match="need onnxruntime: pip install onnxruntime"):
        OnnxDetector.from_file(path)


def test_a_provider_that_is_not_there_is_named() -> None:
    with pytest.raises(DetrKitError, match=r"has no NoSuchProvider; it has .*CPUExecutionProvider"):
        OnnxDetector.from_file(exported_file("plain").path, providers=["NoSuchProvider"])


def test_what_fails_while_it_runs_is_one_line() -> None:
    predictor = detector_of("yolos")
    with pytest.raises(DetrKitError, match=r"yolos\.onnx: ONNX Runtime failed: .+") as error:
        predictor.detect(drawn_pictures((3, 3)), [(3, 3)], ["tiny"])
    assert "\n" not in str(error.value)


def test_opening_chooses_by_the_ending(tmp_path: Path) -> None:
    path = exported_file("plain").path
    assert isinstance(open_predictor(path), OnnxDetector)
    assert isinstance(open_predictor(str(path), device="cpu", precision="fp32"), OnnxDetector)
    with pytest.raises(DetrKitError, match="expected a folder with"):
        open_predictor(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "mps"}, "device 'mps': ONNX files run on cpu and cuda"),
        ({"device": "cuda:x"}, "device 'cuda:x': ONNX files run on cpu and cuda"),
        ({"precision": "fp16", "compile": True}, r"\.onnx: an ONNX file .* no precision, compile$"),
    ],
)
def test_what_a_file_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DetrKitError, match=message):
        open_predictor(exported_file("plain").path, **options)


def test_a_device_that_is_not_there_is_named() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(DetrKitError, match="this ONNX Runtime has no CUDAExecutionProvider"):
        open_predictor(exported_file("plain").path, device="cuda")


@pytest.mark.parametrize(
    ("kind", "options"), [("yolos", {}), ("plain", {"preprocess": True, "postprocess": True})]
)
def test_boxes_are_of_the_size_that_is_named(kind: str, options: dict[str, bool]) -> None:
    """A picture may stand for a larger one that it was shrunk from."""
    detector = detector_of(kind, **options)
    prepared = detector.prepare(PICTURES[0])
    height, width = PICTURES[0].shape[:2]
    (own,) = detector.detect([prepared], [(height, width)], ["one"])
    (larger,) = detector.detect([prepared], [(3 * height, 5 * width)], ["one"])
    expected = own.boxes_xyxy * np.array([5, 3, 5, 3])
    np.testing.assert_allclose(larger.boxes_xyxy, expected, rtol=1e-5, atol=1e-4)
