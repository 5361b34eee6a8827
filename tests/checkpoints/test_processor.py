"""Reading and writing the file that says how a Hugging Face folder's pictures are prepared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.checkpoints.processor import (
    default_preprocessing,
    processor_json,
    processor_notes,
    read_processor,
)
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule

FAMILIES = ("detr", "yolos")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "preprocessor_config.json"


def read(path: Path, values: Any, family: str = "detr") -> Preprocessing:
    path.write_text(json.dumps(values))
    preprocessing, notes = read_processor(path, family)
    assert notes == ()
    return preprocessing


class TestSize:
    @pytest.mark.parametrize(
        ("values", "rule"),
        [
            ({"size": 600, "max_size": 1000}, SizeRule("huggingface", 600, 1000)),
            ({"size": 600}, SizeRule("huggingface", 600, 1333)),
            ({"max_size": 1000}, SizeRule("huggingface", 800, 1333)),
            (
                # A cap beside sizes with names means nothing.
                {"size": {"shortest_edge": 600, "longest_edge": 900}, "max_size": 1000},
                SizeRule("huggingface", 600, 900),
            ),
            ({"size": {"height": 320, "width": 320}}, SizeRule("square", 320)),
            ({"size": {"max_height": 320, "max_width": 320}}, SizeRule("fit", 320)),
            (
                {"size": {"height": 320, "width": 320, "shortest_edge": None}},
                SizeRule("square", 320),
            ),
        ],
    )
    def test_every_form_is_read(self, path: Path, values: dict, rule: SizeRule) -> None:
        assert read(path, values).size_rule == rule

    @pytest.mark.parametrize(
        ("name", "rule"),
        [
            ("DetrImageProcessor", "huggingface"),
            ("DetrImageProcessorFast", "huggingface"),
            ("YolosImageProcessor", "huggingface_16"),
            ("YolosImageProcessorFast", "huggingface_16"),
        ],
    )
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_named_type_decides_about_multiples_of_16(
        self, path: Path, name: str, rule: str, family: str
    ) -> None:
        assert read(path, {"image_processor_type": name}, family).size_rule.rule == rule

    @pytest.mark.parametrize("name", ["Detr", "Yolos"])
    def test_old_files_of_the_hub(self, path: Path, name: str) -> None:
        values = {
            "feature_extractor_type": f"{name}FeatureExtractor",
            "format": "coco_detection",
            "do_normalize": True,
            "do_resize": True,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.5, 0.6],
            "size": 512,
            "max_size": 864,
        }
        rule = "huggingface_16" if name == "Yolos" else "huggingface"
        expected = Preprocessing(SizeRule(rule, 512, 864), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert read(path, values) == expected

    @pytest.mark.parametrize("family", FAMILIES)
    def test_missing_keys_and_null_are_the_defaults(self, path: Path, family: str) -> None:
        expected = default_preprocessing(family)
        rule = "huggingface_16" if family == "yolos" else "huggingface"
        assert expected == Preprocessing(SizeRule(rule, 800, 1333), IMAGENET_MEAN, IMAGENET_STD)
        assert read(path, {}, family) == expected
        keys = ("image_processor_type", "do_resize", "size", "resample", "rescale_factor")
        assert read(path, dict.fromkeys((*keys, "image_mean", "pad_size")), family) == expected


class TestNormalisation:
    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"rescale_factor": 1 / 128},
            {"do_rescale": False},
            {"do_normalize": False},
            {"do_normalize": False, "rescale_factor": 2 / 255},
            {"do_normalize": False, "do_rescale": False},
            {"image_mean": 0.5, "image_std": 0.25},
        ],
    )
    def test_a_pixel_gets_the_value_that_the_file_says(self, path: Path, values: dict) -> None:
        ours = read(path, values)
        for channel in range(3):
            for level in (0, 100, 255):
                rescaled = values.get("do_rescale", True)
                told = level * values.get("rescale_factor", 1 / 255) if rescaled else level
                if values.get("do_normalize", True):
                    mean = values.get("image_mean", IMAGENET_MEAN[channel])
                    std = values.get("image_std", IMAGENET_STD[channel])
                    told = (told - mean) / std
                got = (level / 255 - ours.mean[channel]) / ours.std[channel]
                assert got == pytest.approx(told, rel=1e-12, abs=1e-12)


class TestFaults:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"do_resize": False}, "'do_resize': False is not supported, only True"),
            ({"do_center_crop": True}, "'do_center_crop': True is not supported"),
            ({"resample": 3}, "'resample': 3 is not supported, only 2"),
            ({"size": {"height": 320, "width": 640}}, "'size': .* is not supported"),
            ({"size": {"max_height": 320, "max_width": 640}}, "'size': .* is not supported"),
            ({"size": {"shortest_edge": 800}}, "'size': .* must have shortest_edge and longest"),
            ({"size": 800, "max_size": None}, "'size': .* must have shortest_edge and longest"),
            ({"size": {"shortest_edge": 8, "longest_edge": 16}}, "'size': .* at least 16"),
            ({"size": {}}, "'size': {} is not supported"),
            ({"size": {"height": 320, "width": "320"}}, "'size': cannot use the value"),
            ({"size": [320, 320]}, "'size': cannot use the value"),
            ({"size": 0}, "'size': cannot use the value 0"),
            ({"size": True}, "'size': cannot use the value True"),
            ({"resample": "bilinear"}, "'resample': cannot use the value 'bilinear'"),
            ({"do_resize": 1}, "'do_resize': cannot use the value 1"),
            ({"image_mean": [0.5, 0.5]}, "'image_mean': cannot use the value"),
            ({"image_mean": "0.5"}, "'image_mean': cannot use the value"),
            ({"image_std": [0.5, 0.0, 0.5]}, "'image_std': cannot use the value"),
            ({"image_mean": [0.5, 0.5, math.nan]}, "'image_mean': cannot use the value"),
            ({"rescale_factor": 0}, "'rescale_factor': cannot use the value 0"),
            ({"image_processor_type": 3}, "'image_processor_type': cannot use the value 3"),
        ],
    )
    def test_what_cannot_be_followed_is_named(self, path: Path, values: dict, message: str) -> None:
        path.write_text(json.dumps(values))
        with pytest.raises(
            DetrKitError, match=f"preprocessor_config.json: key {message}"
        ) as raised:
            read_processor(path, "yolos")
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
    def test_what_is_no_json_is_named(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(DetrKitError, match=r"preprocessor_config\.json: not a readable json"):
            read_processor(path, "detr")

    def test_a_missing_file_and_another_json_are_named(self, path: Path) -> None:
        with pytest.raises(DetrKitError, match=r"preprocessor_config\.json: not a readable json"):
            read_processor(path, "detr")
        path.write_text("[]")
        with pytest.raises(DetrKitError, match=r"preprocessor_config\.json: expected a json obj"):
            read_processor(path, "detr")


class TestNotes:
    def test_a_size_to_pad_to_is_noted(self, path: Path) -> None:
        path.write_text(json.dumps({"pad_size": {"height": 1333, "width": 1333}}))
        preprocessing, notes = read_processor(path, "detr")
        assert preprocessing == default_preprocessing("detr")
        assert [note.split()[0] for note in notes] == ["pad_size"]

    @pytest.mark.parametrize("name", ["ConditionalDetrImageProcessor", "CLIPImageProcessor"])
    def test_an_unknown_type_is_noted(self, path: Path, name: str) -> None:
        path.write_text(json.dumps({"image_processor_type": name}))
        preprocessing, notes = read_processor(path, "yolos")
        assert preprocessing == default_preprocessing("detr")
        assert [note.split()[0] for note in notes] == [name]


class TestWriting:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("rule", ["own", "square", "fit"])
    def test_what_is_written_reads_back(self, path: Path, family: str, rule: str) -> None:
        own = default_preprocessing(family).size_rule.rule
        size_rule = SizeRule(own, 512, 853) if rule == "own" else SizeRule(rule, 320)
        ours = Preprocessing(size_rule, (0.1, 0.2, 0.3), (0.4, 0.5, 1 / 255))
        for told in FAMILIES:  # the file names its type, which decides
            assert read(path, processor_json(ours, family), told) == ours
        assert processor_notes(ours) == ()

    @pytest.mark.parametrize(("family", "rule"), [("detr", "detr"), ("yolos", "yolos_16")])
    def test_official_rules_become_the_processor_s(
        self, path: Path, family: str, rule: str
    ) -> None:
        ours = Preprocessing(SizeRule(rule, 800, 1333), IMAGENET_MEAN, IMAGENET_STD)
        assert read(path, processor_json(ours, family)) == default_preprocessing(family)
        (note,) = processor_notes(ours)
        assert f"size rule {rule}: " in note

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
    def test_the_notes_tell_the_largest_difference(self, size_hw: tuple[int, int]) -> None:
        official, theirs = (
            sorted(SizeRule(rule, 800, 1333).target_hw(size_hw)) for rule in ("detr", "huggingface")
        )
        assert official[0] == theirs[0]
        ratio = max(size_hw) / min(size_hw)
        assert abs(official[1] - theirs[1]) <= math.ceil(ratio / 2)

    @pytest.mark.parametrize(
        ("family", "rule", "long_side", "message"),
        [
            ("detr", "yolos_16", 1333, "DetrImageProcessor .* no size rule like yolos_16"),
            ("detr", "huggingface_16", 1333, "no size rule like huggingface_16"),
            ("yolos", "detr", 1333, "YolosImageProcessor .* no size rule like detr"),
            ("yolos", "huggingface", 1333, "no size rule like huggingface"),
            ("detr", "detr", None, "needs a cap"),
        ],
    )
    def test_what_the_processors_cannot_do_is_refused(
        self, family: str, rule: str, long_side: int | None, message: str
    ) -> None:
        ours = Preprocessing(SizeRule(rule, 800, long_side), IMAGENET_MEAN, IMAGENET_STD)
        with pytest.raises(DetrKitError, match=message):
            processor_json(ours, family)
