"""Errors for want of memory are recognised, and say what the batch was and what helps."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from detr_kit.config import RunConfig, load_config, parse_config, parse_overrides
from detr_kit.data.loading import Batch
from detr_kit.errors import DetrKitError
from detr_kit.structures import CollatedImages, TargetBatch
from detr_kit.training.continuation import require_continuable
from detr_kit.training.memory import available_host_bytes, memory_that_ran_out, out_of_memory

CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.64 GiB of "
    "which 1.02 GiB is free. Including non-PyTorch memory, this process has 22.60 GiB memory in "
    "use. Of the allocated memory 21.00 GiB is allocated by PyTorch, and 1.10 GiB is reserved by "
    "PyTorch but unallocated."
)


def config_with(**changes: Any) -> RunConfig:
    return parse_config(
        {"epochs": 1, "batch_size": 8, "model": {"name": "detr_r50"}, "output": "no_such_run"}
        | changes,
        source="test",
    )


def make_batch(pictures: int, height: int = 800, width: int = 1066) -> Batch:
    sizes = ((height, width),) * pictures
    ids = tuple(range(100, 100 + pictures))
    # Memory that is never touched.
    pixels = torch.empty(1, 1, 1, 1, dtype=torch.uint8).expand(pictures, height, width, 3)
    targets = TargetBatch(torch.zeros(pictures), torch.zeros(pictures, 4), (1,) * pictures, ids)
    return CollatedImages(pixels, sizes, sizes, ids), targets


def said(error: BaseException, *batches: Batch, **changes: Any) -> str:
    told = out_of_memory(error, batches, config_with(**changes))
    assert isinstance(told, DetrKitError)
    return str(told)


class TestRecognition:
    @pytest.mark.parametrize(
        ("error", "place"),
        [
            (torch.OutOfMemoryError(CUDA_MESSAGE), "device"),
            (
                RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublas`"),
                "device",
            ),
            (MemoryError(), "host"),
            (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
            (
                RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough "
                    "memory: you tried to allocate 4096 bytes."
                ),
                "host",
            ),
            (RuntimeError("Caught MemoryError in DataLoader worker process 1."), "host"),
            (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), "workers"),
            (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
            (DetrKitError("a.jpg: Cannot allocate memory"), None),
            (OSError(errno.ENOSPC, "No space left on device"), None),
            (KeyboardInterrupt(), None),
        ],
    )
    def test_whose_memory(self, error: BaseException, place: str | None) -> None:
        assert memory_that_ran_out(error) == place
        assert (out_of_memory(error, [], config_with()) is None) == (place is None)

    def test_a_real_allocation_on_the_host(self) -> None:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2**60, dtype=torch.uint8)
        text = said(caught.value, make_batch(2))
        assert text.startswith(
            "out of memory on the host with a batch of 2 pictures, 800 x 1066 (H x W), 2 objects, "
            "image ids 100, 101: tried to allocate 1.07e+09 GiB; try batch_size=4 accumulate=2"
        )

    def test_a_real_allocation_of_numpy(self) -> None:
        with pytest.raises(MemoryError) as caught:
            np.empty(2**60, dtype=np.uint8)
        assert "out of memory on the host: Unable to allocate 1.00 EiB" in said(caught.value)

    def test_an_error_may_be_its_own_cause(self) -> None:
        error, other = RuntimeError("mat1 and mat2"), MemoryError()
        error.__cause__ = error
        assert memory_that_ran_out(error) is None
        error.__cause__, other.__cause__ = other, error
        assert "out of memory on the host: mat1 and mat2;" in said(error)

    def test_the_cause_of_another_error_counts(self) -> None:
        error = ValueError("the step failed")
        error.__cause__ = torch.OutOfMemoryError(CUDA_MESSAGE)
        assert "tried to allocate 2.50 GiB, 1.02 GiB of 23.64 GiB are free" in said(error)


class TestLine:
    def test_device(self) -> None:
        text = said(
            torch.OutOfMemoryError(CUDA_MESSAGE),
            make_batch(8, 640, 640),
            make_batch(8),
            average={"decay": 0.999},
            accumulate=2,
        )
        assert text == (
            "out of memory on the device with a batch of 8 pictures, 800 x 1066 (H x W), "
            "8 objects, image ids 100, 101, 102, 103, 104 and 3 more: tried to allocate 2.50 GiB, "
            "1.02 GiB of 23.64 GiB are free; try batch_size=4 accumulate=4 (the same steps), or "
            "precision=bf16, or model.activation_checkpointing=true (the same steps, slower), or "
            "image_size.train_short_sides=[576] image_size.train_long_side=992 "
            "(now up to 800 and 1333), or average.decay=0 (a copy of the weights less)"
        )

    @pytest.mark.parametrize(
        ("batch_size", "accumulate", "proposed"),
        [
            (2, 1, "batch_size=1 accumulate=2 "),
            (9, 2, "batch_size=3 accumulate=6 "),
            (7, 1, "batch_size=1 accumulate=7 "),
            ("auto", 1, "batch_size=3 accumulate=2 "),
        ],
    )
    def test_steps_keep_their_pictures(
        self, batch_size: int | str, accumulate: int, proposed: str
    ) -> None:
        error = torch.OutOfMemoryError(CUDA_MESSAGE)
        batch = make_batch(6 if batch_size == "auto" else 1)  # the last of an epoch is smaller
        text = said(error, batch, batch_size=batch_size, accumulate=accumulate)
        assert f"try {proposed}(the same steps)" in text

    def test_what_is_done_already_is_not_proposed(self) -> None:
        text = said(
            torch.OutOfMemoryError(CUDA_MESSAGE),
            batch_size=1,
            precision="bf16",
            model={"name": "detr_r50", "activation_checkpointing": True},
            loss={"normalizer": "official"},
            image_size={"rule": "square", "short_side": 512},
        )
        assert text.endswith("; try image_size.train_short_sides=[384] (now up to 512)")
        assert "nearly the same steps" in said(
            torch.OutOfMemoryError(CUDA_MESSAGE), loss={"normalizer": "official"}
        )

    def test_sizes_in_use_are_kept(self) -> None:
        sizes = {"train_short_sides": [480, 544, 608, 704, 800]}
        text = said(torch.OutOfMemoryError(CUDA_MESSAGE), image_size=sizes)
        assert "image_size.train_short_sides=[480,544] image_size.train_long_side=992" in text

    def test_proposals_are_overrides(self, tmp_path: Path) -> None:
        text = said(torch.OutOfMemoryError(CUDA_MESSAGE), average={"decay": 0.999})
        overrides = [word for word in text.split("; try ")[1].split() if "=" in word]
        overrides = [word.rstrip(",") for word in overrides]
        assert len(overrides) == 7
        parse_overrides(overrides)
        path = tmp_path / "run.yaml"
        path.write_text("epochs: 1\nmodel: {name: detr_r50}\n")
        config = load_config(path, overrides)
        assert config.batch_size == 4
        assert config.image_size.train_short_sides == (576,)
        assert config.model.activation_checkpointing

    def test_workers(self) -> None:
        killed = RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. ")
        text = said(killed, data={"num_workers": 8})
        assert "out of memory in the loader's workers: DataLoader worker (pid 3)" in text
        assert "; try data.num_workers=4, or more memory in /dev/shm, or batch_size=4" in text

    def test_nothing_is_advised_where_nothing_helps(self) -> None:
        text = said(
            torch.OutOfMemoryError(CUDA_MESSAGE),
            batch_size=1,
            precision="bf16",
            model={"name": "detr_r50", "activation_checkpointing": True},
            image_size={"rule": "square", "short_side": 16},
        )
        assert text.endswith("are free")


class TestARunThatGoesOn:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        (tmp_path / "run/last").mkdir(parents=True)
        return tmp_path / "run"

    def test_it_is_resumed_or_a_new_one_is_needed(self, saved: Path) -> None:
        error = torch.OutOfMemoryError(CUDA_MESSAGE)
        text = said(error, make_batch(8), output=str(saved), average={"decay": 0.999})
        assert text.split("; try ")[1] == (
            f"detr-kit resume {saved} batch_size=4 (the same steps; in a new run batch_size=4 "
            "accumulate=2), or precision=bf16; or a new run with "
            "model.activation_checkpointing=true (the same steps, slower), or "
            "image_size.train_short_sides=[576] image_size.train_long_side=992 "
            "(now up to 800 and 1333), or average.decay=0 (a copy of the weights less)"
        )

    @pytest.mark.parametrize("doing", ["training", "evaluating"])
    @pytest.mark.parametrize("message", [CUDA_MESSAGE, "std::bad_alloc", "is killed by signal:"])
    def test_only_what_may_change_is_proposed_to_it(
        self, saved: Path, doing: Any, message: str
    ) -> None:
        config = config_with(output=str(saved), data={"num_workers": 4})
        if message.endswith("signal:"):
            message += " Killed"
        told = out_of_memory(RuntimeError(message), [make_batch(8)], config, doing=doing)
        going_on = str(told).split(f"; try detr-kit resume {saved} ")[1]
        going_on = going_on.split("; or a new run with ")[0].split("; in a new run ")[0]
        keys = [word.split("=")[0] for word in going_on.split() if "=" in word]
        assert len(keys) >= 1
        require_continuable(keys)

    def test_a_step_has_as_many_batches_as_it_really_has(self, saved: Path) -> None:
        error = torch.OutOfMemoryError(CUDA_MESSAGE)
        text = said(error, *[make_batch(2)] * 4, output=str(saved), batch_size=2, accumulate=1)
        assert "resume" in text
        assert "batch_size=1 (the same steps; in a new run batch_size=1 accumulate=8)" in text

    def test_a_new_run_where_nothing_else_is_left(self, saved: Path) -> None:
        error = torch.OutOfMemoryError(CUDA_MESSAGE)
        text = said(error, output=str(saved), batch_size=1, precision="bf16")
        assert "; try a new run with model.activation_checkpointing=true" in text


class TestEvaluation:
    def said(self, error: BaseException, **changes: Any) -> str:
        return str(out_of_memory(error, [], config_with(**changes), doing="evaluating"))

    def test_smaller_batches(self, tmp_path: Path) -> None:
        error = torch.OutOfMemoryError(CUDA_MESSAGE)
        said = "out of memory on the device in the evaluation: tried to allocate 2.50 GiB, "
        said += "1.02 GiB of 23.64 GiB are free"
        assert self.said(error) == f"{said}; try evaluation.batch_size=1 (now 8)"
        (tmp_path / "last").mkdir()
        text = self.said(error, evaluation={"batch_size": 3}, output=str(tmp_path))
        assert text == f"{said}; try detr-kit resume {tmp_path} evaluation.batch_size=1 (now 3)"
        assert self.said(error, batch_size=1) == said

    def test_fewer_workers(self) -> None:
        text = self.said(MemoryError(), batch_size=1, data={"num_workers": 4})
        assert text == "out of memory on the host in the evaluation: MemoryError; " + (
            "try data.num_workers=2"
        )


class TestAvailable:
    """Small limits in a made-up /proc and /sys, smaller than any machine's memory."""

    def group(self, root: Path, folder: str, files: dict[str, str]) -> None:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (root / folder / name).write_text(text)

    def test_version_2(self, tmp_path: Path) -> None:
        self.group(tmp_path, "proc/self", {"cgroup": "0::/job/step\n"})
        self.group(tmp_path, "sys/fs/cgroup/job/step", {"memory.max": "max\n"})
        files = {
            "memory.max": "9000000\n",
            "memory.current": "5000000\n",
            "memory.stat": "anon 4\ninactive_file 1000000\n",
        }
        self.group(tmp_path, "sys/fs/cgroup/job", files)
        assert available_host_bytes(tmp_path) == 5_000_000

    def test_version_1_in_a_container(self, tmp_path: Path) -> None:
        lines = "5:cpu,cpuacct:/docker/7\n4:memory:/docker/7\n0::/\n"
        self.group(tmp_path, "proc/self", {"cgroup": lines})
        files = {"memory.limit_in_bytes": "9000000\n", "memory.usage_in_bytes": "2000000\n"}
        self.group(tmp_path, "sys/fs/cgroup/memory", files)
        assert available_host_bytes(tmp_path) == 7_000_000

    def test_more_used_than_allowed(self, tmp_path: Path) -> None:
        self.group(tmp_path, "proc/self", {"cgroup": "0::/\n"})
        files = {"memory.max": "10\n", "memory.current": "5000\n"}
        self.group(tmp_path, "sys/fs/cgroup", files)
        assert available_host_bytes(tmp_path) == 0

    def test_without_limits_it_is_the_machine_s(self, tmp_path: Path) -> None:
        assert 0 < available_host_bytes(tmp_path) <= psutil.virtual_memory().total
        assert 0 < available_host_bytes() <= psutil.virtual_memory().total
