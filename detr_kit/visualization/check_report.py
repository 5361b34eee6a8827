"""The page that `detr-kit check --html` writes: faults, charts and pictures of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detr_kit.data.checks.findings import CheckReport, Finding, Severity
from detr_kit.data.coco_file import CocoColumns
from detr_kit.errors import DetrKitError
from detr_kit.files import is_one_of
from detr_kit.visualization.charts import Figure
from detr_kit.visualization.check_charts import (
    aspect_figure,
    category_figure,
    number_figure,
    position_figure,
    share_figure,
    size_figure,
)
from detr_kit.visualization.distributions import Distributions, distributions_of
from detr_kit.visualization.page import write_page
from detr_kit.visualization.sample_pictures import SamplePicture, sample_pictures
from detr_kit.visualization.texts import grouped

# Pictures of one file, and of all files together with the bytes of their JPEGs.
_PICTURES = 12
_ALL_PICTURES = 36
_ALL_PICTURE_BYTES = 600_000
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class _Detail:
    """How much of each file is told: pictures, cases of a fault, characters of a case."""

    pictures: int
    cases: int
    text: int


# Tried in turn until the page is small enough.
_DETAILS = (_Detail(12, 20, 300), _Detail(6, 10, 200), _Detail(2, 3, 80), _Detail(0, 0, 60))


@dataclass(frozen=True)
class _Total:
    severity: Severity
    count: int


@dataclass
class _Section:
    """What the page says of one annotation file."""

    title: str
    path: str
    findings: list[Finding]
    num_images: int
    num_objects: int
    is_readable: bool = False
    tiles: list[tuple[str, str]] = field(default_factory=list)
    charts: list[Figure] = field(default_factory=list)
    pictures: list[SamplePicture] = field(default_factory=list)
    pictures_note: str = ""
    skipped: list[str] = field(default_factory=list)

    @property
    def num_errors(self) -> int:
        return sum(found.count for found in self.findings if found.severity == "error")


def write_check_report(
    report: CheckReport,
    splits: Sequence[tuple[CocoColumns | None, Path | None]],
    out: str | Path,
) -> None:
    """Write one HTML file that shows what a check found, with charts and some pictures.

    `splits` has, for each file of the report, its columns, None where it could not be read, and
    its image folder, None where none was given. The page loads nothing and runs nothing; it tells
    less where it would be larger than `page.MAX_BYTES`. The same data give the same page. Raises
    DetrKitError where `out` is one of the annotation files.
    """
    out = Path(out)
    if is_one_of(out, report.annotations):
        raise DetrKitError(f"{out}: it is a file that was checked; choose another to write")
    sections = [
        _section(report, index, columns, folder, len(splits))
        for index, (columns, folder) in enumerate(splits)
    ]
    paths = set(report.annotations)
    values = {
        "sections": sections,
        "other_findings": [found for found in report.findings if found.annotations not in paths],
        "totals": _totals(report),
    }
    write_page(out, "check.html", _DETAILS, values)


def _totals(report: CheckReport) -> list[_Total]:
    totals = [
        _Total(severity, sum(f.count for f in report.findings if f.severity == severity))
        for severity in _SEVERITIES
    ]
    return [total for total in totals if total.count]


def _section(
    report: CheckReport,
    index: int,
    columns: CocoColumns | None,
    folder: Path | None,
    num_splits: int,
) -> _Section:
    path, counts = report.annotations[index], report.counts[index]
    found = [finding for finding in report.findings if finding.annotations == path]
    section = _Section(
        title=_title(report.annotations, path),
        path=str(path),
        findings=sorted(found, key=lambda finding: _SEVERITIES.index(finding.severity)),
        num_images=counts.get("images", 0),
        num_objects=counts.get("objects", 0),
    )
    if columns is None:
        return section
    numbers = distributions_of(columns)
    section.is_readable = True
    section.tiles = _tiles(section, counts, numbers)
    section.charts = [
        category_figure(columns, numbers),
        size_figure(numbers),
        share_figure(numbers),
        aspect_figure(numbers),
        number_figure(numbers),
        position_figure(numbers),
    ]
    _add_pictures(section, columns, numbers, folder, num_splits)
    return section


def _title(paths: Sequence[Path], path: Path) -> str:
    """Return the file's name, with its folder where several files are called the same."""
    same = sum(other.name == path.name for other in paths)
    return path.name if same == 1 else f"{path.parent.name}/{path.name}"


def _tiles(
    section: _Section, counts: dict[str, int], numbers: Distributions
) -> list[tuple[str, str]]:
    tiles = [
        ("images", grouped(section.num_images)),
        ("objects", grouped(section.num_objects)),
        ("categories", grouped(counts.get("categories", 0))),
        ("images without objects", grouped(numbers.num_empty)),
        ("objects per image, median", f"{numbers.median_objects:g}"),
        ("objects per image, most", grouped(numbers.max_objects)),
    ]
    if numbers.num_crowd:
        tiles.insert(2, ("crowd regions", grouped(numbers.num_crowd)))
    return tiles


def _add_pictures(
    section: _Section,
    columns: CocoColumns,
    numbers: Distributions,
    folder: Path | None,
    num_splits: int,
) -> None:
    if folder is None:
        section.pictures_note = "No image folder was given, so no pictures can be shown."
        return
    count = min(_PICTURES, max(1, _ALL_PICTURES // num_splits))
    max_bytes = _ALL_PICTURE_BYTES // (count * num_splits)
    samples = sample_pictures(columns, numbers, folder, count, max_bytes)
    section.pictures, section.skipped = samples.pictures, samples.skipped
    if not len(columns.image_ids):
        section.pictures_note = "There are no images."
    elif not samples.pictures:
        section.pictures_note = f"None of the files that were tried in {folder} can be shown."
