"""What is to be changed in a COCO file so that it can be trained on, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detr_kit.data.box_faults import are_fractions, clip_boxes
from detr_kit.data.checks.box_format import (
    IN_PIXELS,
    borders_hw,
    clipped_xywh,
    rounded,
    to_pixels_xywh,
)
from detr_kit.data.checks.label_faults import (
    Boxes,
    BoxFaults,
    category_shift,
    first_twins,
    judge_boxes,
    judge_images,
    mostly_outside,
    repeated,
    wrong_areas,
)
from detr_kit.data.checks.labels import duplicate_keys, sizes_of_annotations
from detr_kit.data.checks.naming import Naming, number, numbers
from detr_kit.data.checks.picture_repairs import ByPictures, ask_pictures, without_pictures
from detr_kit.data.coco_file import NO_ID, CocoColumns
from detr_kit.data.soundness import rows_of

# Why an annotation is removed; "" is kept.
_REASONS = (
    "",
    "its image is removed",
    "its image is not listed",
    "its category is not listed",
    "it has no bbox and is no crowd region",
    "its bbox is not finite",
    "its bbox has no width or no height",
    "its bbox lies outside its image",
    "an annotation before it says the same",
)
(
    _KEPT,
    _IMAGE_REMOVED,
    _NO_IMAGE,
    _NO_CATEGORY,
    _NO_BOX,
    _NOT_FINITE,
    _NO_SIDE,
    _OUTSIDE,
    _TWIN,
) = range(len(_REASONS))
# Ids beyond this are no whole numbers any more where json is read into floating-point numbers.
_LARGEST_ID = 2**53


@dataclass
class Repairs:
    """The columns as they will be, and what is removed.

    `removed_images` and `removed_categories` give reasons by row; `removal` (N,) int8 is why an
    annotation goes, 0 where it stays. `annotation_ids`, `boxes_xywh`, `areas` and `iscrowd` are as
    in the columns of the file, changed where a repair was made; `converted` (N,) bool are boxes
    that were in another format. Sizes and names of the images are in `pictures`.
    """

    columns: CocoColumns
    image_rows: np.ndarray
    removed_images: dict[int, str]
    removed_categories: dict[int, str]
    removal: np.ndarray
    pictures: ByPictures
    annotation_ids: np.ndarray
    boxes_xywh: np.ndarray
    areas: np.ndarray
    iscrowd: np.ndarray
    converted: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        return self.removal == _KEPT

    def remove(self, where: np.ndarray, reason: int) -> None:
        """Remove the annotations of `where` (N,) bool that have not been removed before."""
        self.removal[where & self.kept] = reason

    def why_removed(self, row: int) -> str:
        reason = int(self.removal[row])
        text = _REASONS[reason]
        if reason in (_NOT_FINITE, _NO_SIDE, _OUTSIDE):
            return f"{text}: {numbers(self.columns.boxes_xywh[row])}"
        if reason in (_IMAGE_REMOVED, _NO_IMAGE):
            return f"{text}: image_id {self.columns.image_id_of[row]}"
        if reason == _NO_CATEGORY:
            return f"{text}: category_id {self.columns.category_id_of[row]}"
        return text

    def changed_annotations(self) -> np.ndarray:
        """Return (N,) bool: the kept annotations whose records change."""
        columns = self.columns
        boxes = (self.boxes_xywh != columns.boxes_xywh).any(axis=1) & columns.has_box
        areas = ~np.isnan(self.areas) & (self.areas != columns.areas)
        ids = self.annotation_ids != columns.annotation_ids
        return self.kept & (boxes | areas | ids | (self.iscrowd != columns.iscrowd))

    def changes_of(self, row: int) -> dict[str, tuple[object, str]]:
        """Return the new values of a kept annotation by field, each with what the log says."""
        columns = self.columns
        changes: dict[str, tuple[object, str]] = {}
        old_id, new_id = int(columns.annotation_ids[row]), int(self.annotation_ids[row])
        if old_id != new_id:
            reason = "it had none" if old_id == NO_ID else f"{old_id} is taken"
            changes["id"] = new_id, f"id -> {new_id}: {reason}"
        old_box, new_box = columns.boxes_xywh[row], self.boxes_xywh[row]
        if columns.has_box[row] and (old_box != new_box).any():
            how = "as x, y, w, h in pixels" if self.converted[row] else "clipped to its image"
            changes["bbox"] = (
                [_plain(value) for value in new_box],
                f"bbox {numbers(old_box)} -> {numbers(new_box)}: {how}",
            )
        old_area, new_area = columns.areas[row], self.areas[row]
        if not np.isnan(new_area) and old_area != new_area:
            old = "area" if np.isnan(old_area) else f"area {number(old_area)}"
            changes["area"] = _plain(new_area), f"{old} -> {number(new_area)}"
        if columns.iscrowd[row] != self.iscrowd[row]:
            changes["iscrowd"] = int(self.iscrowd[row]), "iscrowd -> 0: it had none"
        return changes


def _plain(value: float) -> int | float:
    """Return whole numbers as int, so that the json has 12 for them, not 12.0."""
    return int(value) if value == int(value) and abs(value) < _LARGEST_ID else float(value)


def plan_repairs(columns: CocoColumns, image_dir: Path | None) -> Repairs:
    """Decide what to change; names and sizes are those of the files in `image_dir`, if given."""
    removed_images = _images_to_remove(columns)
    kept_rows = np.setdiff1d(np.arange(len(columns.image_ids)), list(removed_images))
    among_kept = rows_of(columns.image_id_of, columns.image_ids[kept_rows])
    image_rows = np.append(kept_rows, -1)[among_kept]
    plan = Repairs(
        columns=columns,
        image_rows=image_rows.astype(np.int64),
        removed_images=removed_images,
        removed_categories={},
        removal=np.zeros(len(image_rows), dtype=np.int8),
        pictures=_ask_pictures(columns, kept_rows, image_rows, image_dir),
        annotation_ids=columns.annotation_ids.copy(),
        boxes_xywh=columns.boxes_xywh.copy(),
        areas=columns.areas.copy(),
        iscrowd=np.where(columns.iscrowd == -1, 0, columns.iscrowd).astype(np.int8),
        converted=np.zeros(len(image_rows), dtype=bool),
    )
    _remove_unknown(plan)
    _repair_boxes(plan)
    _remove_twins(plan)
    _renumber(plan)
    plan.removed_categories = _categories_to_remove(columns, plan.kept)
    return plan


def _images_to_remove(columns: CocoColumns) -> dict[int, str]:
    faults = judge_images(columns)
    removed = dict.fromkeys(np.flatnonzero(faults.name_missing).tolist(), "it has no file_name")
    for row in np.flatnonzero(faults.leaves_folder).tolist():
        removed[row] = "its file_name leads out of the image folder"
    kept = np.setdiff1d(np.arange(len(columns.image_ids)), list(removed))
    naming = Naming(columns, np.empty(0, dtype=np.int64))
    first_of = rows_of(columns.image_ids, columns.image_ids[kept])
    for row in kept[repeated(columns.image_ids[kept])].tolist():
        first = int(kept[first_of[row]])
        removed[row] = f"its id is that of {naming.image(first)}"
        if columns.file_names[first] != columns.file_names[row]:
            removed[row] += ", which keeps all annotations of the id: look at them"
    return removed


def _categories_to_remove(columns: CocoColumns, kept: np.ndarray) -> dict[int, str]:
    """Return categories that are listed twice, and those without objects whose name is taken.

    `kept` (N,) bool are the annotations that stay. Of others none can be told to be wrong.
    """
    pairs = list(zip(columns.category_ids.tolist(), columns.category_names, strict=True))
    first: dict[tuple[int, str], int] = {}
    removed = {
        row: "it is listed twice"
        for row, pair in enumerate(pairs)
        if first.setdefault(pair, row) != row
    }
    used = set(np.unique(columns.category_id_of[kept]).tolist())
    by_name: dict[str, list[tuple[int, int]]] = {}
    for (id_, name), row in first.items():
        by_name.setdefault(name, []).append((id_, row))
    naming = Naming(columns, np.empty(0, dtype=np.int64))
    for alike in by_name.values():
        kept_id, kept_row = next((pair for pair in alike if pair[0] in used), alike[0])
        for id_, row in alike:
            if id_ != kept_id and id_ not in used:
                removed[row] = f"its name is that of {naming.category(kept_row)}; it has no objects"
    return removed


def _ask_pictures(
    columns: CocoColumns, kept_rows: np.ndarray, image_rows: np.ndarray, image_dir: Path | None
) -> ByPictures:
    if image_dir is None:
        return without_pictures(columns)
    return ask_pictures(columns, kept_rows, image_rows, image_dir)


def _remove_unknown(plan: Repairs) -> None:
    columns = plan.columns
    malformed = {
        section: [m for m in columns.malformed if m.section == section]
        for section in ("images", "categories")
    }
    listed = np.concatenate(
        [columns.image_ids, [m.id for m in malformed["images"] if m.id is not None]]
    ).astype(np.int64)
    unknown = plan.image_rows < 0
    plan.remove(unknown & np.isin(columns.image_id_of, listed), _IMAGE_REMOVED)
    plan.remove(unknown, _NO_IMAGE)
    # A category that cannot be read may be the one that is missed: its objects wait for it.
    # Where all seem to be off by one, the table or the ids must be shifted, and none is to go.
    if not malformed["categories"] and not category_shift(columns):
        plan.remove(~np.isin(columns.category_id_of, columns.category_ids), _NO_CATEGORY)
    plan.remove(~columns.has_box & (columns.iscrowd != 1), _NO_BOX)
    plan.remove(~np.isfinite(columns.boxes_xywh).all(axis=1) & columns.has_box, _NOT_FINITE)


def _repair_boxes(plan: Repairs) -> None:
    columns = plan.columns
    sizes_hw = sizes_of_annotations(plan.pictures.sizes_hw, plan.image_rows)
    given = columns.has_box & plan.kept
    known = plan.kept & np.isin(columns.category_id_of, columns.category_ids)
    judged = judge_boxes(
        Boxes(columns.boxes_xywh, columns.areas, sizes_hw, plan.image_rows, given, known)
    )
    needs_sizes = judged.format not in IN_PIXELS
    sized = np.asarray((sizes_hw > 0).all(axis=1))
    if judged.format == "unclear_fractions" or (needs_sizes and not sized[given].all()):
        return
    given &= ~_left_alone(plan, judged)
    pixels = _in_pixels(plan, judged, sizes_hw)
    borders = borders_hw(sizes_hw)
    faults = clip_boxes(pixels, borders)
    plan.remove(faults.no_side & given, _NO_SIDE)
    plan.remove((faults.outside | faults.not_finite) & given, _OUTSIDE)
    # What is left of them would be no object: they are more likely wrong than drawn too large.
    clipped = faults.overshoot & ~mostly_outside(pixels, faults.boxes_xyxy)
    pixels = np.where(clipped[:, None], clipped_xywh(pixels, sizes_hw), pixels)
    # What is left of a box may be too thin to have a side in single precision.
    plan.remove(clip_boxes(pixels, borders).bad & given, _OUTSIDE)
    given &= plan.kept
    plan.boxes_xywh[given] = pixels[given]
    _repair_areas(plan, given, needs_sizes, sizes_hw)


def _left_alone(plan: Repairs, judged: BoxFaults) -> np.ndarray:
    """Return (N,) bool: boxes that are not touched, as nobody can tell what they should be."""
    unclear = np.setdiff1d(list(judged.odd_images.formats), list(judged.odd_images.proven))
    doubtful = np.concatenate([unclear, np.flatnonzero(plan.pictures.doubtful)])
    turned = judged.swapped & ~np.isin(plan.image_rows, np.flatnonzero(plan.pictures.sure))
    if judged.many_pass:
        turned = judged.overshoot | judged.outside
    return np.asarray(np.isin(plan.image_rows, doubtful) | turned)


def _in_pixels(plan: Repairs, judged: BoxFaults, sizes_hw: np.ndarray) -> np.ndarray:
    """Return the boxes (N, 4) as (x, y, w, h) in pixels; notes which ones were something else."""
    boxes = plan.columns.boxes_xywh.copy()
    for found, where in (
        (judged.format, ~judged.odd),
        ("corners", judged.odd_images.among(plan.image_rows, "corners")),
    ):
        if found != "xywh":
            boxes[where] = to_pixels_xywh(boxes[where], sizes_hw[where], found)
            plan.converted |= where
    return boxes


def _repair_areas(plan: Repairs, given: np.ndarray, fractions: bool, sizes_hw: np.ndarray) -> None:
    """Keep areas that are those of a mask, replace those that were, or must be, w times h."""
    old_boxes, old = plan.columns.boxes_xywh, plan.columns.areas
    with np.errstate(invalid="ignore", over="ignore"):
        old_product = old_boxes[:, 2] * old_boxes[:, 3]
        product = rounded(plan.boxes_xywh[:, 2] * plan.boxes_xywh[:, 3])
        was_product = np.isclose(old, old_product, rtol=1e-6, atol=1e-6)
        in_fractions = (old <= 1) & fractions
        scaled = rounded(old * sizes_hw[:, 0] * sizes_hw[:, 1])
    changed = (plan.boxes_xywh != old_boxes).any(axis=1)
    areas = np.where(in_fractions, scaled, old)
    # Areas of pixels are right where a box of fractions stands among others of pixels.
    tiny = are_fractions(plan.boxes_xywh) & (areas > 1) & np.isfinite(areas)
    wrong = wrong_areas(areas, plan.boxes_xywh, given) & ~tiny
    replaced = np.isnan(old) | wrong | (was_product & changed)
    areas = np.where(replaced, product, areas)
    usable = given & np.isfinite(areas)
    plan.areas[usable] = areas[usable]


def _remove_twins(plan: Repairs) -> None:
    rows = np.flatnonzero(plan.kept & plan.columns.has_box)
    twins = first_twins(duplicate_keys(plan.columns), plan.boxes_xywh, rows)
    plan.remove(twins >= 0, _TWIN)


def _renumber(plan: Repairs) -> None:
    ids = plan.annotation_ids
    kept = np.flatnonzero(plan.kept)
    wanting = kept[(ids[kept] == NO_ID) | repeated(ids[kept])]
    largest = max(0, int(ids.max(initial=0)))
    if largest + len(wanting) <= _LARGEST_ID:
        ids[wanting] = np.arange(largest + 1, largest + 1 + len(wanting))
        return
    candidates = np.arange(1, len(ids) + len(wanting) + 1)
    ids[wanting] = np.setdiff1d(candidates, ids)[: len(wanting)]
