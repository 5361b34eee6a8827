from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from detr_kit.errors import DetrKitError
from detr_kit.inference import video_output
from detr_kit.inference.video import predict_video
from tests.inference.videos import (
    RATE,
    BrightBox,
    frame_of,
    lines_of,
    read_video,
    write_video,
)


def test_outputs_that_cannot_be(clip: Path, tmp_path: Path) -> None:
    detector = BrightBox()
    (tmp_path / "folder.mkv").mkdir()
    (tmp_path / "begun.partial.mkv").mkdir()
    (tmp_path / "file").touch()
    leftover = write_video(tmp_path / "left.partial.avi")
    for source, options, message in (
        (
            clip,
            {"out": tmp_path / "a.gif"},
            "a.gif: a video's name must end with one of .avi",
        ),
        (clip, {"out": clip}, "clip.avi: writing it would replace the source"),
        (leftover, {"out": tmp_path / "left.avi"}, "left.avi: writing it would replace the source"),
        (clip, {"out": tmp_path / "a.avi", "json_lines": tmp_path / "a.avi"}, "for two outputs"),
        (clip, {"out": tmp_path / "folder.mkv"}, "folder.mkv: it is a folder"),
        (clip, {"out": tmp_path / "begun.mkv"}, "begun.partial.mkv: it is a folder"),
        (clip, {"json_lines": tmp_path}, f"{re.escape(str(tmp_path))}: it is a folder"),
        (clip, {"json_lines": tmp_path / "file" / "found.jsonl"}, "file is no folder"),
        (clip, {"max_frames": 0}, "max_frames: expected at least 1, got 0"),
    ):
        with pytest.raises(DetrKitError, match=message):
            predict_video(detector, source, **options)
    assert detector.batches == 0
    assert len(read_video(clip)[1]) == len(read_video(leftover)[1]) == 12


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a file that is not a regular one")
def test_what_is_not_a_file_is_not_replaced(clip: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DetrKitError, match="pipe: it is a device or a pipe"):
        predict_video(BrightBox(), clip, json_lines=tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_cannot_be_written_is_told_before_the_first_frame(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The user who runs this may be allowed everything.
    monkeypatch.setattr("os.access", lambda place, mode: Path(place).name != "locked")
    locked = tmp_path / "locked"
    locked.mkdir()
    detector = BrightBox()
    for options in ({"out": locked / "new" / "a.mkv"}, {"json_lines": locked / "a.jsonl"}):
        with pytest.raises(DetrKitError, match=r"a\.\w+: .*locked cannot be written to"):
            predict_video(detector, clip, **options)
    assert detector.batches == 0


def test_lines_that_cannot_be_put_in_place_do_not_hold_back_the_video(
    clip: Path, tmp_path: Path
) -> None:
    lines, out = tmp_path / "found.jsonl", tmp_path / "drawn.mkv"
    with pytest.raises(OSError, match=r"found\.jsonl"):
        predict_video(
            BrightBox(lambda: lines.mkdir(exist_ok=True)), clip, out=out, json_lines=lines
        )
    assert len(read_video(out)[1]) == 12
    assert not (tmp_path / "drawn.partial.mkv").exists()
    assert len(lines_of(tmp_path / "found.partial.jsonl")) == 12


def test_a_missing_encoder_is_one_line(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(video_output.CODECS, ".mkv", "zzzz")
    with pytest.raises(DetrKitError, match=r"out.mkv: this OpenCV cannot encode zzzz at 100 x 72"):
        predict_video(BrightBox(), clip, out=tmp_path / "out.mkv")
    assert not list(tmp_path.glob("out*"))


def test_frames_that_were_not_written_are_missed(tmp_path: Path) -> None:
    out = video_output.VideoFile(tmp_path / "out.avi", RATE)
    for number in range(5):
        out.write(frame_of(number))
    out.frames += 7  # OpenCV says nothing of frames that it could not write
    with pytest.raises(DetrKitError, match=r"5 of 12 frames were written; is the disk full"):
        out.close(complete=True)
    assert not (tmp_path / "out.avi").exists()


def test_frames_are_counted_where_the_file_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_output, "announced_frames", lambda capture: None)
    for name, missing in (("good.mkv", 0), ("lost.mkv", 7)):
        out = video_output.VideoFile(tmp_path / name, RATE)
        for number in range(8):
            out.write(frame_of(number))
        out.frames += missing
        if not missing:
            out.close(complete=True)
    with pytest.raises(DetrKitError, match=r"lost\.mkv: 8 of 15 frames were written"):
        out.close(complete=True)
    assert len(read_video(tmp_path / "good.mkv")[1]) == 8
    assert not (tmp_path / "lost.mkv").exists()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_full_disk_is_noticed(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("resource", reason="needs a limit on the size of files")
    program = (  # in a process of its own, as the limit holds for all that it writes
        "import resource, sys\n"
        "import numpy as np\n"
        "from detr_kit.errors import DetrKitError\n"
        "from detr_kit.inference.video_output import VideoFile\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "noise = np.random.default_rng(0).integers(0, 255, (60, 120, 160, 3), dtype=np.uint8)\n"
        "out = VideoFile(sys.argv[1], 25)\n"
        "for frame in noise: out.write(frame)\n"
        "try: out.close(complete=True)\n"
        "except DetrKitError as error: print(error)\n"
    )
    out = tmp_path / f"drawn{suffix}"
    command = [sys.executable, "-c", program, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"\d+ of 60 frames were written; is the disk full\?", done.stdout)
    assert not out.exists()
