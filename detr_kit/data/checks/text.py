"""A report of a check as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from detr_kit.data.checks.findings import (
    REPAIRED_BY_PICTURES,
    REPAIRS,
    CheckReport,
    Finding,
    Severity,
)
from detr_kit.data.checks.fix import Repaired

# Cases of a kind that are shown; the json and the html report have more.
SHOWN_CASES = 5

_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}
# Files that training passes over if it is told to.
_BAD_FILES = {"zero_bytes", "unreadable", "truncated", "huge", "unsupported_mode"}
_COUNTED = (
    ("images", "image", "images"),
    ("objects", "object", "objects"),
    ("crowd_regions", "crowd region", "crowd regions"),
    ("categories", "category", "categories"),
)


def report_text(
    report: CheckReport, *, with_pictures: bool = False, being_fixed: bool = False
) -> Group:
    """Return the report to print with rich: what was checked, what was found, what to do.

    `with_pictures`: the pictures were given too; `being_fixed`: a repair is under way.
    Nothing in it is markup, whatever the files are called.
    """
    parts: list[RenderableType] = [
        Text(f"{path}: {_count_text(counts)}")
        for path, counts in zip(report.annotations, report.counts, strict=True)
    ]
    if report.findings:
        parts += [_table(report), Text()]
    for finding in report.findings:
        parts += _case_lines(finding, name_file=len(report.annotations) > 1)
    return Group(*parts, _advice(report, with_pictures, being_fixed))


def _count_text(counts: dict[str, int]) -> str:
    if not any(counts.values()):
        return "nothing could be read"
    return ", ".join(
        f"{counts[key]:,} {one if counts[key] == 1 else many}"
        for key, one, many in _COUNTED
        if counts[key] or key != "crowd_regions"
    )


def _table(report: CheckReport) -> Table:
    table = Table(pad_edge=False)
    several = len(report.annotations) > 1
    for heading in ("kind", "severity"):
        table.add_column(heading, no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    if several:
        table.add_column("file", overflow="fold")
    table.add_column("meaning", overflow="fold")
    for finding in report.findings:
        style = _STYLES[finding.severity]
        file = [Text(finding.annotations.name)] if several else []
        table.add_row(
            Text(finding.kind),
            Text(finding.severity, style=style),
            f"{finding.count:,}",
            *file,
            Text(finding.meaning),
        )
    return table


def _case_lines(finding: Finding, *, name_file: bool) -> Iterable[Text]:
    where = f" in {finding.annotations.name}" if name_file else ""
    yield Text(f"{finding.kind}{where}", style=_STYLES[finding.severity])
    for case in finding.cases[:SHOWN_CASES]:
        yield Text(f"  {case.text}")
    more = finding.count - min(len(finding.cases), SHOWN_CASES)
    if more:
        yield Text(f"  and {more:,} more")


def _advice(report: CheckReport, with_pictures: bool, being_fixed: bool) -> Text:
    """Say in one line what to do about it."""
    errors = report.num_errors
    warnings = sum(found.count for found in report.findings if found.severity == "warning")
    if not errors and not warnings:
        return Text("no errors and no warnings: ready for training", style="bold")
    if not errors:
        return Text(f"no errors; {_of(warnings, 'warning')} to look at", style="bold")
    it = "it" if errors == 1 else "them"
    said = [f"{_of(errors, 'error')}: mend {it} before training"]
    kinds = {found.kind for found in report.findings if found.severity == "error"}
    unreadable = {
        path
        for path, counts in zip(report.annotations, report.counts, strict=True)
        if not any(counts.values())
    }
    repairable = {
        found.kind
        for found in report.findings
        if found.severity == "error" and found.annotations not in unreadable
    } & (REPAIRS.keys() - (() if with_pictures else REPAIRED_BY_PICTURES))
    if unreadable:
        said.append("a json that cannot be read must be written anew")
    if repairable and not being_fixed:
        each = ", for one json at a time," if len(report.annotations) > 1 else ""
        said.append(
            f"--fix OUT{each} writes a copy of the json with what can be repaired, and a log of "
            "every change"
        )
    if kinds & _BAD_FILES:
        said.append("mend or remove those files, or train with data.on_bad_image=skip")
    if "file_missing" in kinds:
        said.append("files that are missing must be there")
    return Text("; ".join(said), style="bold")


def _of(count: int, word: str) -> str:
    return f"{count:,} {word if count == 1 else f'{word}s'}"


def repaired_text(repaired: Repaired) -> str:
    """Say in one line what a repair changed and removed, and what it left."""
    removed = ", ".join(
        f"{count:,} {_SINGULAR[section] if count == 1 else section}"
        for section, count in repaired.num_removed.items()
        if count
    )
    left = sum(found.count for found in repaired.left if found.severity == "error")
    parts = [_of(repaired.num_changes, "change"), f"removed: {removed or 'nothing'}"]
    parts.append(f"{_of(left, 'error')} left" if left else "no errors left")
    return f"{'; '.join(parts)}; see {repaired.out}, {repaired.log}"
