from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.inference import video_output, video_source
from detr_kit.inference.video import VideoSummary, is_video, predict_video
from tests.inference.videos import (
    RATE,
    SIZE_HW,
    BrightBox,
    frame_of,
    lines_of,
    read_video,
    write_video,
)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_output_has_the_frames_and_the_rate_of_the_source(
    clip: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / "deep" / f"drawn{suffix}"
    summary = predict_video(BrightBox(), clip, out=out, batch_size=5)
    assert (summary.frames, summary.announced, summary.objects) == (12, 12, 12)
    assert not summary.is_camera
    assert str(summary).startswith(f"{clip}: 12 frames, 12 objects, ")
    rate, frames = read_video(out)
    assert rate == RATE
    assert len(frames) == 12
    # Frame n has its square and the line around it where frame n of the source has the square.
    for number in (0, 11):
        unlike = np.abs(frames[number].astype(int) - frame_of(number)).max(axis=2) > 100
        columns = np.flatnonzero(unlike[48])
        assert abs(columns.min() - (4 + 2 * number)) <= 2
        assert abs(columns.max() - (36 + 2 * number)) <= 2
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_line_a_frame(clip: Path, tmp_path: Path) -> None:
    lines = tmp_path / "found.jsonl"
    predict_video(BrightBox(), clip, json_lines=lines, max_frames=3)
    rows = lines_of(lines)
    assert [row["frame"] for row in rows] == [0, 1, 2]
    assert [row["time"] for row in rows] == [0.0, 0.08, 0.16]
    (found,) = rows[2]["detections"]
    assert (found["image_id"], found["category_id"], found["name"]) == (2, 7, "light")
    assert found["score"] == pytest.approx(0.9)
    assert np.abs(np.array(found["bbox"]) - [8, 32, 32, 32]).max() < 3
    assert "track_id" not in found


def test_frames_without_objects_have_lines_too(clip: Path, tmp_path: Path) -> None:
    lines = tmp_path / "found.jsonl"
    summary = predict_video(BrightBox(), clip, json_lines=lines, threshold={"light": 0.95})
    assert summary.objects == 0
    assert lines_of(lines)[5] == {"frame": 5, "time": 0.4, "detections": []}


def test_tracked_objects_have_their_id_in_lines_and_drawings(clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("norfair", reason="needs the extra [track]")
    lines = tmp_path / "found.jsonl"
    tracked, plain = tmp_path / "tracked.avi", tmp_path / "plain.avi"
    summary = predict_video(BrightBox(), clip, out=tracked, json_lines=lines, track=True)
    assert summary.tracks == 1
    assert ", 1 tracks, " in str(summary)
    ids = [found["track_id"] for row in lines_of(lines) for found in row["detections"]]
    assert ids == [None, *[1] * 11]
    predict_video(BrightBox(), clip, out=plain)
    with_id, without = read_video(tracked)[1], read_video(plain)[1]
    assert np.array_equal(with_id[0], without[0])
    assert not np.array_equal(with_id[1], without[1])


def test_odd_sides_get_a_pixel_more(tmp_path: Path) -> None:
    clip = tmp_path / "odd.mkv"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (101, 73))
    for number in range(4):
        writer.write(frame_of(number, (73, 101)))
    writer.release()
    height, width = read_video(clip)[1][0].shape[:2]
    out = video_output.VideoFile(tmp_path / "out.mp4", RATE)
    for number in range(4):
        out.write(frame_of(number, (73, 101)))
    out.close(complete=True)
    frames = read_video(tmp_path / "out.mp4")[1]
    assert frames[0].shape[:2] == (74, 102)
    assert np.abs(frames[0][-1].astype(int) - frames[0][-2]).max() < 12
    predict_video(BrightBox(), clip, out=tmp_path / "again.mp4")
    assert read_video(tmp_path / "again.mp4")[1][0].shape[:2] == (
        height + height % 2,
        width + width % 2,
    )


def test_rotation_of_a_phone_is_applied(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "phone.mp4", codec="mp4v")
    content = bytearray(clip.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # of a version 0 track header
    unity = struct.unpack(">9i", content[matrix : matrix + 36])
    assert unity == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    quarter_turn = (0, 65536, 0, -65536, 0, 0, SIZE_HW[0] << 16, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", *quarter_turn)
    clip.write_bytes(content)
    lines, out = tmp_path / "found.jsonl", tmp_path / "drawn.mkv"
    predict_video(BrightBox(), clip, out=out, json_lines=lines)
    assert read_video(out)[1][0].shape[:2] == SIZE_HW[::-1]
    first, last = (lines_of(lines)[at]["detections"][0]["bbox"] for at in (0, -1))
    assert last[1] - first[1] == pytest.approx(22, abs=3)  # it moves down now
    assert last[0] == pytest.approx(first[0], abs=3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_frames_so_far(tmp_path: Path, number: signal.Signals) -> None:
    clip = write_video(tmp_path / "long.avi", frames=200)
    out, lines = tmp_path / "drawn.mp4", tmp_path / "found.jsonl"
    before = signal.getsignal(number)

    def ask_to_stop() -> None:
        if signal.getsignal(number) is not before:
            os.kill(os.getpid(), number)

    summary = predict_video(BrightBox(ask_to_stop), clip, out=out, json_lines=lines, batch_size=2)
    assert summary.stopped_by == number.name
    assert 0 < summary.frames < 40
    assert f"stopped after {summary.frames} of 200 frames ({number.name})" in str(summary)
    assert len(read_video(out)[1]) == len(lines_of(lines)) == summary.frames
    assert signal.getsignal(number) is before
    assert not list(tmp_path.glob("*.partial.*"))


def test_an_error_leaves_what_was_there_and_the_frames_so_far(clip: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "drawn.avi", tmp_path / "found.jsonl"
    out.write_text("old")
    lines.write_text("old")
    batches = 0

    def fail_later() -> None:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        predict_video(BrightBox(fail_later), clip, out=out, json_lines=lines, batch_size=3)
    assert out.read_text() == lines.read_text() == "old"
    assert len(read_video(tmp_path / "drawn.partial.avi")[1]) == 6
    assert len(lines_of(tmp_path / "found.partial.jsonl")) == 6


def test_nothing_is_touched_before_the_first_frame(clip: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("no memory")

    before = sorted(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="no memory"):
        predict_video(BrightBox(fail), clip, out=tmp_path / "a.avi", json_lines=tmp_path / "b")
    assert sorted(tmp_path.iterdir()) == before


def test_lines_are_there_before_the_end(clip: Path, tmp_path: Path) -> None:
    lengths = []
    partial = tmp_path / "found.partial.jsonl"

    def look() -> None:
        lengths.append(len(lines_of(partial)) if partial.exists() else 0)

    predict_video(BrightBox(look), clip, json_lines=tmp_path / "found.jsonl", batch_size=4)
    assert lengths == [0, 4, 8]


def test_no_more_frames_are_held_than_batches_need(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "long.avi", frames=150)
    ahead = []
    read = 0
    frames = video_source.VideoSource.frames

    def counted(self: video_source.VideoSource) -> Any:
        nonlocal read
        for frame in frames(self):
            read += 1
            yield frame

    detected = 0

    def look() -> None:
        nonlocal detected
        time.sleep(0.002)
        ahead.append(read - detected)
        detected += 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_source.VideoSource, "frames", counted)
        predict_video(BrightBox(look), clip, out=tmp_path / "drawn.avi", batch_size=2)
    assert detected == 150
    assert max(ahead) <= 8


def test_a_cut_off_video_gives_its_frames_and_a_warning(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "long.avi", frames=100)
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    lines = tmp_path / "found.jsonl"
    with pytest.warns(DetrKitWarning, match=r"of 100 announced; it may be cut off"):
        summary = predict_video(BrightBox(), clip, json_lines=lines)
    assert 30 < summary.frames < 70
    assert len(lines_of(lines)) == summary.frames


def test_what_is_no_video(tmp_path: Path) -> None:
    detector = BrightBox()
    text = tmp_path / "text.mp4"
    text.write_text("not a video" * 50)
    cut = write_video(tmp_path / "cut.mp4", codec="mp4v")  # its index is at its end
    cut.write_bytes(cut.read_bytes()[:-1000])
    empty = write_video(tmp_path / "empty.avi", frames=0)
    for source, message in (
        (text, "text.mp4: not a video that OpenCV can read"),
        (cut, "cut.mp4: not a video that OpenCV can read, or cut off at its end"),
        (empty, r"empty.avi: (not a video|no frame of it can be read)"),
        (tmp_path / "gone.mp4", "gone.mp4: no such video file"),
        (tmp_path, "no such video file"),
        ("https://example.com/a.mp4", "a.mp4: URLs are not fetched"),
        (Path("rtsp://example.com/a"), "URLs are not fetched"),
        ("camera:97", "camera 97: cannot be opened"),
        (97, "camera 97: cannot be opened"),
    ):
        with pytest.raises(DetrKitError, match=message) as raised:
            predict_video(detector, source, out=tmp_path / "out.mkv")
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("out*"))


def test_ffmpeg_and_opencv_print_nothing_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video" * 50)
    program = (  # in a process of its own: FFmpeg is told once, with the first video
        "from detr_kit.errors import DetrKitError\n"
        "from detr_kit.inference.video_source import VideoSource\n"
        "for source in ('text.mp4', 'camera:97'):\n"
        "    try: VideoSource(source)\n"
        "    except DetrKitError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["text.mp4", "camera 97"]


class Stamped:
    """A file of 30 frames a second whose frames have the given times, in seconds."""

    def __init__(self, *stamps: float) -> None:
        self.stamps = stamps
        self.read_frames = 0

    def get(self, prop: int) -> float:
        if prop == cv2.CAP_PROP_POS_MSEC:
            return self.stamps[self.read_frames - 1] * 1000
        return 30.0 if prop == cv2.CAP_PROP_FPS else len(self.stamps)

    def read(self) -> tuple[bool, np.ndarray]:
        self.read_frames += 1
        return self.read_frames <= len(self.stamps), frame_of(0)

    def release(self) -> None:
        pass


@pytest.mark.parametrize(
    ("stamps", "seconds"),
    [
        ((0, 10, 20, 20, 20.04, 20.08), [0, 10, 20, 20 + 1 / 30, 20.04, 20.08]),
        ((0, 10, 20, 20, 20.033), [0, 10, 20, 20 + 1 / 30, 20 + 2 / 30]),
        ((5, 3, 5.5), [5, 5 + 1 / 30, 5.5]),
        ((0, 0, 0), [0, 1 / 30, 2 / 30]),
        ((math.nan, math.nan, 0.5), [0, 1 / 30, 0.5]),
        ((-0.5, 0.5), [0, 0.5]),
    ],
)
def test_times_do_not_run_backwards(
    stamps: tuple[float, ...], seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_source, "_open_file", {"a.avi": Stamped(*stamps)}.get)
    frames = video_source.VideoSource("a.avi").frames()
    assert [time for time, _ in frames] == pytest.approx(seconds)


def test_a_clock_that_saw_no_time_pass_gives_no_rate() -> None:
    summary = VideoSummary("a.avi", False, 3, 3, 5, None, seconds=0.0, stopped_by=None)
    assert str(summary) == "a.avi: 3 frames, 5 objects"


class Camera:
    """Gives 5 frames, one in 0.1 s, and says that it gives 50 a second."""

    left = 5

    def get(self, prop: int) -> float:
        return 50.0 if prop == cv2.CAP_PROP_FPS else 0.0

    def read(self) -> tuple[bool, np.ndarray]:
        time.sleep(0.1)
        self.left -= 1
        return self.left >= 0, frame_of(self.left)

    def release(self) -> None:
        pass


def test_the_video_of_a_camera_lasts_as_long_as_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_source, "_open_camera", {3: Camera()}.get)
    lines, out = tmp_path / "found.jsonl", tmp_path / "drawn.mkv"
    with pytest.warns(DetrKitWarning, match="camera 3: gave no more after 5 frames"):
        summary = predict_video(BrightBox(), "camera:3", out=out, json_lines=lines, batch_size=1)
    assert (summary.is_camera, summary.frames, summary.announced) == (True, 5, None)
    seconds = [row["time"] for row in lines_of(lines)]
    assert seconds[0] == 0
    assert seconds[-1] >= 0.4
    rate, frames = read_video(out)
    assert rate == 50
    assert len(frames) == int(seconds[-1] * 50) + 1


def test_max_frames_of_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_source, "_open_camera", {0: Camera()}.get)
    assert predict_video(BrightBox(), 0, max_frames=2, batch_size=1).frames == 2


def test_names_of_videos() -> None:
    assert all(map(is_video, ["a.mp4", Path("b/c.MKV"), "camera:0"]))
    assert not any(map(is_video, ["a.jpg", "mp4", "camera:", "camera:x", "camera"]))
