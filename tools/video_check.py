"""What is left of a video's results when their run is cut short?

    python tools/video_check.py runs/sample                # a detector of the sample data

Slides over generated sample pictures, so that their shapes move, and runs the detector on the
video in processes of their own. Each is struck when it has predicted --frames frames: asked to stop
(SIGINT, SIGTERM), or killed (kill -9). Then its outputs are opened. After SIGINT and SIGTERM they
must be in place, with as many frames as lines and the rate of the source; after kill -9 every line
must be whole, and .mkv and .avi must open. Exits with status 1 where they do not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from detr_kit.data.sample import PRESETS, draw_picture
from detr_kit.inference.video_output import partial_path

RATE = 25.0
PICTURES = 16
STEP = 2  # pixels of a sample picture that the view moves in a frame
SCALE = 4  # to a size that videos have
PATIENCE = 120
RUN = """
import sys
from detr_kit import Detector
from detr_kit.inference.video import predict_video
checkpoint, clip, out, lines = sys.argv[1:]
print(predict_video(Detector.from_checkpoint(checkpoint), clip, out=out, json_lines=lines))
"""
STRIKES = (
    (signal.SIGINT, ".mp4"),
    (signal.SIGTERM, ".mkv"),
    (signal.SIGKILL, ".mkv"),
    (signal.SIGKILL, ".avi"),
    (signal.SIGKILL, ".mp4"),
)


@dataclass(frozen=True)
class Left:
    """What was found of a video and of its json lines; no `rate` where the video does not open."""

    frames: int
    rate: float | None
    lines: int
    is_cut_off: bool  # in the middle of a line


def write_clip(path: Path) -> int:
    """Write a video of shapes that move to the left; return its number of frames."""
    preset = PRESETS["easy"]
    pictures = [draw_picture(preset, 1, "val", index).pixels for index in range(PICTURES)]
    panorama = np.concatenate(pictures, axis=1)[:, :, ::-1]
    side = preset.side
    size_wh = (side * SCALE, side * SCALE)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, size_wh)
    starts = range(0, panorama.shape[1] - side, STEP)
    for start in starts:
        writer.write(cv2.resize(panorama[:, start : start + side], size_wh))
    writer.release()
    return len(starts)


def strike(
    number: signal.Signals, checkpoint: str, clip: Path, out: Path, lines: Path, frames: int
) -> str:
    """Run the detector until it has predicted `frames`; return what it said in the end."""
    command = [sys.executable, "-c", RUN, checkpoint, str(clip), str(out), str(lines)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    partial, end = partial_path(lines), time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if partial.exists() and partial.read_bytes().count(b"\n") >= frames:
            process.send_signal(number)
            break
        time.sleep(0.01)
    else:
        process.kill()
    said, _ = process.communicate(timeout=PATIENCE)
    return said.strip()


def look(out: Path, lines: Path) -> Left:
    """Open both outputs, under their partial names where they are not in place."""
    video = out if out.exists() else partial_path(out)
    capture = cv2.VideoCapture(str(video))
    frames = 0
    while capture.read()[0]:
        frames += 1
    text = (lines if lines.exists() else partial_path(lines)).read_text(encoding="utf-8")
    *whole, rest = text.split("\n")
    rows = [json.loads(line) for line in whole]
    assert [row["frame"] for row in rows] == list(range(len(rows)))
    rate = capture.get(cv2.CAP_PROP_FPS) if capture.isOpened() else None
    return Left(frames, rate, len(rows), is_cut_off=bool(rest))


def fault_of(number: signal.Signals, out: Path, lines: Path, left: Left) -> str:
    """Say what is not as it must be, or nothing."""
    if left.is_cut_off:
        return "a line is not whole"
    if number != signal.SIGKILL:
        if not (out.exists() and lines.exists()):
            return "not put in place"
        if not 0 < left.frames == left.lines:
            return "frames and lines differ"
    elif out.suffix != ".mp4" and not left.frames:
        return "the video does not open"
    return "" if left.rate in (RATE, None) else "another frame rate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--frames", type=int, default=150, help="predicted before the signal")
    args = parser.parse_args()
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"  # files that are cut off are what this is about
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.avi"
        print(f"{write_clip(clip)} frames of {RATE} a second\n")
        print(f"{'signal':8} {'video':8} {'frames':>8} {'rate':>6} {'lines':>8}  said", flush=True)
        for number, suffix in STRIKES:
            out = Path(folder) / f"{number.name}{suffix}"
            lines = out.with_suffix(f"{suffix}.jsonl")
            said = strike(number, args.checkpoint, clip, out, lines, args.frames)
            left = look(out, lines)
            fault = fault_of(number, out, lines, left)
            faults += bool(fault)
            rate = left.rate or "none"
            print(
                f"{number.name:8} {suffix:8} {left.frames:8} {rate:>6} {left.lines:8}  "
                f"{fault or said.removeprefix(f'{folder}/') or 'nothing'}",
                flush=True,
            )
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
