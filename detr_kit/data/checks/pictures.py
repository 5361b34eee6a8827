"""Whether the pictures of a data set are there, can be read, and are what the json says."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

from PIL import Image

from detr_kit.data.checks.findings import Case, Findings, with_hint
from detr_kit.data.checks.picture_files import Inspector, PictureFile
from detr_kit.data.coco_file import CocoColumns
from detr_kit.data.conversions.picture_files import IMAGE_SUFFIXES, files_below
from detr_kit.data.names import stays_inside
from detr_kit.errors import DetrKitError
from detr_kit.sizes import SizeHW

Progress = Callable[[Iterable, int], Iterable]

# More threads than cores help where files come over a network; each may hold a decoded picture.
_THREADS = min(8, 2 * (os.cpu_count() or 1))
# Files that are looked at before the first of them is reported.
_AHEAD = 32 * _THREADS

T = TypeVar("T")
R = TypeVar("R")


def check_pictures(
    columns: CocoColumns,
    image_dir: Path,
    findings: Findings,
    *,
    decode: bool,
    progress: Progress | None = None,
) -> dict[str, bytes]:
    """Look at the file of every image; return the blake2b digest (16 bytes) by file name.

    Headers are parsed, with `decode` all pixels decoded: then the errors are what `read_image`
    refuses. Without, a file that was cut off is found by its missing end; damage in the middle
    is not. `progress` wraps the images as they are done, with their number; findings come in the
    order of the file.

    Digests are of all bytes: two files of the same pixels but other metadata differ. They are
    missing for files that are empty, too large or cannot be opened.

    Images without a name, or with one that leads out of the folder, are passed over. A symbolic
    link may lead anywhere: whoever placed it meant it. Raises DetrKitError for a missing folder.
    """
    image_dir = Path(image_dir)
    if not image_dir.is_dir():
        raise DetrKitError(f"{image_dir}: no such image folder")
    rows = [row for row, name in enumerate(columns.file_names) if name and stays_inside(name)]
    # As in a process that has read pictures of every kind: which formats Pillow tries in which
    # order depends on what it has read before.
    Image.preinit()
    Image.init()
    similar = SimilarNames(image_dir)
    inspector = Inspector(decode=decode)
    names = (columns.file_names[row] for row in rows)
    digests: dict[str, bytes] = {}
    missing: dict[int, str] = {}
    # Set once for all threads, as the filters belong to the process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files: Iterable[PictureFile] = in_order(lambda name: inspector(image_dir / name), names)
        if progress is not None:
            files = progress(files, len(rows))
        for row, file in zip(rows, files, strict=True):
            if file.digest is not None:
                digests[columns.file_names[row]] = file.digest
            for kind, reason in _faults(columns, row, file, similar):
                if kind == "file_missing":
                    missing[row] = reason
                else:
                    add_case(findings, kind, columns, row, reason)
    _add_missing(findings, columns, missing, image_dir, len(rows))
    _add_duplicates(findings, columns, rows, digests)
    return digests


def _faults(
    columns: CocoColumns, row: int, file: PictureFile, similar: SimilarNames
) -> Iterator[tuple[str, str]]:
    """Yield the kinds and reasons of everything that is wrong with the picture in `row`."""
    if file.fault is not None and file.fault[0] == "file_missing":
        name = columns.file_names[row]
        other = similar.first(name)
        if other is not None:
            yield "case_differs", similar.said(name, other)
        elif similar.is_written_with_backslashes(name):
            yield "file_missing", "no such file; there is one with / in the place of \\"
        else:
            yield file.fault
    elif file.fault is not None:
        yield file.fault
    else:
        yield from file.remarks
        height, width = columns.sizes_hw[row]
        yield from _size_faults(file, (int(height), int(width)))


def _size_faults(file: PictureFile, said_hw: SizeHW) -> Iterator[tuple[str, str]]:
    """Compare with the json as `read_image` does: first upright, then as stored."""
    stored_hw = file.size_hw
    upright_hw = stored_hw[::-1] if file.orientation in (5, 6, 7, 8) else stored_hw
    known = min(said_hw) > 0  # else it is reported as missing
    fault = size_fault(file, said_hw) if known else None
    if fault is not None:
        yield "size_differs", fault
    elif file.orientation in range(2, 9):
        orientation = f"orientation {file.orientation}"
        if known and said_hw != upright_hw:
            reason = f"{orientation} is ignored: the json has the stored size {_size(stored_hw)}"
        elif upright_hw != stored_hw:
            reason = (
                f"{orientation} is applied: {_size(upright_hw)} upright, {_size(stored_hw)} stored"
            )
        else:
            reason = f"{orientation} is applied; the size {_size(stored_hw)} fits either way"
        yield "exif_turned", reason


def size_fault(file: PictureFile, said_hw: SizeHW) -> str | None:
    """Say how the size of a picture, upright and as stored, differs from that of the json."""
    stored_hw = file.size_hw
    upright_hw = stored_hw[::-1] if file.orientation in (5, 6, 7, 8) else stored_hw
    if said_hw in (upright_hw, stored_hw):
        return None
    return f"the picture is {_size(upright_hw)}, the json says {_size(said_hw)}"


def _size(size_hw: SizeHW) -> str:
    return f"{size_hw[1]}x{size_hw[0]}"


def add_case(findings: Findings, kind: str, columns: CocoColumns, row: int, reason: str) -> None:
    """Add a case about the image in `row`."""
    findings.add(kind, [_case(columns, row, reason)])


def _case(columns: CocoColumns, row: int, reason: str) -> Case:
    name, image_id = columns.file_names[row], int(columns.image_ids[row])
    text = f"{_printable(name)}: {reason} (image {image_id})"
    return Case(text, file=name, image_id=image_id)


def _add_missing(
    findings: Findings, columns: CocoColumns, missing: dict[int, str], folder: Path, total: int
) -> None:
    """Add images without a file; where that are most, with a hint where the files are."""
    names = [columns.file_names[row] for row in missing]
    hint = where_they_are(names, folder) if len(names) > 3 and len(names) > 0.8 * total else ""
    cases = [_case(columns, row, reason) for row, reason in missing.items()]
    if cases:
        findings.add("file_missing", with_hint(cases, hint))


def where_they_are(names: list[str], folder: Path) -> str:
    """Say where files are that `folder` does not have by their `names`; "" where that is open."""
    first, *_ = parts = PurePosixPath(names[0]).parts
    if len(parts) > 1 and all(name.startswith(f"{first}/") for name in names):
        if folder.resolve().name == first and (folder.resolve().parent / names[0]).is_file():
            return f"names begin with {first}/, and --images is that folder: give its parent"
        if folder.joinpath(*parts[1:]).is_file():
            return f"names begin with {first}/, but the files are there without it"
    ends = [f"/{name}" for name in names[:3]]
    for path in files_below(folder, IMAGE_SUFFIXES):
        if path.endswith(ends[0]):
            below = path.removesuffix(ends[0])
            if all((folder / below / name).is_file() for name in names[:3]):
                return f"the files are in {_printable(below)}/ of the image folder: give that"
    return ""


def _printable(name: str) -> str:
    """Return a name on one line, with escapes for what has no place there."""
    return name if name.isprintable() else repr(name)[1:-1]


def _add_duplicates(
    findings: Findings, columns: CocoColumns, rows: list[int], digests: dict[str, bytes]
) -> None:
    first: dict[bytes, int] = {}
    seen: set[PurePosixPath] = set()
    for row in rows:
        name = columns.file_names[row]
        digest = digests.get(name)
        path = PurePosixPath(name)
        if digest is None or path in seen:
            continue
        seen.add(path)
        original = first.setdefault(digest, row)
        if original != row:
            other = _printable(columns.file_names[original])
            reason = f"the same content as {other} of image {columns.image_ids[original]}"
            add_case(findings, "duplicate_picture", columns, row, reason)


class SimilarNames:
    """Finds files whose names differ in the case of letters or in their Unicode form only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[Path, dict[str, list[str]]] = {}

    def first(self, file_name: str) -> str | None:
        """Return the name of the first file with a similar name."""
        return next(self._search(self.folder, PurePosixPath(file_name).parts), None)

    def actual(self, file_name: str) -> str | None:
        """Return the name of the one file with a similar name, None where several have one."""
        found = list(self._search(self.folder, PurePosixPath(file_name).parts))
        return found[0] if len(found) == 1 else None

    def said(self, file_name: str, actual: str) -> str:
        """Return what to say about a missing file that exists under a similar name."""
        if unicodedata.normalize("NFC", actual) == unicodedata.normalize("NFC", file_name):
            return f"the file's name has the same letters in other Unicode: {actual!a}"
        return f"the file is called {_printable(actual)}"

    def is_written_with_backslashes(self, file_name: str) -> bool:
        """Whether the file is there if the name is read as that of a file of Windows."""
        return "\\" in file_name and (self.folder / file_name.replace("\\", "/")).is_file()

    def _search(self, folder: Path, parts: tuple[str, ...]) -> Iterator[str]:
        for name in self._in_folder(folder).get(_folded(parts[0]), ()):
            path = folder / name
            if len(parts) == 1:
                # A link that leads nowhere is listed too.
                if path.exists():
                    yield path.relative_to(self.folder).as_posix()
            elif path.is_dir():
                yield from self._search(path, parts[1:])

    def _in_folder(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._entries:
            by_key: dict[str, list[str]] = {}
            with suppress(OSError):
                for name in sorted(os.listdir(folder)):
                    by_key.setdefault(_folded(name), []).append(name)
            self._entries[folder] = by_key
        return self._entries[folder]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def in_order(function: Callable[[T], R], items: Iterator[T]) -> Iterator[R]:
    """Call `function` on the items in several threads; yield the results in their order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # Where the caller stops early, what has not begun is left.
            for future in pending:
                future.cancel()
