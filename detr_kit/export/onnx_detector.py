"""A detector in an ONNX file, run by ONNX Runtime; torch is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.export.metadata import FileMetadata
from detr_kit.export.runtime import CPU, open_session, run_session
from detr_kit.inference.predictor import Predictor
from detr_kit.sizes import SizeHW


class OnnxDetector(Predictor):
    """Finds objects as `Detector` does, with a file that `detr-kit export` wrote.

    `session` is ONNX Runtime's, `options` tell what the graph takes and gives. Calls from several
    threads run side by side.
    """

    def __init__(self, session: Any, metadata: FileMetadata, name: str = "session") -> None:
        super().__init__(metadata.categories, metadata.preprocessing)
        self.session = session
        self.options = metadata.options
        self.scoring = metadata.scoring
        self.name = name
        self._normalized = _normalized_levels(metadata.preprocessing.mean, self.preprocessing.std)
        table = metadata.categories
        self._used = np.array(table.used)
        self._name_of = dict(zip(table.ids, table.names, strict=True))

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        providers: Sequence[Any] = CPU,
        threads: int | None = None,
    ) -> OnnxDetector:
        """Open a file that `detr-kit export` wrote.

        `providers` are what ONNX Runtime calls its ways to compute, the preferred one first;
        `threads` is how many work on one operator, by default one for each core.

        Raises DetrKitError where the file is missing, damaged or written by something else, and
        where the preferred provider cannot be used.
        """
        session = open_session(path, providers=providers, threads=threads)
        texts = session.get_modelmeta().custom_metadata_map
        metadata = FileMetadata.from_texts(texts, str(path))
        taken = tuple(value.name for value in session.get_inputs())
        if taken != metadata.options.inputs:
            raise DetrKitError(
                f"{path}: its inputs are {', '.join(taken)}, but its metadata say "
                f"{', '.join(metadata.options.inputs)}"
            )
        return cls(session, metadata, str(path))

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resize a (H, W, 3) uint8 RGB picture, but where the graph does that."""
        return image if self.options.preprocess else super().prepare(image)

    def detect(
        self, resized: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW], names: list[str]
    ) -> list[Detections]:
        inputs = self._inputs(resized, original_sizes_hw)
        outputs = self.options.outputs
        values = run_session(self.session, outputs, inputs, self.name)
        found = dict(zip(outputs, values, strict=True))
        _require_finite(found, names)
        if self.options.postprocess:
            boxes = found["boxes_xyxy"]
            if self.options.preprocess:  # boxes are in pixels of the pictures that were given
                boxes = boxes * _scales(resized, original_sizes_hw)[:, None]
            return [
                Detections(boxes_xyxy, scores, ids, [self._name_of[i] for i in ids.tolist()])
                for boxes_xyxy, scores, ids in zip(
                    boxes, found["scores"], found["category_ids"], strict=True
                )
            ]
        return [
            self._detections(scores, boxes_cxcywh, size_hw)
            for scores, boxes_cxcywh, size_hw in zip(
                found["scores"], found["boxes_cxcywh"], original_sizes_hw, strict=True
            )
        ]

    def _inputs(
        self, resized: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW]
    ) -> dict[str, np.ndarray]:
        if self.options.preprocess:
            return {"images": np.stack(resized)}
        height, width = resized[0].shape[:2]
        pixels = np.empty((len(resized), 3, height, width), dtype=np.float32)
        for planes, picture in zip(pixels, resized, strict=True):
            for channel, levels in enumerate(self._normalized):
                np.take(levels, picture[..., channel], out=planes[channel], mode="clip")
        inputs = {"pixels": pixels}
        if self.options.mask:
            inputs["padding_mask"] = np.zeros((len(resized), height, width), dtype=np.bool_)
        if self.options.postprocess:
            inputs["original_sizes_hw"] = np.array(original_sizes_hw, dtype=np.int64)
        return inputs

    def _detections(
        self, scores: np.ndarray, boxes_cxcywh: np.ndarray, size_hw: SizeHW
    ) -> Detections:
        """Read (Q, C) probabilities and (Q, 4) boxes as `detr_kit.postprocess` does."""
        given = np.where(self._used, scores, -1.0)
        if self.scoring == "sigmoid":
            queries, columns = _best_pairs(given)
        else:
            columns = given.argmax(axis=1)
            queries = np.argsort(-given.max(axis=1), kind="stable")
            columns = columns[queries]
        center, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
        boxes = np.concatenate([center - half, center + half], axis=1)[queries]
        height, width = size_hw
        return Detections(
            boxes * np.array([width, height, width, height], dtype=boxes.dtype),
            scores[queries, columns],
            self.categories.ids_array[columns],
            [self.categories.names[column] for column in columns],
        )


def _best_pairs(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns (Q,) of the Q highest of (Q, C) scores, the highest first."""
    count, flat = len(scores), scores.ravel()
    places = np.sort(np.argpartition(-flat, count - 1)[:count])
    return np.divmod(places[np.argsort(-flat[places], kind="stable")], scores.shape[1])


def _normalized_levels(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> np.ndarray:
    """Return (3, 256) float32: what each level of each channel is normalised to."""
    fractions = np.arange(256, dtype=np.float32) / np.float32(255)
    mean_column, std_column = (np.array(v, dtype=np.float32)[:, None] for v in (mean, std))
    return (fractions - mean_column) / std_column


def _scales(pictures: Sequence[np.ndarray], sizes_hw: Sequence[SizeHW]) -> np.ndarray:
    """Return (B, 4): how much larger the sizes that pictures stand for are than the pictures."""
    given_hw = np.array([picture.shape[:2] for picture in pictures], dtype=np.float32)
    scale_hw = np.array(sizes_hw, dtype=np.float32) / given_hw
    return np.tile(scale_hw[:, ::-1], 2)


def _require_finite(found: dict[str, np.ndarray], names: list[str]) -> None:
    finite = np.ones(len(names), dtype=np.bool_)
    for value in found.values():
        finite &= np.isfinite(value).reshape(len(names), -1).all(axis=1)
    if not finite.all():
        broken = ", ".join(name for name, ok in zip(names, finite, strict=True) if not ok)
        raise DetrKitError(f"the model's output is not finite for image {broken}")
