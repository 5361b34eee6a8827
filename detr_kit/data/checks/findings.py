"""What a check of a data set can find: the kinds of faults, their cases, the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from detr_kit.errors import DetrKitError

Severity = Literal["error", "warning", "note"]

# Cases of one kind that are kept; all are counted.
MAX_CASES = 20

# Every kind by its name: how grave it is, and what it means in one line. An error stops a training
# or spoils what it learns; a warning may be meant; a note is worth knowing.
KINDS: dict[str, tuple[Severity, str]] = {
    "not_coco": ("error", "the file, a section or a record does not have the form of COCO"),
    "duplicate_image_id": ("error", "two images have one id"),
    "duplicate_annotation_id": ("error", "two annotations have one id"),
    "duplicate_category": ("error", "two categories have one id or one name"),
    "missing_annotation_id": ("warning", "an annotation has no id"),
    "unknown_image": ("error", "an annotation belongs to an image that is not listed"),
    "unknown_category": ("error", "an annotation has a category that is not listed"),
    "missing_box": ("error", "an annotation that is no crowd region has no bbox"),
    "not_finite": ("error", "a bbox holds a number that is not finite"),
    "no_width_or_height": ("error", "a bbox has a width or height of zero or less"),
    "outside_image": ("error", "a bbox lies wholly outside its image"),
    "overshoot": ("warning", "a bbox passes the border of its image; it is clipped to it"),
    "looks_like_corners": (
        "error",
        "the boxes look like corners x0, y0, x1, y1, not x, y, w, h",
    ),
    "looks_like_centres": ("error", "the boxes look like centres cx, cy, w, h, not x, y, w, h"),
    "looks_normalised": ("error", "the boxes look like fractions of the image; COCO's are pixels"),
    "mixed_formats": ("error", "the boxes of an image are in another format than the others'"),
    "missing_area": ("note", "annotations without area; width times height is used"),
    "missing_iscrowd": ("note", "annotations without iscrowd; they count as single objects"),
    "wrong_area": ("warning", "the area is zero, larger than the bbox, negative or not finite"),
    "duplicate_object": ("warning", "one image has the same category and bbox twice"),
    "no_object_at_all": ("error", "the file holds no objects to learn from"),
    "no_objects": ("note", "images without objects; they are trained on as background"),
    "unused_category": ("note", "categories without any object"),
    "too_many_objects": ("warning", "an image holds more objects than the model has queries"),
    "size_missing": ("error", "an image has no positive width and height in the json"),
    "name_missing": ("error", "an image has no file_name"),
    "leaves_folder": ("error", "a file_name leads out of the image folder"),
    "same_file": ("warning", "two images of the json name one file"),
    "file_missing": ("error", "the file of an image does not exist"),
    "case_differs": ("error", "the file exists with another case of letters only"),
    "zero_bytes": ("error", "the file is empty"),
    "unreadable": ("error", "the file is no picture that can be read"),
    "truncated": ("error", "the file is cut off"),
    "size_differs": ("error", "the picture has another size than the json says"),
    "exif_turned": ("warning", "the EXIF orientation must be ignored or applied to fit the json"),
    "animated": ("warning", "the file holds several frames; the first is used"),
    "sixteen_bit": ("warning", "16 bits a channel; the upper 8 are used"),
    "cmyk": ("warning", "CMYK; converted without a colour profile"),
    "huge": ("error", "so large that Pillow takes it for a decompression bomb"),
    "unsupported_mode": ("error", "a kind of pixels that detr_kit does not read"),
    "duplicate_picture": ("warning", "two files of the split have the same content"),
    "shared_picture": ("error", "a file of one split has the content of a file of another split"),
    "not_listed": ("note", "pictures in the image folder that no json names"),
    "categories_differ": ("error", "the splits have different category tables"),
}

# What `--fix` does about a kind; other kinds are left as they are.
REPAIRS: dict[str, str] = {
    "not_coco": "numbers in another form are rewritten, other records removed",
    "duplicate_image_id": "the later image is removed",
    "duplicate_annotation_id": "the later one gets a new id",
    "duplicate_category": "removed where alike or unused",
    "missing_annotation_id": "gets a new id",
    "unknown_image": "removed",
    "unknown_category": "removed, unless ids seem shifted by one",
    "missing_box": "removed",
    "not_finite": "removed",
    "no_width_or_height": "removed",
    "outside_image": "removed, unless size or format are in doubt",
    "overshoot": "clipped, unless most of it is outside, or size or format are in doubt",
    "looks_like_corners": "converted",
    "looks_like_centres": "converted",
    "looks_normalised": "converted where the format is clear",
    "mixed_formats": "converted where the areas prove it",
    "missing_area": "width times height",
    "missing_iscrowd": "becomes 0",
    "wrong_area": "width times height",
    "duplicate_object": "the later one is removed",
    "size_missing": "read from the file",
    "name_missing": "the image is removed",
    "leaves_folder": "the image is removed",
    "case_differs": "named as the file is",
    "size_differs": "that of the file, where the boxes speak for it",
}
# Of these, the pictures tell what is right.
REPAIRED_BY_PICTURES = ("size_missing", "case_differs", "size_differs")


@dataclass(frozen=True)
class Case:
    """One occurrence. `text` says all of it in a line that starts with what it is about."""

    text: str
    file: str | None = None
    annotation_id: int | None = None
    image_id: int | None = None


def with_hint(cases: Sequence[Case], hint: str) -> list[Case]:
    """Return the cases with a hint, unless it is empty, at the end of the first one."""
    if not hint or not cases:
        return list(cases)
    return [replace(cases[0], text=f"{cases[0].text}; {hint}"), *cases[1:]]


@dataclass
class Finding:
    """All occurrences of one kind in one annotation file; the first are in `cases`."""

    kind: str
    annotations: Path
    count: int = 0
    cases: list[Case] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind][0]

    @property
    def meaning(self) -> str:
        return KINDS[self.kind][1]


class Findings:
    """Collects cases of one annotation file by kind, in the order of KINDS."""

    def __init__(self, annotations: Path) -> None:
        self.annotations = annotations
        self._by_kind: dict[str, Finding] = {}

    def add(self, kind: str, cases: Iterable[Case], count: int | None = None) -> None:
        """Add cases; `count` is their number where `cases` holds only the first ones."""
        assert kind in KINDS
        listed = list(cases)
        count = len(listed) if count is None else count
        if not count:
            return
        finding = self._by_kind.setdefault(kind, Finding(kind, self.annotations))
        finding.count += count
        finding.cases += listed[: MAX_CASES - len(finding.cases)]

    def listed(self) -> tuple[Finding, ...]:
        return tuple(self._by_kind[kind] for kind in KINDS if kind in self._by_kind)


@dataclass(frozen=True)
class CheckReport:
    """What was checked and found. `counts` has the numbers of images, objects and categories."""

    annotations: tuple[Path, ...]
    counts: tuple[dict[str, int], ...]
    findings: tuple[Finding, ...]

    @property
    def num_errors(self) -> int:
        return sum(found.count for found in self.findings if found.severity == "error")

    def count(self, kind: str) -> int:
        """Return how often `kind` was found, over all files; DetrKitError if there is no such."""
        if kind not in KINDS:
            near = get_close_matches(kind, KINDS, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see docs/data.md"
            raise DetrKitError(f"no kind of findings is called {kind!r}; {hint}")
        return sum(found.count for found in self.findings if found.kind == kind)

    def to_json(self) -> dict[str, Any]:
        """Return all as plain values; of `count` cases of a kind the first `listed` are there."""
        return {
            "annotations": [str(path) for path in self.annotations],
            "counts": list(self.counts),
            "findings": [
                {
                    "kind": found.kind,
                    "severity": found.severity,
                    "meaning": found.meaning,
                    "annotations": str(found.annotations),
                    "count": found.count,
                    "listed": len(found.cases),
                    "cases": [asdict(case) for case in found.cases],
                }
                for found in self.findings
            ],
        }
