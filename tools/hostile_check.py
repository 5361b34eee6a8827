"""Print what `detr-kit predict` says to hostile input, and the memory that it takes.

    python tools/hostile_check.py CHECKPOINT

Each input goes through a process of its own: a decompression bomb, a truncated JPEG, a text file
called .jpg, an empty folder, a URL, pictures of 1x1, 1x5000 and 5000x1 pixels, all of these in one
folder, and 10,000 boxes to draw. Ends with status 1 where a process says more than a line for each
unreadable picture, shows a traceback, or takes 2 GiB or more.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

LIMIT_MIB = 2048
DRAW = """
import sys
import numpy as np
from detr_kit import Detections

draw = np.random.default_rng(0).uniform
corners = draw(0, 1900, (10_000, 2))
boxes = np.concatenate([corners, corners + draw(2, 90, (10_000, 2))], axis=1)
ids = np.arange(10_000) % 80
found = Detections(boxes, draw(0, 1, 10_000), ids, [f"class {i}" for i in ids])
found.draw(np.full((2000, 2000, 3), 127, dtype=np.uint8)).save(sys.argv[1])
print("10,000 boxes drawn")
"""


def bomb(path: Path, side: int = 40_000) -> None:
    """Write a PNG of some hundred kilobytes that holds side x side black pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    packed = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def truncated(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(width: int, height: int) -> Callable[[Path], None]:
    return lambda path: Image.new("RGB", (width, height), "white").save(path)


FILES: dict[str, Callable[[Path], object]] = {
    "bomb.png": bomb,
    "truncated.jpg": truncated,
    "text.jpg": lambda path: path.write_text("this is no picture\n" * 100),
    "empty": lambda path: path.mkdir(),
    "one.png": blank(1, 1),
    "upright.png": blank(1, 5000),
    "flat.png": blank(5000, 1),
}


def run(command: list[str]) -> tuple[int, list[str], float]:
    """Return the exit status, the lines said and the peak memory in MiB of a process."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, lines, usage.ru_maxrss / 1024


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if "--help" in sys.argv else 2)
    failed = False
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        inputs = {name: folder / "in" / name for name in FILES}
        (folder / "in").mkdir()
        for name, write in FILES.items():
            write(inputs[name])
        predict = [sys.executable, "-m", "detr_kit.cli", "predict", sys.argv[1]]
        out = ["--out", str(folder / "out"), "--threshold", "0"]
        cases = {name: [*predict, str(path), *out] for name, path in inputs.items()}
        cases["a URL"] = [*predict, "https://example.org/picture.jpg", *out]
        cases["all in a folder"] = [*predict, str(folder / "in"), *out]
        cases["10,000 boxes"] = [sys.executable, "-c", DRAW, str(folder / "boxes.png")]
        for name, command in cases.items():
            status, lines, peak = run(command)
            print(f"{name}: status {status}, {peak:.0f} MiB")
            for line in lines[-8:]:
                print(f"    {line.replace(folder_name, '...')}")
            traced = any("Traceback" in line for line in lines)
            failed |= traced or status not in (0, 1) or len(lines) > 6 or peak >= LIMIT_MIB
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
