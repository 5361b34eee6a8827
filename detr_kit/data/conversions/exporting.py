"""What every export of labels does: boxes inside their pictures, one label file a picture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detr_kit.checkpoints.listing import listed
from detr_kit.data.box_faults import clip_boxes
from detr_kit.data.conversions.documents import CocoDocument, read_document
from detr_kit.data.conversions.picture_files import place_picture
from detr_kit.data.soundness import OnBadBox, require_boxes, require_images
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_folder, recover_folder
from detr_kit.sizes import SizeHW


@dataclass(frozen=True)
class ImageObjects:
    """A picture and its objects in the order of the file, boxes_xyxy (n, 4) float64 inside it.

    `labels` (n,) are columns of the category table, `iscrowd` (n,) bool, `rows` (n,) places of the
    annotations in the file.
    """

    file_name: str
    size_hw: SizeHW
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class ExportInput:
    """A COCO file with its objects picture by picture; see `ExportReport` for the counts."""

    document: CocoDocument
    images: tuple[ImageObjects, ...]
    num_clipped: int
    num_skipped: int


def read_for_export(annotations: Path, on_bad_box: OnBadBox) -> ExportInput:
    """Read a COCO file whose every box can be written.

    Crowd regions without a usable box are left out. Raises DetrKitError, naming the file, for
    pictures without a name or size, and for bad boxes unless they are to be skipped.
    """
    document = read_document(annotations)
    columns = document.columns
    require_images(columns)
    sizes_hw = columns.sizes_hw[document.image_rows]
    faults = clip_boxes(columns.boxes_xywh, sizes_hw)
    bad = faults.bad & document.single
    require_boxes(columns, np.arange(len(bad)), bad, on_bad_box)
    kept = np.flatnonzero(~faults.bad)
    # Stable, so that the objects of a picture keep the order of the file.
    kept = kept[np.argsort(document.image_rows[kept], kind="stable")]
    counts = np.bincount(document.image_rows[kept], minlength=len(columns.image_ids))
    parts = np.split(kept, np.cumsum(counts)[:-1]) if len(counts) else []
    images = tuple(_objects(document, row, rows) for row, rows in enumerate(parts))
    return ExportInput(
        document, images, int((faults.overshoot & document.single).sum()), int(bad.sum())
    )


def _objects(document: CocoDocument, image_row: int, rows: np.ndarray) -> ImageObjects:
    columns = document.columns
    height, width = columns.sizes_hw[image_row].tolist()
    # Twice as precise as what training reads, so that a round trip gives the same decimals.
    low, sides = np.split(columns.boxes_xywh[rows], 2, axis=1)
    boxes_xyxy = np.concatenate([low, low + sides], axis=1)
    column_of = document.table.column_of
    return ImageObjects(
        file_name=columns.file_names[image_row],
        size_hw=(height, width),
        boxes_xyxy=boxes_xyxy.clip(0, [width, height, width, height]),
        labels=np.array([column_of[id_] for id_ in columns.category_id_of[rows].tolist()], int),
        iscrowd=~document.single[rows],
        rows=rows,
    )


def label_files(given: ExportInput, label_of: Callable[[str], Path]) -> list[Path]:
    """Return the label file of every picture; raises where two would have the same."""
    owners: dict[Path, str] = {}
    for image in given.images:
        path = label_of(image.file_name)
        if path in owners:
            raise DetrKitError(
                f"{given.document.path}: {owners[path]!r} and {image.file_name!r} would have the "
                f"same labels, {path.as_posix()}"
            )
        owners[path] = image.file_name
    return list(owners)


def require_same_names(path: Path, known: Sequence[str], names: Sequence[str]) -> None:
    """Raise where the classes of an export, named in `path`, are not those to be added."""
    if list(known) != list(names):
        raise DetrKitError(
            f"{path}: its classes are {listed(known)}, not {listed(names)} in this order"
        )


def recover_export(out: Path) -> None:
    """Put back an export that was to get a further split when the process ended."""
    with suppress(NotADirectoryError):  # the error that names `out` comes where it is written
        recover_folder(out.resolve())


@contextmanager
def export_folder(out: Path, *, adding: bool) -> Iterator[Path]:
    """Yield a folder that becomes `out` unless the block raises; it is empty unless `adding`.

    Then it holds the files of `out`, which may be the same ones on the disk: replace them, do not
    write into them. Raises DetrKitError where `out` is a file or holds something that is not to be
    added to, or cannot be written.
    """
    if not adding and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DetrKitError(f"{out}: it exists; name a folder that is new or empty")
    try:
        # Of a link, the folder behind it: the link itself cannot be swapped.
        with atomic_folder(out.resolve()) as temporary:
            if adding:
                shutil.copytree(
                    out, temporary, symlinks=True, copy_function=_link_or_copy, dirs_exist_ok=True
                )
            yield temporary
    except OSError as error:
        raise DetrKitError(f"{out}: cannot write the labels: {error}") from error


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def place_pictures(given: ExportInput, images: str | Path | None, out: Path, *, copy: bool) -> int:
    """Link or copy the pictures into `out` where their folder is given; return how many."""
    if images is None:
        if copy:
            raise DetrKitError(
                "copying pictures needs images (--images), the folder that they are in"
            )
        return 0
    names = [image.file_name for image in given.images]
    missing = [name for name in names if not (Path(images) / name).is_file()]
    if missing:
        raise DetrKitError(
            f"{Path(images) / missing[0]}: no such image file ({len(missing)} of {len(names)} are "
            "missing; detr-kit check names them)"
        )
    for name in names:
        place_picture(Path(images) / name, out / name, copy=copy)
    return len(names)
