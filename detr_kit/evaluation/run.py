"""Evaluation of a detector: predict every image of an annotation file, then score."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.data.dataset import warn_of_skipped
from detr_kit.data.loading import eval_loader, noting_skipped
from detr_kit.data.pictures import Picture, PictureFolder
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.coco import evaluate_results
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.metrics import CocoMetrics
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.results import result_columns, write_results
from detr_kit.images import ImageError, ImageInput
from detr_kit.prediction import predict_batches
from detr_kit.preprocess import Preprocessing

OnBadImage = Literal["raise", "skip"]


@runtime_checkable
class Evaluated(Protocol):
    """What is read of a detector of torch; `detr_kit.inference.Detector` has it."""

    model: nn.Module
    categories: CategoryTable
    preprocessing: Preprocessing
    device: torch.device


class Streaming(Protocol):
    """What is read of a detector that torch does not run; `detr_kit.OnnxDetector` has it."""

    categories: CategoryTable

    def stream(
        self, images: Iterable[ImageInput], threshold: float, batch_size: int
    ) -> Iterable[tuple[ImageInput, Detections]]: ...


def evaluate(
    detector: Evaluated | Streaming,
    annotations: str | Path,
    images: str | Path,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    results_path: str | Path | None = None,
    on_bad_image: OnBadImage = "raise",
    options: ScoringOptions | None = None,
) -> CocoMetrics:
    """Return the COCO figures of a detector on an annotation file and its folder of images.

    Equal to scoring `detector.predict` at threshold 0. The detector may know more categories than
    the file; what it finds of those is left out, as COCO scores it. The detections are written to
    `results_path`, a COCO results file, where one is given. With `on_bad_image="skip"`, unreadable
    pictures count as without detections, with a `SkippedPicturesWarning`.

    Raises DetrKitError where the file has a category that the detector does not have under the
    same id and name.
    """
    found = find_in_dataset(
        detector,
        annotations,
        images,
        batch_size=batch_size,
        num_workers=num_workers,
        on_bad_image=on_bad_image,
    )
    if results_path is not None:
        write_results(results_path, found)
    return evaluate_results(found, annotations, options=options)


def find_in_dataset(
    detector: Evaluated | Streaming,
    annotations: str | Path,
    images: str | Path,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    on_bad_image: OnBadImage = "raise",
) -> ResultColumns:
    """Return what a detector finds in all images of a file; see `evaluate`."""
    if isinstance(detector, str | Path):
        raise DetrKitError(
            f"{detector}: evaluate takes a detector: Detector.from_checkpoint({str(detector)!r})"
        )
    # What is wrong with a box is scoring's to judge; here only the images matter.
    loaded = load_annotations(annotations, on_bad_box="skip")
    require_known(loaded.categories, detector.categories, str(annotations))
    skipped: list[str] = []
    if isinstance(detector, Evaluated):
        loader = eval_loader(
            loaded,
            images,
            detector.preprocessing,
            batch_size=batch_size,
            num_workers=num_workers,
            on_bad_image="leave_out" if on_bad_image == "skip" else "raise",
        )
        predictions = predict_batches(
            detector.model,
            noting_skipped(loader, skipped),
            categories=detector.categories,
            preprocessing=detector.preprocessing,
            device=detector.device,
            name_of="id {}".format,
        )
    else:
        note = skipped.append if on_bad_image == "skip" else None
        predictions = _streamed(detector, PictureFolder(loaded, images), batch_size, note)
    found = _scored(predictions, loaded)
    warn_of_skipped(skipped)
    return result_columns(found)


def _streamed(
    detector: Streaming,
    pictures: PictureFolder,
    batch_size: int,
    note: Callable[[str], None] | None,
) -> Iterator[tuple[int, Detections]]:
    """Yield (image id, detections) of a detector that reads ahead by itself."""
    ids: deque[int] = deque()  # of the pictures that are with the detector

    def readable() -> Iterator[np.ndarray]:
        for image_id, picture in zip(
            pictures.annotations.image_ids.tolist(), pictures, strict=True
        ):
            pixels = _read(picture, note)
            if pixels is not None:
                ids.append(image_id)
                yield pixels

    for _, detections in detector.stream(readable(), 0.0, batch_size):
        yield ids.popleft(), detections


def _read(picture: Picture, note: Callable[[str], None] | None) -> np.ndarray | None:
    try:
        return picture.read()
    except ImageError as error:
        if note is None:
            raise
        note(str(error))
        return None


def _scored(
    predictions: Iterable[tuple[int, Detections]], loaded: CocoAnnotations
) -> dict[int, Detections]:
    """Return by image id what is found of the categories that the file has."""
    scored = loaded.categories.ids_array
    console = Console(stderr=True)
    return {
        image_id: detections.select(np.isin(detections.category_ids, scored))
        for image_id, detections in track(
            predictions,
            "evaluating",
            total=len(loaded),
            console=console,
            disable=not console.is_terminal,
        )
    }


def require_known(file_table: CategoryTable, own_table: CategoryTable, file_name: str) -> None:
    """Raise where the file has a category that the detector lacks or calls otherwise."""
    own = {id_: own_table.names[column] for id_, column in own_table.column_of.items()}
    for id_, name in zip(file_table.ids, file_table.names, strict=True):
        if own.get(id_) != name:
            known = f"calls id {id_} {own[id_]!r}" if id_ in own else f"has no id {id_}"
            raise DetrKitError(
                f"{file_name}: category id {id_} is {name!r} there, but the detector {known}"
            )
