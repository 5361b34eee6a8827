"""The frames of video files and cameras, as OpenCV reads them."""

from __future__ import annotations

import math
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.images import URL_REFUSED, is_url

VIDEO_SUFFIXES = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv"}
)
_CAMERA = re.compile(r"camera:(\d+)")
# For cameras and files that tell no rate, or the ticks of a clock in its place.
_USUAL_RATE, _HIGHEST_RATE = 30.0, 1000.0


def is_video(source: str | Path) -> bool:
    """Whether the suffix of a path is a video's, or it stands for a camera: `camera:0`."""
    return Path(source).suffix.lower() in VIDEO_SUFFIXES or camera_number(source) is not None


def camera_number(source: str | Path | int) -> int | None:
    """Return the N of N or `camera:N`, None for anything else."""
    if isinstance(source, int):
        return source
    matched = _CAMERA.fullmatch(str(source))
    return int(matched[1]) if matched else None


class VideoSource:
    """The frames of a file or a camera.

    `frame_rate` is frames per second, `announced` how many frames a file says that it has: None
    where it does not say, and for a camera. Raises DetrKitError for what cannot be opened.
    """

    def __init__(self, source: str | Path | int) -> None:
        number = camera_number(source)
        self.is_camera = number is not None
        self.name = str(source) if number is None else f"camera {number}"
        self._capture = _open_file(str(source)) if number is None else _open_camera(number)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frame_rate = rate if 0 < rate <= _HIGHEST_RATE else _USUAL_RATE
        self.announced = None if self.is_camera else announced_frames(self._capture)

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the second of each frame and its RGB pixels (H, W, 3) uint8, upright.

        Seconds are those of the file, a frame's length after the frame before where the file has
        none that go on; of a camera those since its first frame.
        """
        seconds: float | None = None  # of the frame before
        started: float | None = None
        while True:
            there, bgr = self._capture.read()
            if not there:
                self._capture.release()
                return
            if self.is_camera:
                now = time.monotonic()
                started = now if started is None else started
                seconds = now - started
            else:
                seconds = self._seconds_after(seconds)
            yield seconds, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def _seconds_after(self, before: float | None) -> float:
        """Return the second of the frame that was just read; `before` is that of the last one."""
        stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        # Not every kind of file has times, and in some they repeat.
        if math.isfinite(stamp) and (stamp >= 0 if before is None else stamp > before):
            return stamp
        return 0.0 if before is None else before + 1 / self.frame_rate

    def warn_where_short(self, frames: int) -> None:
        """Warn where a video that was read to its end had fewer frames than it announces."""
        if self.is_camera:
            text = f"gave no more after {frames} frames"
        elif self.announced is not None and falls_short(frames, self.announced):
            text = f"{frames} frames could be read of {self.announced} announced; it may be cut off"
        else:
            return
        warnings.warn(f"{self.name}: {text}", DetrKitWarning, stacklevel=3)


def announced_frames(capture: cv2.VideoCapture) -> int | None:
    """Return how many frames a file says that it has, None where it does not."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return round(count) if math.isfinite(count) and count > 0 else None


def falls_short(frames: int, announced: int) -> bool:
    """Whether a file lacks frames; what it announces is often an estimate from its length."""
    return announced - frames > max(1, announced // 100)


@contextmanager
def opening_quietly() -> Iterator[None]:
    """Keep OpenCV and FFmpeg from printing what is then raised as one line."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once, with the first video
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def _open_file(name: str) -> cv2.VideoCapture:
    path = Path(name)
    if not path.is_file():
        raise DetrKitError(f"{name}: {URL_REFUSED if is_url(name) else 'no such video file'}")
    with opening_quietly():
        # Absolute, as FFmpeg takes what stands before a colon for a protocol.
        capture = cv2.VideoCapture(str(path.absolute()))
    if not capture.isOpened():
        raise DetrKitError(f"{path}: not a video that OpenCV can read, or cut off at its end")
    return capture


def _open_camera(number: int) -> cv2.VideoCapture:
    with opening_quietly():
        capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise DetrKitError(f"camera {number}: cannot be opened")
    return capture
