"""Running a model over batches: the one way that evaluation, training and Detector share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.postprocess import to_detections
from detr_kit.preprocess import Preprocessing
from detr_kit.structures import CollatedImages, ModelOutput


def predict_batches(
    model: nn.Module,
    batches: Iterable[CollatedImages],
    *,
    categories: CategoryTable,
    preprocessing: Preprocessing,
    device: torch.device | str,
    threshold: float = 0.0,
    autocast: torch.dtype | None = None,
    name_of: Callable[[int], str] = str,
) -> Iterator[tuple[int, Detections]]:
    """Yield (image id, detections) for every image, in order.

    The model must be on `device`. While the iterator runs the model is in evaluation mode; every
    module's own flag is restored at its end, also where it ends early. `autocast` is the half
    precision in which operations run that are safe in it. `name_of` turns an image id into what
    an error calls the image. Raises DetrKitError for output that is not finite.
    """
    with _evaluation_mode(model):
        for batch in batches:
            if not len(batch):  # none of its pictures could be read
                continue
            on_device = batch.to(device)
            with torch.autocast(on_device.pixels.device.type, autocast, autocast is not None):
                output = _forward(model, on_device, preprocessing)
            found = to_detections(
                output,
                batch.original_sizes_hw,
                categories,
                threshold=threshold,
                image_names=[name_of(image_id) for image_id in batch.image_ids],
            )
            yield from zip(batch.image_ids, found, strict=True)


# Not around the loop: a generator would leave inference mode on in its caller between two items.
@torch.inference_mode()
def _forward(
    model: nn.Module,
    batch: CollatedImages,
    preprocessing: Preprocessing,
) -> ModelOutput:
    images = batch.normalized(preprocessing.mean, preprocessing.std)
    # A model that its owner cast, say to float64, is given what it computes in.
    parameter = next(model.parameters(), images.pixels)
    images = replace(images, pixels=images.pixels.to(parameter.dtype))
    return model(images)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()` for a while; each module's flag is kept, as frozen parts may differ."""
    training = [module for module in model.modules() if module.training]
    if training:  # else nothing is touched: modules drop what they remember where the mode is set
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
