"""For crash_check.py: a run in a process of its own, and its saves as they look from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE = 300  # seconds for a process to do what it is waited for


class Job:
    """A run in its folder, and the process that trains it at the moment."""

    def __init__(self, folder: Path, config: Path, processes: int, gpu: bool) -> None:
        self.folder = folder
        self.config = config
        self.processes = processes
        self.log = config.parent / f"{folder.name}.log"
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }
        if not gpu:
            self.environment |= {"CUDA_VISIBLE_DEVICES": ""}

    @property
    def is_begun(self) -> bool:
        # Between two renames there is no `last`; resuming puts it back.
        return any((self.folder / name).exists() for name in ("last", ".last.old"))

    def start(self) -> subprocess.Popen[bytes]:
        """Train, or resume where something has been saved."""
        launcher = [sys.executable]
        if self.processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += ["--nproc-per-node", str(self.processes)]
        command = ["resume", str(self.folder)]
        if not self.is_begun:
            command = ["train", str(self.config), f"output={self.folder}", *self.splits()]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*launcher, "-m", "detr_kit.cli", *command],
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    def splits(self) -> list[str]:
        sample = self.config.parent / "sample"
        return [
            override
            for split in ("train", "val")
            for override in (
                f"data.{split}.annotations={sample}/annotations/{split}.json",
                f"data.{split}.images={sample}/{split}",
            )
        ]

    def saved_step(self) -> int | None:
        for name in ("last", ".last.old"):
            path = self.folder / name / "training_state" / "state.pt"
            if path.is_file():
                return int(torch.load(path, weights_only=True)["progress"]["step"])
        return None

    def said(self) -> str:
        """The last line that its processes wrote."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "")


class SaveWatch:
    """Sees the saves of a run from outside: their number, and whether one is going on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saves = 0
        self.last_save = self.started = time.monotonic()
        self.began: float | None = None
        self.lengths: list[float] = []
        self.gaps: list[float] = []
        # left by a process that was killed
        self.left = set(os.listdir(folder)) if folder.exists() else set()

    def look(self) -> None:
        try:
            names = set(os.listdir(self.folder)) - self.left
        except FileNotFoundError:
            return
        is_saving = any(name.startswith(".last.") and name.endswith(".tmp") for name in names)
        now = time.monotonic()
        if is_saving and self.began is None:
            self.began = now
        elif not is_saving and self.began is not None:
            self.lengths.append(now - self.began)
            if self.saves:
                self.gaps.append(now - self.last_save)
            self.saves, self.last_save, self.began = self.saves + 1, now, None

    def follow(self, process: subprocess.Popen[bytes], until: Callable[[], object]) -> bool:
        """Look on until `until()` or the end of the process; return whether it still runs."""
        end = time.monotonic() + PATIENCE
        while process.poll() is None:
            self.look()
            if until():
                return True
            if time.monotonic() > end:
                process.kill()
                raise SystemExit(f"crash_check: nothing has happened for {PATIENCE} s")
            time.sleep(0.0005)
        return False
