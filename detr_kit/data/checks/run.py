"""Checks a data set of one or several splits: the jsons, the pictures, and what lies between."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from detr_kit.data.checks.findings import MAX_CASES, Case, CheckReport, Findings
from detr_kit.data.checks.labels import check_labels
from detr_kit.data.checks.splits import check_categories, check_shared_pictures
from detr_kit.data.coco_file import CocoColumns, CocoRecords, columns_of
from detr_kit.data.json_file import decode_json, read_bytes
from detr_kit.errors import DetrKitError

Paths = str | Path | Sequence[str | Path]


def check(
    annotations: Paths,
    images: Paths | None = None,
    *,
    decode: bool = False,
    num_queries: int | None = 100,
) -> CheckReport:
    """Check annotation files and, where `images` is given, the pictures they name.

    `annotations` is one file a split; `images` is one folder for all of them, or one a split.
    Pictures are read to the end of their headers, and whole with `decode`. Images with more than
    `num_queries` objects are reported; None leaves that out. A bar shows how far the pictures are
    on stderr, if that is a terminal.

    A file that is no COCO json is a finding. Raises DetrKitError for files and folders that do
    not exist or cannot be read, and where the numbers of files and folders do not go together.
    """
    paths = _as_paths(annotations)
    folders = _folders(images, paths)
    if not paths:
        raise DetrKitError("no annotation file to check was given")
    if decode and images is None:
        raise DetrKitError("pictures can only be decoded where their folder is given")
    findings = [Findings(path) for path in paths]
    read = [_read(path, found) for path, found in zip(paths, findings, strict=True)]
    digests: list[dict[str, bytes]] = []
    for columns, found, folder in zip(read, findings, folders, strict=True):
        if columns is not None:
            check_labels(columns, found, num_queries=num_queries)
            digests.append(_check_pictures(columns, folder, found, decode))
    good = [(c, f) for c, f in zip(read, findings, strict=True) if c is not None]
    splits, found_in = [c for c, _ in good], [f for _, f in good]
    check_categories(splits, found_in)
    check_shared_pictures(splits, digests, found_in)
    _check_not_listed(splits, [f for f, c in zip(folders, read, strict=True) if c], found_in)
    return CheckReport(
        annotations=tuple(paths),
        counts=tuple(map(_counts, read)),
        findings=tuple(finding for found in findings for finding in found.listed()),
    )


def _check_not_listed(
    splits: Sequence[CocoColumns], folders: Sequence[Path | None], findings: Sequence[Findings]
) -> None:
    """Note pictures of the image folders that no split names, with the first split of a folder."""
    first: dict[Path, Findings] = {}
    named: set[str] = set()
    for columns, folder, found in zip(splits, folders, findings, strict=True):
        if folder is not None:
            first.setdefault(folder, found)
            named.update(_key(folder, name) for name in columns.file_names)
    if first:
        from detr_kit.data.conversions.picture_files import IMAGE_SUFFIXES, files_below

        for folder, found in first.items():
            there = files_below(folder, IMAGE_SUFFIXES)
            others = [name for name in there if _key(folder, name) not in named]
            cases = (Case(f"{name!r}: no json names it", file=name) for name in others[:MAX_CASES])
            found.add("not_listed", cases, count=len(others))


def _key(folder: Path, name: str) -> str:
    """Return what the path of a file has in common with names of another case of letters."""
    return os.path.normpath(os.path.join(folder, name.replace("\\", "/"))).casefold()


def splits_of(
    annotations: Paths, images: Paths | None = None
) -> list[tuple[CocoColumns | None, Path | None]]:
    """Return each file's columns, None where it is no COCO json, and its image folder, if any."""
    paths = _as_paths(annotations)
    read = [_read(path, Findings(path)) for path in paths]
    return list(zip(read, _folders(images, paths), strict=True))


def _as_paths(given: Paths) -> list[Path]:
    return [Path(given)] if isinstance(given, (str, Path)) else [Path(path) for path in given]


def _folders(images: Paths | None, annotations: list[Path]) -> Sequence[Path | None]:
    if images is None:
        return [None] * len(annotations)
    folders = _as_paths(images)
    for folder in folders:
        if not folder.is_dir():
            raise DetrKitError(f"{folder}: no such image folder")
    if len(folders) == 1:
        return folders * len(annotations)
    if len(folders) != len(annotations):
        raise DetrKitError(
            f"{len(annotations)} annotation files and {len(folders)} image folders: give one "
            "folder for all, or one for each"
        )
    return folders


def _read(path: Path, findings: Findings) -> CocoColumns | None:
    try:
        content = read_bytes(path)
        try:
            return columns_of(path, decode_json(path, content, CocoRecords))
        except DetrKitError as error:
            findings.add("not_coco", [Case(str(error).removeprefix(f"{path}: "))])
            return None
    except MemoryError as error:
        raise DetrKitError(f"{path}: there is not enough memory to read it") from error


def _check_pictures(
    columns: CocoColumns, folder: Path | None, findings: Findings, decode: bool
) -> dict[str, bytes]:
    if folder is None:
        return {}
    from detr_kit.data.checks.pictures import check_pictures

    return check_pictures(columns, folder, findings, decode=decode, progress=_progress)


def _progress(items: Iterable, total: int) -> Iterable:
    console = Console(stderr=True)
    # A disabled bar still ends with an empty line in some releases of rich.
    return (
        track(items, "reading pictures", total, console=console) if console.is_terminal else items
    )


def _counts(columns: CocoColumns | None) -> dict[str, int]:
    if columns is None:
        return {"images": 0, "objects": 0, "crowd_regions": 0, "categories": 0}
    num_crowd = int((columns.iscrowd == 1).sum())
    return {
        "images": len(columns.image_ids),
        "objects": len(columns.annotation_ids) - num_crowd,
        "crowd_regions": num_crowd,
        "categories": len(columns.category_ids),
    }
