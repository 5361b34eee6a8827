"""What a COCO json shows by itself: its records, ids, references, boxes, areas and file names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detr_kit.data.box_faults import describe_fault
from detr_kit.data.checks.box_format import FORMAT_NAMES, to_pixels_xywh
from detr_kit.data.checks.findings import MAX_CASES, Case, Findings, with_hint
from detr_kit.data.checks.label_faults import (
    Boxes,
    BoxFaults,
    category_shift,
    first_twins,
    judge_boxes,
    judge_images,
    repeated,
    wrong_areas,
)
from detr_kit.data.checks.naming import Naming, number, numbers
from detr_kit.data.coco_file import NO_ID, CocoColumns
from detr_kit.data.soundness import rows_of

_SWAPPED = "; it fits with width and height swapped"
_MOSTLY = "; most of it lies outside"


def check_labels(columns: CocoColumns, findings: Findings, *, num_queries: int | None) -> None:
    """Add all that the json alone shows to `findings`.

    `num_queries` is how many objects the model can find in an image, None where that is not known.
    Where the boxes of the whole file are in another format, only that is said of them, not what
    follows from it. Images without a size and annotations of unknown images are judged by what is
    known of them.
    """
    image_rows = rows_of(columns.image_id_of, columns.image_ids)
    category_rows = rows_of(columns.category_id_of, columns.category_ids)
    labels = _Labels(columns, findings, image_rows, category_rows)
    labels.check_form()
    labels.check_ids()
    labels.check_images()
    labels.check_references()
    labels.check_boxes()
    labels.check_areas()
    labels.check_objects(num_queries)


class _Labels:
    """The checks of one file and what they share."""

    def __init__(
        self,
        columns: CocoColumns,
        findings: Findings,
        image_rows: np.ndarray,
        category_rows: np.ndarray,
    ) -> None:
        self.columns = columns
        self.findings = findings
        self.image_rows = image_rows
        self.category_rows = category_rows
        self.naming = Naming(columns, image_rows)
        self.known = (image_rows >= 0) & (category_rows >= 0)
        self.sizes_hw = sizes_of_annotations(columns.sizes_hw, image_rows)
        self.boxes: BoxFaults = judge_boxes(
            Boxes(
                xywh=columns.boxes_xywh,
                areas=columns.areas,
                sizes_hw=self.sizes_hw,
                image_rows=image_rows,
                given=columns.has_box,
                known=self.known,
            )
        )

    def _add_images(self, kind: str, where: np.ndarray, text: Callable[[int], str]) -> None:
        self._add(kind, where, lambda row: self.naming.image_case(row, text(row)))

    def _add_annotations(
        self, kind: str, where: np.ndarray, text: Callable[[int], str], hint: str = ""
    ) -> None:
        self._add(kind, where, lambda row: self.naming.annotation_case(row, text(row)), hint)

    def _add(
        self, kind: str, where: np.ndarray, case: Callable[[int], Case], hint: str = ""
    ) -> None:
        rows = np.flatnonzero(where)
        cases = [case(row) for row in rows[:MAX_CASES].tolist()]
        self.findings.add(kind, with_hint(cases, hint), count=len(rows))

    def check_form(self) -> None:
        malformed = self.columns.malformed
        self.findings.add(
            "not_coco", (Case(str(m)) for m in malformed[:MAX_CASES]), count=len(malformed)
        )
        for section, ids in (
            ("images", self.columns.image_ids),
            ("categories", self.columns.category_ids),
        ):
            if not len(ids) and all(record.section != section for record in malformed):
                self.findings.add("not_coco", [Case(f"{section}: the list is empty")])

    def check_ids(self) -> None:
        columns, naming = self.columns, self.naming
        first_image = rows_of(columns.image_ids, columns.image_ids)
        self._add_images(
            "duplicate_image_id",
            repeated(columns.image_ids),
            lambda row: f"the id is also that of {naming.image(first_image[row])}",
        )
        has_id = columns.annotation_ids != NO_ID
        again = repeated(columns.annotation_ids) & has_id
        first = rows_of(columns.annotation_ids[again], columns.annotation_ids)
        first_of = dict(zip(np.flatnonzero(again).tolist(), first.tolist(), strict=True))
        self._add_annotations(
            "duplicate_annotation_id",
            again,
            lambda row: f"the id is also that of {naming.annotation(first_of[row])}",
        )
        self._add_annotations(
            "missing_annotation_id", ~has_id, lambda row: "results cannot refer to it"
        )
        self._check_categories()

    def _check_categories(self) -> None:
        columns, naming = self.columns, self.naming
        first_id: dict[int, int] = {}
        first_name: dict[str, int] = {}
        cases = []
        for row, (id_, name) in enumerate(
            zip(columns.category_ids.tolist(), columns.category_names, strict=True)
        ):
            same_id, same_name = first_id.setdefault(id_, row), first_name.setdefault(name, row)
            if same_id != row:
                cases.append(f"{naming.category(row)}: {naming.category(same_id)} has its id")
            elif same_name != row:
                cases.append(f"{naming.category(row)}: {naming.category(same_name)} has its name")
        self.findings.add("duplicate_category", map(Case, cases))

    def check_images(self) -> None:
        columns, naming = self.columns, self.naming
        faults = judge_images(columns)
        first = faults.first_of_file
        self._add_images(
            "size_missing",
            faults.size_missing,
            lambda row: size_fault(columns.sizes_hw[row].tolist()),
        )
        self._add_images("name_missing", faults.name_missing, lambda row: "it has no file_name")
        self._add_images(
            "leaves_folder",
            faults.leaves_folder,
            lambda row: "file_name must lead to a file inside the image folder",
        )
        self._add_images(
            "same_file",
            first != np.arange(len(first)),
            lambda row: f"{naming.image(first[row])} is the same file",
        )

    def check_references(self) -> None:
        columns, naming = self.columns, self.naming
        # Of a record that is malformed itself, its annotations are not said to be wrong as well.
        malformed: dict[str, list[int]] = {"images": [], "categories": [], "annotations": []}
        for record in columns.malformed:
            if record.id is not None:
                malformed[record.section].append(record.id)
        self._add_annotations(
            "unknown_image",
            (self.image_rows < 0) & ~np.isin(columns.image_id_of, malformed["images"]),
            lambda row: f"no image has the id {columns.image_id_of[row]}",
        )
        self._add_annotations(
            "unknown_category",
            (self.category_rows < 0) & ~np.isin(columns.category_id_of, malformed["categories"]),
            lambda row: f"no {naming.category_of(row)} is listed",
            category_shift(columns),
        )

    def check_boxes(self) -> None:
        columns, boxes = self.columns, self.columns.boxes_xywh
        self._add_annotations(
            "missing_box",
            ~columns.has_box & (columns.iscrowd != 1),
            lambda row: "it has no bbox and is no crowd region",
        )
        for kind, where in (
            ("not_finite", self.boxes.not_finite),
            ("no_width_or_height", self.boxes.no_side),
        ):
            self._add_annotations(kind, where, lambda row: describe_fault(boxes[row]))
        self._add_annotations("outside_image", self.boxes.outside, self._outside)
        hint = (
            f"{self.boxes.num_passing:,} of {len(boxes):,} boxes pass it or lie outside: are they "
            "x, y, w, h in pixels?"
        )
        self._add_annotations(
            "overshoot",
            self.boxes.overshoot,
            self._overshoot,
            hint if self.boxes.many_pass else "",
        )
        self._check_format()
        self._check_odd_images()

    def _outside(self, row: int) -> str:
        box = self.columns.boxes_xywh[row]
        text = f"bbox {numbers(box)} lies outside its image"
        if self.sizes_hw[row].all():
            text = f"{text} of {self.naming.size_of(row)}"
        return f"{text}{_SWAPPED}" if self.boxes.swapped[row] else text

    def _overshoot(self, row: int) -> str:
        x, y, w, h = self.columns.boxes_xywh[row]
        height, width = self.sizes_hw[row]
        passed = {
            "left": -x,
            "top": -y,
            "right": x + w - width if width > 0 else 0,
            "bottom": y + h - height if height > 0 else 0,
        }
        sides = ", ".join(
            f"{side} by {number(round(by, 3))}" for side, by in passed.items() if by > 0
        )
        text = f"bbox {numbers((x, y, w, h))} passes the border of its image: {sides} pixels"
        if self.boxes.swapped[row]:
            return f"{text}{_SWAPPED}"
        return f"{text}{_MOSTLY}" if self.boxes.mostly_outside[row] else text

    def _check_format(self) -> None:
        found = self.boxes.format
        if found == "xywh":
            return
        columns = self.columns
        pixels = to_pixels_xywh(columns.boxes_xywh, self.sizes_hw, found)

        def text(row: int) -> str:
            said = f"bbox {numbers(columns.boxes_xywh[row])} looks like {FORMAT_NAMES[found]}"
            if found == "unclear_fractions" or not self.sizes_hw[row].all():
                return said
            return f"{said}; as x, y, w, h in pixels it is {numbers(pixels[row])}"

        kinds = {"corners": "looks_like_corners", "centres": "looks_like_centres"}
        where = columns.has_box & self.known & ~self.boxes.not_finite & ~self.boxes.odd
        self._add_annotations(kinds.get(found, "looks_normalised"), where, text)

    def _check_odd_images(self) -> None:
        columns, formats = self.columns, self.boxes.odd_images.formats
        given = np.flatnonzero(columns.has_box & self.boxes.odd)
        first = rows_of(np.arange(len(columns.image_ids)), self.image_rows[given])

        def text(row: int) -> str:
            box = columns.boxes_xywh[given[first[row]]]
            return (
                f"its boxes look like {FORMAT_NAMES[formats[row]]}, unlike those of the file; "
                f"the first is {numbers(box)}"
            )

        where: np.ndarray = np.zeros(len(columns.image_ids), dtype=bool)
        where[list(formats)] = True
        self._add_images("mixed_formats", where, text)

    def check_areas(self) -> None:
        columns = self.columns
        missing = np.isnan(columns.areas)
        self._add_annotations("missing_area", missing, lambda row: "it has no area")
        self._add_annotations(
            "missing_iscrowd", columns.iscrowd == -1, lambda row: "it has no iscrowd"
        )
        comparable = columns.has_box & ~self.boxes.bad & self.boxes.in_format
        self._add_annotations(
            "wrong_area",
            wrong_areas(columns.areas, columns.boxes_xywh, comparable),
            lambda row: (
                f"area {number(columns.areas[row])} does not fit bbox "
                f"{numbers(columns.boxes_xywh[row])}"
                if columns.has_box[row]
                else f"area {number(columns.areas[row])}"
            ),
        )

    def check_objects(self, num_queries: int | None) -> None:
        columns, naming = self.columns, self.naming
        single = self.known & (columns.iscrowd != 1)
        compared = np.flatnonzero(self.known & columns.has_box & ~self.boxes.bad)
        twins = first_twins(duplicate_keys(columns), columns.boxes_xywh, compared)
        self._add_annotations(
            "duplicate_object",
            twins >= 0,
            lambda row: (
                f"{naming.category_of(row)} and bbox {numbers(columns.boxes_xywh[row])} "
                f"are those of {columns.annotation_name(twins[row])}"
            ),
        )
        readable = len(columns.image_ids) and len(columns.category_ids)
        if readable and not (columns.iscrowd != 1).any() and not self._has_malformed_annotations():
            self.findings.add("no_object_at_all", [Case("annotations: there is no object")])
        counts = np.bincount(self.image_rows[single], minlength=len(columns.image_ids))
        # Annotations count for the first image of an id; the others have been named already.
        unlisted = repeated(columns.image_ids)
        self._add_images("no_objects", (counts == 0) & ~unlisted, lambda row: "it has no objects")
        used = np.bincount(self.category_rows[single], minlength=len(columns.category_ids))
        self._add(
            "unused_category",
            (used == 0) & ~repeated(columns.category_ids),
            lambda row: Case(f"{naming.category(row)}: it has no objects"),
        )
        if num_queries is not None:
            self._add_images(
                "too_many_objects",
                counts > num_queries,
                lambda row: f"{counts[row]} objects, the model has {num_queries} queries",
            )

    def _has_malformed_annotations(self) -> bool:
        return any(record.section == "annotations" for record in self.columns.malformed)


def size_fault(size_hw: list[int]) -> str:
    """Say which of height and width is missing, or negative."""
    sides = {"width": size_hw[1], "height": size_hw[0]}
    missing = [name for name, side in sides.items() if side == 0]
    said = [f"{name} is {side}, not positive" for name, side in sides.items() if side < 0]
    if missing:
        said.insert(
            0, f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing or 0"
        )
    return ", ".join(said)


def sizes_of_annotations(sizes_hw: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
    """Return the sizes_hw (N, 2) of the images in `image_rows` (N,), 0 where not known."""
    known = image_rows >= 0
    sizes: np.ndarray = np.zeros((len(image_rows), 2), dtype=np.int64)
    sizes[known] = np.maximum(sizes_hw[image_rows[known]], 0)
    return sizes


def duplicate_keys(columns: CocoColumns) -> np.ndarray:
    """Return (N, 3) int64: what twins share besides the box: image, category, whether crowd."""
    crowd = (columns.iscrowd == 1).astype(np.int64)
    return np.stack([columns.image_id_of, columns.category_id_of, crowd], axis=1)
