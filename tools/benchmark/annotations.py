"""Print time and memory of reading a json of COCO's size, as ratios to pycocotools', in one run.

    python tools/benchmark/annotations.py [FOLDER] [--repeats N] [--images N] [--boxes N]

FOLDER is where the json stands or is written to (450 MB, some ten seconds); without one it is a
folder for temporary files. Each side runs in a process of its own, in turn:

- `pycocotools` is `COCO(file)`, the reference: records as dicts, indexed by picture;
- `columns` is `load_annotations(file)`;
- `cache, first` and `cache, next` are `load_annotations(file, cache_dir=...)` with an empty cache
  and again in the next process.

The file is read once before, so that no side waits for the disk. `peak`, `kept` and `own` are
over the interpreter with its imports: the most memory while reading, what is resident after it
when every column has been touched and freed memory was given back, and how much of that is the
process's own, not pages of a file that all processes share. Ratios are pycocotools' divided by the
side's; min, median and max are over the repeats. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from coco_sized import NUM_BOXES, NUM_IMAGES, coco_sized_json

PROC = Path("/proc/self")
SIDES = ("pycocotools", "columns", "cache, first", "cache, next")
FIGURES = ("seconds", "peak", "kept", "own")


def _bytes(name: str) -> int:
    return int(re.findall(rf"{name}:\s+(\d+) kB", (PROC / "status").read_text())[0]) * 1024


def give_back_freed() -> None:
    """Collect garbage and return freed memory to the system, which only glibc can be told to."""
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def measure(side: str, path: Path, cache_dir: Path) -> dict[str, float]:
    """Read `path` in this process; memory is in bytes."""
    read = _reader(side, path, cache_dir)
    give_back_freed()
    resident, own = _bytes("VmRSS"), _bytes("RssAnon")
    # The peak starts anew: that of the imports must not hide the one of a side that needs little.
    (PROC / "clear_refs").write_text("5")
    start = time.perf_counter()
    kept = read()
    seconds = time.perf_counter() - start
    peak = _bytes("VmHWM")
    if side != "pycocotools":
        _touch(kept)
    give_back_freed()
    return {
        "seconds": seconds,
        "peak": peak - resident,
        "kept": _bytes("VmRSS") - resident,
        "own": _bytes("RssAnon") - own,
    }


def _reader(side: str, path: Path, cache_dir: Path) -> Callable[[], object]:
    """Return what is timed; its imports are done."""
    if side == "pycocotools":
        from pycocotools.coco import COCO

        return lambda: COCO(str(path))
    from detr_kit.data.annotations import load_annotations

    if side == "columns":
        return lambda: load_annotations(path)
    return lambda: load_annotations(path, cache_dir=cache_dir)


def _touch(annotations: object) -> None:
    """Read every column, so that those mapped from a file count as resident."""
    for column in vars(annotations).values():
        for array in (column, getattr(column, "data", None), getattr(column, "offsets", None)):
            if isinstance(array, np.ndarray):
                array.max()


def in_own_process(side: str, path: Path, cache_dir: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", side, str(path), str(cache_dir)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output)


def read_once(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 22):
            pass


def table(rows: list[dict[str, dict[str, float]]]) -> str:
    """Return the medians of every side, and the ratios over the repeats."""
    lines = [f"{'':14}{'seconds':>9}{'peak MB':>9}{'kept MB':>9}{'own MB':>9}   "]
    lines[0] += "".join(f"{title:^27}" for title in ("times faster", "less peak", "less kept"))
    lines += [" " * 53 + f"{'min':>8}{'median':>9}{'max':>9} " * 3]
    for side in SIDES:
        values = {name: np.array([row[side][name] for row in rows]) for name in FIGURES}
        seconds, *sizes = (np.median(values[name]) for name in FIGURES)
        line = f"{side:14}{seconds:9.4f}" + "".join(f"{size / 1e6:9.1f}" for size in sizes) + "   "
        for name in FIGURES[:3]:
            ratio = np.array([row["pycocotools"][name] for row in rows]) / values[name]
            line += f"{ratio.min():8.1f}{np.median(ratio):9.1f}{ratio.max():9.1f} "
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="detr_kit's annotation reading against COCO's")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--boxes", type=int, default=NUM_BOXES)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (PROC / "status").exists():
        raise SystemExit("memory is read from /proc/self/status, which only Linux has")
    if arguments.measure:
        side, path, cache_dir = arguments.measure
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            figures = measure(side, Path(path), Path(cache_dir))
        print(json.dumps(figures))
        return
    path = coco_sized_json(arguments.folder, arguments.images, arguments.boxes)
    read_once(path)
    size = path.stat().st_size / 1e6
    print(f"{path.name}: {size:.0f} MB, {arguments.images} images, {arguments.boxes} boxes")
    rows = []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory(dir=path.parent) as cache_dir:
            rows.append({side: in_own_process(side, path, Path(cache_dir)) for side in SIDES})
    print(table(rows))


if __name__ == "__main__":
    main()
