"""Drawn videos and json lines that have what was found so far, whatever ends the process.

Until it is complete, an output is a file beside its place with `.partial` in the name; it is begun
with the first frame. A run that fails leaves it there.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import cv2
import numpy as np

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.files import is_one_of
from detr_kit.inference.video_source import (
    VideoSource,
    announced_frames,
    falls_short,
    opening_quietly,
)
from detr_kit.outputs import require_output

# What OpenCV's own wheels can encode everywhere; H.264 they cannot.
CODECS = {".avi": "MJPG", ".mkv": "mp4v", ".mp4": "mp4v"}
# Frames that may wait for being drawn before the model waits for the drawing.
_MOST_UNDRAWN = 8


@dataclass(frozen=True)
class Frame:
    """A frame (H, W, 3) uint8 RGB and what was found in it; `track_ids` (N,) or None."""

    number: int
    seconds: float
    rgb: np.ndarray
    detections: Detections
    track_ids: np.ndarray | None

    def to_row(self) -> dict[str, Any]:
        """Return the frame's line of json; image ids are frame numbers."""
        rows = self.detections.to_coco(self.number)
        for row, name in zip(rows, self.detections.names, strict=True):
            row["name"] = name
        if self.track_ids is not None:
            for row, track_id in zip(rows, self.track_ids.tolist(), strict=True):
                row["track_id"] = track_id if track_id >= 0 else None
        return {"frame": self.number, "time": round(self.seconds, 3), "detections": rows}

    def drawn(self) -> np.ndarray:
        """Return the pixels with boxes, names, scores and track ids."""
        notes = None
        if self.track_ids is not None:
            notes = [f"#{id_}" if id_ >= 0 else "" for id_ in self.track_ids.tolist()]
        return np.asarray(self.detections.draw(self.rgb, notes))


class Outputs:
    """What a run writes; drawing and encoding are done in a thread of their own.

    Where the block raises, the outputs are left under their partial names; where one of them cannot
    be put in its place, the other is.
    """

    def __init__(
        self, video: VideoSource, out: str | Path | None, json_lines: str | Path | None
    ) -> None:
        self._video = video
        self._lines = None if json_lines is None else JsonLines(json_lines)
        self._drawn = None if out is None else VideoFile(out, video.frame_rate)
        self._pool = ThreadPoolExecutor(1, "detr_kit-draw")
        self._undrawn: deque[Future[None]] = deque()

    def add(self, frame: Frame) -> None:
        if self._lines is not None:
            self._lines.write(frame.to_row())
        if self._drawn is not None:
            self._undrawn.append(self._pool.submit(self._draw, self._drawn, frame))
            if len(self._undrawn) > _MOST_UNDRAWN:
                self._undrawn.popleft().result()

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        failures = [drawing.exception() for drawing in self._undrawn]
        failure = error or next(filter(None, failures), None)
        complete = failure is None
        for output in (self._lines, self._drawn):
            if output is None:
                continue
            try:
                output.close(complete=complete)
            except Exception as unclosed:  # the other one is complete still
                failure = failure or unclosed
        if error is None and failure is not None:
            raise failure

    def _draw(self, drawn: VideoFile, frame: Frame) -> None:
        copies = 1
        if self._video.is_camera:
            # Frames come as fast as the model takes them; the video shall last as long as they did.
            copies = int(frame.seconds * drawn.frame_rate) + 1 - drawn.frames
        if copies > 0:
            pixels = frame.drawn()
        for _ in range(copies):
            drawn.write(pixels)


class JsonLines:
    """A line of json at a time, whole in the file before the next one is begun."""

    def __init__(self, target: str | Path) -> None:
        self.target = Path(target)
        self._file: BinaryIO | None = None

    def write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False) + "\n"
        with _errors_about(self.target):
            if self._file is None:
                self._file = open(_partial_to_begin(self.target), "wb")  # noqa: SIM115
            self._file.write(line.encode())
            self._file.flush()

    def close(self, *, complete: bool) -> None:
        """Put the file in its place if it is `complete`."""
        if self._file is None:
            return
        with _errors_about(self.target):
            self._file.close()
            if complete:
                _put_in_place(self.target)


class VideoFile:
    """A video that is being written; `frame_rate` is frames per second.

    Raises DetrKitError where the suffix is not one of `CODECS`.
    """

    def __init__(self, target: str | Path, frame_rate: float) -> None:
        self.target = Path(target)
        self.frame_rate = frame_rate
        self.frames = 0
        self._size_wh = (0, 0)
        self._writer: cv2.VideoWriter | None = None
        if self.target.suffix.lower() not in CODECS:
            raise DetrKitError(f"{target}: a video's name must end with one of {', '.join(CODECS)}")

    def write(self, rgb: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8. Raises DetrKitError where this OpenCV has no encoder.

        A last row or column is repeated where a side is odd: encoders want even ones. The first
        frame decides on the size, others are resized to it.
        """
        if self._writer is None:
            self._size_wh = (rgb.shape[1], rgb.shape[0])
            self._writer = self._opened()
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        width, height = self._size_wh
        if bgr.shape[:2] != (height, width):
            bgr = cv2.resize(bgr, self._size_wh, interpolation=cv2.INTER_AREA)
        even = cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._writer.write(even)
        self.frames += 1

    def close(self, *, complete: bool) -> None:
        """Put the file in its place if it is `complete`.

        Raises DetrKitError where it lacks frames: OpenCV does not tell of a disk that is full.
        """
        if self._writer is None:
            return
        self._writer.release()
        if not complete:
            return
        written = _frames_in(partial_path(self.target))
        if falls_short(written, self.frames):
            raise DetrKitError(
                f"{self.target}: {written} of {self.frames} frames were written; is the disk full?"
            )
        with _errors_about(self.target):
            _put_in_place(self.target)

    def _opened(self) -> cv2.VideoWriter:
        width, height = (side + side % 2 for side in self._size_wh)
        codec = CODECS[self.target.suffix.lower()]
        with _errors_about(self.target):
            partial = _partial_to_begin(self.target)
            partial.write_bytes(b"")  # tells of folders and rights, which OpenCV does not
        with opening_quietly():
            fourcc = cv2.VideoWriter.fourcc(*codec)
            path = str(partial.absolute())
            writer = cv2.VideoWriter(path, fourcc, self.frame_rate, (width, height))
        if not writer.isOpened():
            partial.unlink()
            raise DetrKitError(
                f"{self.target}: this OpenCV cannot encode {codec} at {width} x {height}; "
                f"try another of {', '.join(CODECS)}"
            )
        return writer


def partial_path(target: Path) -> Path:
    """Return where an output is until it is complete: clip.partial.mkv for clip.mkv."""
    return target.with_name(f"{target.stem}.partial{target.suffix}")


def require_targets(source: str | Path | int, targets: Sequence[str | Path]) -> None:
    """Raise DetrKitError for outputs that cannot be written, or replace the source or each other.

    Nothing is written to find out; what shows itself only later is an error then.
    """
    paths = [Path(target) for target in targets]
    for path in paths:
        written = (path, partial_path(path))
        if not isinstance(source, int) and any(is_one_of(one, [source]) for one in written):
            raise DetrKitError(f"{path}: writing it would replace the source {source}")
        for one in written:
            require_output(one)
    if len({path.resolve() for path in paths}) < len(paths):
        raise DetrKitError(f"{paths[0]}: named for two outputs")


def _frames_in(path: Path) -> int:
    """Return how many frames a video has: what it announces, or else what can be read.

    Files whose end is missing, as on a full disk, announce nothing; nor do good ones of some kinds.
    """
    with opening_quietly():
        capture = cv2.VideoCapture(str(path.absolute()))
        frames = announced_frames(capture)
        if frames is None:
            frames = 0
            while capture.grab():
                frames += 1
    capture.release()
    return frames


def _partial_to_begin(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return partial_path(target)


def _put_in_place(target: Path) -> None:
    partial = partial_path(target)
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    partial.replace(target)


@contextmanager
def _errors_about(target: Path) -> Iterator[None]:
    """Raise an OSError about the partial file as one about the target."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
