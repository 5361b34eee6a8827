"""A batch drawn as a model receives it: augmented, normalised, padded, with its boxes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import DataLoader

from detr_kit.boxes import cxcywh_to_xyxy
from detr_kit.config import RunConfig
from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.data.loading import Batch, collate, eval_loader, train_loader
from detr_kit.data.soundness import rows_of
from detr_kit.drawing import draw_boxes
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write
from detr_kit.preprocess import preprocessing_from

# Longer side of a drawn picture, padding included; the batch itself may be larger.
_LONG_SIDE = 640
_CAPTION_HEIGHT = 18
_GAP = 8


def show_batch(
    config: RunConfig,
    out: str | Path,
    *,
    split: Literal["train", "val"] = "train",
    epoch: int = 1,
    batch: int = 1,
) -> list[str]:
    """Draw a batch of a run into the picture file `out`; return lines that describe it.

    The batch is number `batch` of `epoch`, both counted from 1, of a run in one process. Raises
    DetrKitError where the split or the batch is missing.
    """
    out = Path(out)
    if min(epoch, batch) < 1:
        raise DetrKitError("epoch and batch are counted from 1")
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise DetrKitError(f"{out}: not the name of a picture file, such as batch.png")
    loader, annotations = _loader(config, split)
    collated = _batch(loader, epoch, batch)
    sheet = _contact_sheet(_panels(collated, annotations, config))
    with atomic_write(out) as path:
        sheet.save(path)
    return _described(collated, config)


def _loader(config: RunConfig, split: str) -> tuple[DataLoader[Batch], CocoAnnotations]:
    chosen = config.data.train if split == "train" else config.data.val
    if chosen is None:
        raise DetrKitError(f"key 'data.{split}' is missing")
    # One batch is read here and now: workers would start for nothing.
    data = config.data.model_copy(update={"num_workers": 0})
    config = config.model_copy(update={"data": data})
    annotations = load_annotations(chosen.annotations, on_bad_box=data.on_bad_box)
    if split == "train":
        return train_loader(config, annotations), annotations
    batch_size = config.evaluation.batch_size or config.pictures_a_batch
    preprocessing = preprocessing_from(config.image_size)
    loader = eval_loader(
        annotations,
        chosen.images,
        preprocessing,
        batch_size=batch_size,
        on_bad_image="leave_out" if data.on_bad_image == "skip" else "raise",
    )
    return loader, annotations


def _batch(loader: DataLoader[Batch], epoch: int, batch: int) -> Batch:
    sampler = loader.batch_sampler
    assert sampler is not None
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch - 1)
    batches = list(sampler)
    if batch > len(batches):
        raise DetrKitError(f"an epoch has {len(batches)} batches, there is no number {batch}")
    dataset: Any = loader.dataset
    return collate([dataset[key] for key in batches[batch - 1]])


def _panels(
    batch: Batch, annotations: CocoAnnotations, config: RunConfig
) -> list[tuple[str, Image.Image]]:
    """Return each picture of a batch with its caption."""
    images, targets = batch
    categories = annotations.categories
    mean, std = config.image_size.mean, config.image_size.std
    received = images.normalized(mean, std)
    # What the model gets, read back: padding is zero after normalising, the mean colour.
    floats = received.pixels.permute(0, 2, 3, 1).numpy() * np.array(std) + np.array(mean)
    pixels = (floats * 255).round().clip(0, 255).astype(np.uint8)
    scale = min(1.0, _LONG_SIDE / max(pixels.shape[1:3]))
    ends = np.cumsum(targets.counts)
    places = rows_of(np.array(images.image_ids, dtype=np.int64), annotations.image_ids)
    panels = []
    for row, (height, width) in enumerate(images.sizes_hw):
        objects = slice(ends[row] - targets.counts[row], ends[row])
        boxes = cxcywh_to_xyxy(targets.boxes_cxcywh[objects]).numpy()
        labels = targets.labels[objects].tolist()
        canvas = _scaled(pixels[row], scale)
        _hatch_padding(canvas, round(width * scale), round(height * scale))
        draw_boxes(
            canvas,
            boxes * np.array([width, height, width, height]) * scale,
            [categories.names[label] for label in labels],
            [categories.ids[label] for label in labels],
        )
        name = annotations.file_names[places[row]]
        caption = f"{name} (id {images.image_ids[row]}): {width} x {height}, {len(labels)} objects"
        panels.append((caption, canvas))
    return panels


def _scaled(pixels: np.ndarray, scale: float) -> Image.Image:
    canvas = Image.fromarray(pixels)
    if scale == 1:
        return canvas
    width, height = (max(round(side * scale), 1) for side in canvas.size)
    return canvas.resize((width, height), Image.Resampling.BILINEAR)


def _hatch_padding(canvas: Image.Image, width: int, height: int) -> None:
    """Draw stripes over what lies outside the picture's own width and height, in place."""
    stripes = canvas.copy()
    pen = ImageDraw.Draw(stripes)
    for start in range(-canvas.height, canvas.width, 12):
        pen.line((start, 0, start + canvas.height, canvas.height), fill=(90, 90, 90), width=2)
    outside = Image.new("L", canvas.size, 255)
    outside.paste(0, (0, 0, width, height))
    canvas.paste(stripes, mask=outside)


def _contact_sheet(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    if not panels:
        raise DetrKitError("no picture of the batch could be read")
    width, height = panels[0][1].size
    columns = math.ceil(math.sqrt(len(panels) * height / width))
    rows = math.ceil(len(panels) / columns)
    cell_w, cell_h = width + _GAP, height + _CAPTION_HEIGHT + _GAP
    sheet = Image.new("RGB", (columns * cell_w + _GAP, rows * cell_h + _GAP), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_CAPTION_HEIGHT - 5)
    for place, (caption, canvas) in enumerate(panels):
        x, y = _GAP + place % columns * cell_w, _GAP + place // columns * cell_h
        pen.text((x, y), caption, fill=(0, 0, 0), font=font)
        sheet.paste(canvas, (x, y + _CAPTION_HEIGHT))
    return sheet


def _described(batch: Batch, config: RunConfig) -> list[str]:
    images, targets = batch
    received = images.normalized(config.image_size.mean, config.image_size.std)
    low, high = float(received.pixels.min()), float(received.pixels.max())
    shape = " x ".join(map(str, received.pixels.shape))
    padded = float(received.padding_mask.float().mean())
    lines = [
        f"batch {shape} from {low:.2f} to {high:.2f}, {padded:.0%} of it padding",
        f"{len(targets.labels)} objects in {len(images)} pictures",
    ]
    return [*lines, *(f"unreadable: {reason}" for reason in images.skipped)]
