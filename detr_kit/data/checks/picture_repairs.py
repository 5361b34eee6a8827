"""What the picture files tell about the images of a json: their true names and sizes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from detr_kit.data.box_faults import are_fractions, pass_by_far
from detr_kit.data.checks.findings import Findings
from detr_kit.data.checks.label_faults import fit_into
from detr_kit.data.checks.picture_files import Inspector, PictureFile
from detr_kit.data.checks.pictures import SimilarNames, add_case, in_order, size_fault
from detr_kit.data.coco_file import CocoColumns

_TURNED = (5, 6, 7, 8)


@dataclass
class ByPictures:
    """What is taken from the files, and what is not.

    `sizes_hw` (I, 2) are those of the json but where a file's is better; `names` are by row.
    `sure` (I,) bool are images whose size is that of their file, `doubtful` (I,) those where it is
    another. `left` has the findings about names and sizes that stay.
    """

    sizes_hw: np.ndarray
    sure: np.ndarray
    doubtful: np.ndarray
    left: Findings
    names: dict[int, str] = field(default_factory=dict)


def ask_pictures(
    columns: CocoColumns, rows: np.ndarray, image_rows: np.ndarray, folder: Path
) -> ByPictures:
    """Look at the files of the images in `rows`; `image_rows` (N,) are those of annotations.

    A size that is missing is that of the file. One that is another than the file's is replaced
    where all boxes of the image fit the file's and speak against the json's: they pass its border
    by far, or are fractions; or where width and height are merely swapped, or there are no boxes.
    """
    found = without_pictures(columns)
    similar = SimilarNames(folder)
    taken = {str(PurePosixPath(name)) for name in columns.file_names}
    paths = [_true_path(columns, row, similar, found, taken) for row in rows.tolist()]
    order = np.argsort(image_rows, kind="stable")
    starts = np.searchsorted(image_rows[order], np.arange(len(columns.image_ids) + 1))
    inspector = Inspector(decode=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about metadata
        for row, file in zip(rows.tolist(), in_order(inspector, iter(paths)), strict=True):
            if file.fault is None:
                of_image = order[starts[row] : starts[row + 1]]
                boxes = columns.boxes_xywh[of_image][columns.has_box[of_image]]
                _judge_size(columns, row, file, boxes, found)
    return found


def without_pictures(columns: CocoColumns) -> ByPictures:
    """Return what is known where no folder is given: what the json says."""
    unsure: np.ndarray = np.zeros(len(columns.image_ids), dtype=bool)
    return ByPictures(columns.sizes_hw.copy(), unsure, unsure.copy(), Findings(columns.path))


def _true_path(
    columns: CocoColumns, row: int, similar: SimilarNames, found: ByPictures, taken: set[str]
) -> Path:
    """Return the path of a file, noting its true name where only the case of letters differs."""
    name = columns.file_names[row]
    path = similar.folder / name
    if path.exists():
        return path
    actual = similar.actual(name)
    if actual is None:
        if (first := similar.first(name)) is not None:
            add_case(found.left, "case_differs", columns, row, similar.said(name, first))
        return path
    if actual in taken:
        add_case(found.left, "case_differs", columns, row, similar.said(name, actual))
    else:
        found.names[row] = actual
        taken.add(actual)
    return similar.folder / actual


def _judge_size(
    columns: CocoColumns, row: int, file: PictureFile, boxes_xywh: np.ndarray, found: ByPictures
) -> None:
    height, width = columns.sizes_hw[row].tolist()
    if min(height, width) < 1:
        # Of a picture that EXIF turns, the boxes may be meant for either side up.
        if file.orientation not in _TURNED:
            found.sizes_hw[row] = file.size_hw
            found.sure[row] = True
        return
    fault = size_fault(file, (height, width))
    if fault is None:
        found.sure[row] = True
        return
    upright = file.size_hw[::-1] if file.orientation in _TURNED else file.size_hw
    if _speak_for(boxes_xywh, upright, (height, width)):
        found.sizes_hw[row] = upright
        found.sure[row] = True
    else:
        found.doubtful[row] = True
        add_case(found.left, "size_differs", columns, row, fault)


def _speak_for(boxes_xywh: np.ndarray, file_hw: tuple[int, int], json_hw: tuple[int, int]) -> bool:
    """Whether boxes (n, 4) were made for a picture of the file's size, not the json's."""
    boxes = boxes_xywh[np.isfinite(boxes_xywh).all(axis=1)]
    of_file, of_json = (np.tile(np.array(size), (len(boxes), 1)) for size in (file_hw, json_hw))
    if not fit_into(boxes, of_file).all():
        return False
    return bool(
        file_hw == json_hw[::-1] or pass_by_far(boxes, of_json).any() or are_fractions(boxes).all()
    )
