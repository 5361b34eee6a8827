"""What an exported file says of itself: categories, preprocessing, and what is in its graph.

It is what `detector.json` holds, as texts that any ONNX tool shows. No torch is needed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import Preprocessing

if TYPE_CHECKING:
    from detr_kit.structures import Scoring

# Version 2 is of files whose scores are sigmoids, which readers of version 1 would misread.
_VERSION_OF: dict[Scoring, int] = {"softmax": 1, "sigmoid": 2}

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class ExportOptions:
    """What a graph takes and gives, see `docs/export.md`.

    - `mask`: pictures of a batch may be padded, and a mask says where.
    - `preprocess`: it takes uint8 pictures, resizes and normalises them.
    - `postprocess`: it gives boxes in pixels and category ids, best first.
    - `precision`: of the weights and of most of the computation; inputs and outputs keep theirs.

    Raises DetrKitError where they contradict each other.
    """

    mask: bool
    preprocess: bool
    postprocess: bool
    precision: Precision

    def __post_init__(self) -> None:
        if self.mask and self.preprocess:
            raise DetrKitError(
                "mask and preprocess exclude each other: a graph that resizes takes pictures of "
                "one size, in which nothing is padded"
            )
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise DetrKitError(f"precision {self.precision!r} is unknown; there are {known}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the graph's inputs, in order."""
        if self.preprocess:
            return ("images",)
        sizes = ("original_sizes_hw",) if self.postprocess else ()
        return ("pixels", *(("padding_mask",) if self.mask else ()), *sizes)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs, in order."""
        if self.postprocess:
            return ("boxes_xyxy", "scores", "category_ids")
        return ("scores", "boxes_cxcywh")


@dataclass(frozen=True)
class FileMetadata:
    """What turns pictures into a graph's inputs, and its outputs into detections."""

    categories: CategoryTable
    preprocessing: Preprocessing
    options: ExportOptions
    scoring: Scoring = "softmax"

    def to_texts(self) -> dict[str, str]:
        """Return `metadata_props` of an ONNX file: texts of json."""
        values = {
            "format_version": _VERSION_OF[self.scoring],
            "scoring": self.scoring,
            "categories": self.categories.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "export_options": asdict(self.options),
        }
        return {key: json.dumps(value) for key, value in values.items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], name: str) -> FileMetadata:
        """Read what `to_texts` wrote; raises DetrKitError naming the file where it is not whole."""
        keys = ("format_version", "categories", "preprocessing", "export_options")
        missing = [key for key in keys if key not in texts]
        if missing:
            raise DetrKitError(
                f"{name}: not written by `detr-kit export`: its metadata lack {', '.join(missing)}"
            )
        try:
            values: dict[str, Any] = {key: json.loads(texts[key]) for key in keys}
            scoring = json.loads(texts.get("scoring", '"softmax"'))  # older files do not name it
        except ValueError as error:
            raise DetrKitError(f"{name}: its metadata are damaged: {error}") from error
        if values["format_version"] not in _VERSION_OF.values():
            known = " and ".join(map(str, _VERSION_OF.values()))
            raise DetrKitError(
                f"{name}: format version {values['format_version']!r} is unknown, this release "
                f"reads {known}"
            )
        if scoring not in _VERSION_OF:
            raise DetrKitError(f"{name}: its metadata are damaged: scoring {scoring!r} is unknown")
        try:
            return cls(
                CategoryTable.from_json(values["categories"]),
                Preprocessing.from_json(values["preprocessing"]),
                ExportOptions(**values["export_options"]),
                scoring,
            )
        except (DetrKitError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise DetrKitError(f"{name}: its metadata are damaged: {error}") from error
