"""What a conversion did, in figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImportReport:
    """A COCO file made of other labels.

    `images` is the folder that its file names start from. `num_empty` pictures have no object,
    `num_clipped` boxes overshot the border and were cut, `num_crowd` objects are crowd regions,
    `num_unmatched` files of labels had no picture, or pictures no file of labels where each needs
    one; they are not in the json. `num_skipped` objects were left out for their bad boxes.
    """

    out: Path
    images: Path
    num_images: int
    num_empty: int
    num_objects: int
    num_categories: int
    num_clipped: int
    num_crowd: int = 0
    num_unmatched: int = 0
    num_skipped: int = 0

    def __str__(self) -> str:
        counts = f"{self.num_images} pictures ({self.num_empty} without objects)"
        text = f"{self.out}: {counts}, {self.num_objects} objects of {self.num_categories} classes"
        further = (
            (self.num_crowd, "difficult"),
            (self.num_clipped, "clipped to their pictures"),
            (self.num_skipped, "bad boxes left out"),
            (self.num_unmatched, "files without a partner left out"),
        )
        text += "".join(f", {count} {what}" for count, what in further if count)
        return f"{text}; the picture folder is {self.images}"


@dataclass(frozen=True)
class ExportReport:
    """A folder of labels made of a COCO file.

    `num_crowd` crowd regions were left out, `num_clipped` boxes overshot the border and were cut,
    `num_skipped` were left out as bad, `num_pictures` pictures were linked or copied.
    """

    out: Path
    num_images: int
    num_objects: int
    num_categories: int
    num_crowd: int
    num_clipped: int
    num_skipped: int
    num_pictures: int

    def __str__(self) -> str:
        text = (
            f"{self.out}: {self.num_images} files of labels, {self.num_objects} objects of "
            f"{self.num_categories} classes"
        )
        further = (
            (self.num_crowd, "crowd regions left out"),
            (self.num_clipped, "clipped to their pictures"),
            (self.num_skipped, "bad boxes left out"),
            (self.num_pictures, "pictures"),
        )
        return text + "".join(f", {count} {what}" for count, what in further if count)


@dataclass(frozen=True)
class FileReport:
    """One COCO file that was written."""

    out: Path
    num_images: int
    num_objects: int
    num_categories: int

    def __str__(self) -> str:
        return (
            f"{self.out}: {self.num_images} pictures, {self.num_objects} annotations, "
            f"{self.num_categories} categories"
        )


@dataclass(frozen=True)
class PartReport(FileReport):
    """One file of a split, which was to have the share `fraction` of the pictures of every class.

    Of the classes `class_name` is furthest off: `num_class_images` of its `num_class_images_in_all`
    pictures are here. It is None where no picture has an object.
    """

    fraction: float
    class_name: str | None
    num_class_images: int
    num_class_images_in_all: int

    def __str__(self) -> str:
        text = super().__str__()
        if self.class_name is None:
            return text
        share = self.num_class_images / self.num_class_images_in_all
        return (
            f"{text}; furthest from its share of {self.fraction:.1%}: {self.class_name!r} with "
            f"{self.num_class_images} of {self.num_class_images_in_all} pictures ({share:.1%})"
        )


@dataclass(frozen=True)
class MergeReport(FileReport):
    """A COCO file made of several; `notes` says, a line each, what had to be changed or left."""

    notes: tuple[str, ...] = ()
