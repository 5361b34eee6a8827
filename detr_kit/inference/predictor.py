"""From pictures of any kind and size to detections: what all detectors share, whatever runs them.

Pictures are grouped by the size that they are resized to, so that no batch is ever padded: what is
found in a picture does not depend on the pictures that it is handed over with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress as suppressed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import cast

import numpy as np
from PIL import Image

from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError, require
from detr_kit.images import (
    TOO_LARGE,
    UNREADABLE,
    ImageError,
    ImageInput,
    is_tensor,
    read_image,
)
from detr_kit.inference.inputs import expand_inputs
from detr_kit.inference.overlaps import suppress
from detr_kit.inference.read_ahead import read_ahead
from detr_kit.inference.thresholds import Threshold, above, resolve_thresholds
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeHW

# So many batches of pictures, or bytes of them, may wait for others of their size before they go
# through the model.
WAITING_BATCHES = 4
WAITING_BYTES = 1 << 28
_LOADING = Lock()
_NOTHING = np.empty((0, 0, 3), dtype=np.uint8)


class Predictor(ABC):
    """Finds objects in pictures; what runs the model is in the classes made of this one."""

    def __init__(self, categories: CategoryTable, preprocessing: Preprocessing) -> None:
        self.categories = categories
        self.preprocessing = preprocessing

    @abstractmethod
    def detect(
        self, resized: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW], names: list[str]
    ) -> list[Detections]:
        """Return everything found in prepared pictures of one size, best score first.

        `resized` holds (H, W, 3) uint8 arrays that `prepare` gave, `original_sizes_hw` the sizes
        before it, which the boxes refer to; `names` are what errors call the pictures. May be
        called from several threads at once.
        """

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resize a (H, W, 3) uint8 RGB picture as the model was trained to see it."""
        return self.preprocessing.apply(image)

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        threshold: Threshold = 0.5,
        batch_size: int = 8,
        *,
        nms: float | None = None,
    ) -> list[Detections]:
        """Detect in one picture or several: paths, PIL images, RGB arrays, tensors.

        Arrays are (H, W, 3) uint8, tensors (3, H, W) uint8 or floats in [0, 1], a (B, 3, H, W)
        tensor is B pictures; `detr_kit.images.read_image` lists what else is read.

        Returns one Detections a picture, in the given order, of the objects scored at least
        `threshold`: one number, or one for each category id or name. `nms` is the IoU above which
        the worse of two boxes of a class goes; these models are trained not to need that. A list
        of one for a single picture. May be called from several threads at once.

        Raises DetrKitError for a picture that cannot be read, naming it.
        """
        found = self.stream(_as_list(images), threshold, batch_size, nms=nms)
        return [detections for _, detections in found]

    def stream(
        self,
        images: str | Path | Iterable[ImageInput],
        threshold: Threshold = 0.5,
        batch_size: int = 8,
        *,
        nms: float | None = None,
        on_unreadable: Callable[[ImageError], None] | None = None,
    ) -> Iterator[tuple[ImageInput, Detections]]:
        """Yield every picture of a folder or of any iterable with what is found in it, in order.

        Pictures are fetched and read in other threads while the model works, a few batches ahead
        and no more: an endless iterable is fine. An array must not be written to until it comes
        back. `on_unreadable` is told of a picture that cannot be read, which is then left out;
        without it that is raised. The rest is as in `predict`.
        """
        if not isinstance(images, (str, Path)) and _is_one(images):
            raise DetrKitError("stream takes several pictures; give a single one to predict")
        require(batch_size >= 1, f"batch_size: expected at least 1, got {batch_size}")
        require(nms is None or 0 <= nms <= 1, f"nms: expected an IoU of 0 to 1, got {nms}")
        by_category = resolve_thresholds(threshold, self.categories)
        least = by_category if isinstance(threshold, Mapping) else threshold
        pictures = expand_inputs([images]) if isinstance(images, (str, Path)) else images

        def kept(found: Detections) -> Detections:
            sure = above(found, least)
            return sure if nms is None else suppress(sure, nms)

        in_order = self._in_order(pictures, batch_size, on_unreadable)
        return ((picture, kept(found)) for picture, found in in_order)

    def warm_up(self, sizes_hw: Sequence[SizeHW], batch_size: int = 1) -> None:
        """Run the model once for pictures of each (height, width), so that later calls are quick.

        First calls compile, choose algorithms and fill caches.
        """
        for size_hw in sizes_hw:
            prepared = self.prepare(np.zeros((*size_hw, 3), dtype=np.uint8))
            self.detect([prepared] * batch_size, [size_hw] * batch_size, ["warm-up"] * batch_size)

    def _in_order(
        self,
        pictures: Iterable[ImageInput],
        batch_size: int,
        on_unreadable: Callable[[ImageError], None] | None,
    ) -> Iterator[tuple[ImageInput, Detections]]:
        """Group by size and give back in order; an incomplete group waits only so long."""
        order: deque[_Picture] = deque()  # not yielded yet
        groups: dict[SizeHW, list[_Picture]] = {}  # not detected in yet
        # Threads for a single picture would only cost time.
        alone = isinstance(pictures, list) and len(pictures) == 1
        for index, (source, prepared) in enumerate(
            read_ahead(_fetched(pictures), self._read, ahead=0 if alone else batch_size)
        ):
            name = _name_of(source, index)
            try:
                resized, original_hw = prepared()
            except DetrKitError as error:
                unreadable = _named(error, name)
                if on_unreadable is None:
                    raise unreadable from error
                on_unreadable(unreadable)
                continue
            picture = _Picture(source, name, original_hw, resized)
            order.append(picture)
            group = groups.setdefault(picture.resized_hw, [])
            group.append(picture)
            if len(group) == batch_size:
                self._detect_group(groups.pop(picture.resized_hw))
            too_many = len(order) >= WAITING_BATCHES * batch_size
            too_large = sum(waiting.resized.nbytes for waiting in order) >= WAITING_BYTES
            if (too_many or too_large) and order[0].found is None:
                self._detect_group(groups.pop(order[0].resized_hw))
            yield from _finished(order)
        for group in groups.values():
            self._detect_group(group)
        yield from _finished(order)

    def _read(self, source: ImageInput) -> tuple[np.ndarray, SizeHW]:
        image = read_image(source)
        return self.prepare(image), (image.shape[0], image.shape[1])

    def _detect_group(self, group: list[_Picture]) -> None:
        found = self.detect(
            [picture.resized for picture in group],
            [picture.original_hw for picture in group],
            [picture.name for picture in group],
        )
        for picture, detections in zip(group, found, strict=True):
            picture.found = detections
            picture.resized = _NOTHING  # it may wait for earlier pictures for a while


@dataclass(eq=False)
class _Picture:
    """A picture on its way through the model."""

    source: ImageInput
    name: str
    original_hw: SizeHW
    resized: np.ndarray
    found: Detections | None = None

    @property
    def resized_hw(self) -> SizeHW:
        return self.resized.shape[0], self.resized.shape[1]


def _finished(order: deque[_Picture]) -> Iterator[tuple[ImageInput, Detections]]:
    while order and order[0].found is not None:
        picture = order.popleft()
        assert picture.found is not None
        yield picture.source, picture.found


def _fetched(pictures: Iterable[ImageInput]) -> Iterator[ImageInput]:
    """Yield the pictures, PIL's with their pixels, which two threads must not read at once."""
    for picture in pictures:
        if isinstance(picture, Image.Image):
            # What is wrong with a picture is told where it is asked for.
            with _LOADING, suppressed(*UNREADABLE, *TOO_LARGE):
                picture.load()
        yield picture


def _is_one(images: object) -> bool:
    return isinstance(images, (str, Path, Image.Image, np.ndarray)) or (
        is_tensor(images) and images.ndim == 3
    )


def _as_list(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    if _is_one(images):
        return [cast(ImageInput, images)]
    return list(cast(Sequence[ImageInput], images))


def _name_of(source: ImageInput, index: int) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"number {index} of the list"


def _named(error: DetrKitError, name: str) -> ImageError:
    """Say of which picture an error speaks; those of files do."""
    reason = error.args[1] if isinstance(error, ImageError) else str(error)
    return ImageError(name, reason)
