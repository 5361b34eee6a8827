"""Detection in videos and from cameras, written as a drawn video and as a line of json a frame."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.images import ImageInput
from detr_kit.inference.predictor import Predictor
from detr_kit.inference.thresholds import Threshold
from detr_kit.inference.tracking import Tracker
from detr_kit.inference.video_output import Frame, Outputs, require_targets
from detr_kit.inference.video_source import VIDEO_SUFFIXES, VideoSource, is_video
from detr_kit.training.signals import StopSignals

__all__ = ["VIDEO_SUFFIXES", "VideoSummary", "is_video", "predict_video"]


@dataclass(frozen=True)
class VideoSummary:
    """What came of a video.

    `frames` were predicted, of those `announced` (None where the source does not say); `tracks` is
    None where nothing was tracked; `seconds` is the time it took; `stopped_by` names the signal
    that ended it, which cuts a file short and is how a camera is ended.
    """

    source: str
    is_camera: bool
    frames: int
    announced: int | None
    objects: int
    tracks: int | None
    seconds: float
    stopped_by: str | None

    def __str__(self) -> str:
        frames = f"{self.frames} frames"
        if self.stopped_by is not None:
            of = "" if self.announced is None else f" of {self.announced}"
            frames = f"stopped after {self.frames}{of} frames ({self.stopped_by})"
        parts = [frames, f"{self.objects} objects"]
        if self.tracks is not None:
            parts.append(f"{self.tracks} tracks")
        if self.seconds > 0:  # clocks of 16 ms see no time pass in a short video
            parts.append(f"{self.frames / self.seconds:.1f} frames a second")
        return f"{self.source}: {', '.join(parts)}"


def predict_video(
    predictor: Predictor,
    source: str | Path | int,
    *,
    out: str | Path | None = None,
    json_lines: str | Path | None = None,
    threshold: Threshold = 0.5,
    batch_size: int = 4,
    nms: float | None = None,
    track: bool = False,
    max_frames: int | None = None,
    progress: bool = True,
) -> VideoSummary:
    """Detect in every frame of a video file, or of a camera: its number or `camera:0`.

    `out` is a .mp4, .mkv or .avi for the drawn frames, `json_lines` a file with a line a frame.
    `track` gives objects ids that they keep from frame to frame. `threshold`, `batch_size` and
    `nms` are those of `Predictor.predict`; a camera's frame waits for a whole batch. Reading,
    drawing and encoding go on while the model works, a few frames ahead and behind.

    SIGINT and SIGTERM end it with what was read until then, as `max_frames` does; the outputs are
    complete up to there. Outputs are begun with the first frame and replace what was there when
    they are complete; until then, and where an error ends it, they are called NAME.partial.SUFFIX.

    Raises DetrKitError for a source that is no video, has no frame or is a URL, for outputs that
    cannot be written or would replace the source, and without norfair for `track`. Warns where a
    file has fewer frames than it announces, or a camera gives no more.
    """
    if max_frames is not None and max_frames < 1:
        raise DetrKitError(f"max_frames: expected at least 1, got {max_frames}")
    require_targets(source, [path for path in (out, json_lines) if path is not None])
    video = VideoSource(source)
    tracker = Tracker(frames_lost=round(video.frame_rate)) if track else None
    detect = partial(predictor.stream, threshold=threshold, batch_size=batch_size, nms=nms)
    frames = objects = 0
    started = time.monotonic()
    with (
        StopSignals() as signals,
        Outputs(video, out, json_lines) as outputs,
        _shown(video, max_frames, enabled=progress) as advance,
        closing(_found_in(video, max_frames, detect, tracker, signals)) as found,
    ):
        for frame in found:
            outputs.add(frame)
            frames, objects = frames + 1, objects + len(frame.detections)
            advance()
    if signals.received is None and frames != max_frames:  # read to its end
        if frames == 0:
            raise DetrKitError(f"{video.name}: no frame of it can be read")
        video.warn_where_short(frames)
    return VideoSummary(
        source=video.name,
        is_camera=video.is_camera,
        frames=frames,
        announced=video.announced,
        objects=objects,
        tracks=None if tracker is None else tracker.count,
        seconds=time.monotonic() - started,
        stopped_by=signals.received,
    )


def _found_in(
    video: VideoSource,
    max_frames: int | None,
    detect: Callable[[Iterator[np.ndarray]], Iterator[tuple[ImageInput, Detections]]],
    tracker: Tracker | None,
    signals: StopSignals,
) -> Generator[Frame, None, None]:
    """Yield the frames that are read before a signal comes, with what is found in them."""
    times: deque[float] = deque()  # of the frames that are with the model

    def until_stopped() -> Iterator[np.ndarray]:
        for seconds, rgb in islice(video.frames(), max_frames):
            if signals.received is not None:
                return
            times.append(seconds)
            yield rgb

    for number, (rgb, detections) in enumerate(detect(until_stopped())):
        assert isinstance(rgb, np.ndarray)
        track_ids = None if tracker is None else tracker.update(detections)
        yield Frame(number, times.popleft(), rgb, detections, track_ids)


@contextmanager
def _shown(
    video: VideoSource, max_frames: int | None, *, enabled: bool
) -> Iterator[Callable[[], None]]:
    """Show progress on a terminal; yield what moves it on by a frame."""
    console = Console(stderr=True)
    ends = [end for end in (video.announced, max_frames) if end is not None]
    columns: list[ProgressColumn] = [
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
    ]
    if ends:
        columns += [TextColumn("left"), TimeRemainingColumn(compact=True)]
    with Progress(*columns, console=console, disable=not (enabled and console.is_terminal)) as bar:
        task = bar.add_task(escape(video.name), total=min(ends, default=None))
        yield lambda: bar.advance(task)


class _Rate(ProgressColumn):
    """Frames a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")
