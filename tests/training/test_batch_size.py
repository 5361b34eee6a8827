"""`batch_size: auto` finds the largest batch that fits and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detr_kit.config import ModelConfig, RunConfig, parse_config
from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.errors import DetrKitError
from detr_kit.losses import SetCriterion
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.training import batch_size
from detr_kit.training.batch_size import (
    BATCH_SIZES,
    BatchChoice,
    LiveBytes,
    choose,
    largest_batch,
    worst_case,
)

PREPROCESSING = Preprocessing(SizeRule("square", 64), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CATEGORIES = 3
MIB = 2**20


def tiny(name: str = "detr_small", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    detr = {"backbone_stages": 2, "encoder_layers": 1, "decoder_layers": 2}
    yolos = {"depth": 3, "position_size_hw": (64, 64)}
    numbers: dict[str, Any] = {
        "name": name,
        "hidden_dim": 32,
        "num_heads": 2,
        "feedforward_dim": 64,
        "num_queries": 6,
    }
    numbers |= detr if name.startswith("detr") else yolos
    config = ModelConfig.model_validate(numbers | changes)
    return build_model(resolve(config), num_classes=CATEGORIES)


def largest(model: nn.Module, **changes: Any) -> BatchChoice:
    settings: dict[str, Any] = {
        "image_hw": (64, 96),
        "objects": 4,
        "preprocessing": PREPROCESSING,
        "device": torch.device("cpu"),
        "autocast": nullcontext,
        "limit": 1000,
    }
    return largest_batch(model, SetCriterion(CATEGORIES), **(settings | changes))


def memory_of(a_picture: int, *, weights: int = 100, breaks_at: int = 10**9) -> Any:
    """A step that takes so much and runs out of memory with `breaks_at` pictures."""
    ran: list[int] = []

    def used(pictures: int) -> int:
        ran.append(pictures)
        if pictures >= breaks_at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return weights + a_picture * pictures

    used.ran = ran  # type: ignore[attr-defined]
    return used


class TestChoice:
    @pytest.mark.parametrize(
        ("budget", "chosen"),
        [(100 + 10 * 64, 64), (100 + 10 * 63, 48), (100 + 10 * 7, 6), (129, 2), (119, 1), (5, 1)],
    )
    def test_the_largest_that_stays_within(self, budget: int, chosen: int) -> None:
        used = memory_of(10)
        assert choose(used, budget, BATCH_SIZES, fixed=100) == (chosen, 100 + 10 * chosen)
        assert used.ran == [1, 2]

    def test_what_is_chosen_has_run(self) -> None:
        used = memory_of(10)
        assert choose(used, 345, BATCH_SIZES) == (24, 340)
        assert used.ran == [1, 2, 24]

    def test_steps_down_where_memory_runs_out_all_the_same(self) -> None:
        used = memory_of(10, breaks_at=13)
        assert choose(used, 500, BATCH_SIZES) == (12, 220)
        assert used.ran == [1, 2, 32, 24, 16, 12]

    def test_steps_down_where_memory_grows_faster_than_foretold(self) -> None:
        def used(pictures: int) -> int:
            return 100 + 10 * pictures + (50 if pictures > 4 else 0)

        assert choose(used, 160, BATCH_SIZES) == (4, 140)

    def test_two_that_do_not_fit_leave_one(self) -> None:
        assert choose(memory_of(10, breaks_at=2), 1000, BATCH_SIZES) == (1, 110)

    def test_one_that_does_not_fit_is_an_error(self) -> None:
        with pytest.raises(DetrKitError, match="not memory enough for a batch of one picture"):
            choose(memory_of(10, breaks_at=1), 1000, BATCH_SIZES)

    def test_other_errors_pass(self) -> None:
        def used(pictures: int) -> int:
            raise RuntimeError("shapes do not fit")

        with pytest.raises(RuntimeError, match="shapes do not fit"):
            choose(used, 1000, BATCH_SIZES)


class TestCounting:
    def test_what_lives_at_once(self) -> None:
        x = torch.zeros(MIB // 4, requires_grad=True)  # 1 MiB, made before
        with LiveBytes() as live:
            y = x * 2  # 1
            z = y.view(2, -1).t()  # a view takes nothing
            y = z.exp()  # 2: kept for backward, as is z
            del z
            y.sum().backward()  # its gradients come and go
        assert 3 * MIB <= live.peak <= 5 * MIB
        with LiveBytes() as live, torch.no_grad():
            for _ in range(10):
                y = x * 2
                del y
            x.mul_(1)
        assert live.peak == MIB

    def test_all_is_let_go(self) -> None:
        x = torch.zeros(MIB // 4)
        with LiveBytes() as live:
            y = x + 1
            assert live.live == MIB
            del y
        assert live.live == 0

    def test_checkpointed_layers_take_less_but_not_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken = {}
        for checkpointing in (False, True):
            model = tiny("yolos_small", activation_checkpointing=checkpointing)
            used = steps_of(monkeypatch, model)
            taken[checkpointing] = used(2) - used(1)
        assert 0.1 * taken[False] < taken[True] < 0.95 * taken[False]

    @pytest.mark.parametrize("family", ["detr_small", "yolos_small"])
    def test_two_pictures_foretell_six(self, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
        taken: dict[int, int] = {}

        def record(used: Any, budget: float, sizes: Any, *, fixed: int) -> tuple[int, int]:
            taken.update({pictures: used(pictures) - fixed for pictures in (1, 2, 6)})
            return 1, 0

        with monkeypatch.context() as patch:
            patch.setattr(batch_size, "choose", record)
            largest(tiny(family), image_hw=(96, 96))
        assert taken[6] == pytest.approx(3 * taken[2], rel=0.1)
        assert taken[1] < taken[2]


def steps_of(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> Callable[[int], int]:
    """What `largest_batch` measures with."""
    taken: list[Any] = []

    def keep(used: Any, *rest: Any, fixed: int | None) -> tuple[int, int]:
        taken.append(used)
        return 1, 0

    with monkeypatch.context() as patch:
        patch.setattr(batch_size, "choose", keep)
        largest(model)
    return taken[0]


class TestLargestBatch:
    def test_a_host_with_much_memory(self) -> None:
        choice = largest(tiny())
        assert choice.batch_size == 64
        assert choice.reason.startswith("64 pictures of 64 x 96 with 4 objects take 0.")
        assert choice.reason.endswith(" may be used; more is not tried")

    def test_a_small_set(self) -> None:
        choice = largest(tiny(), limit=10)
        assert choice.batch_size == 8
        assert choice.reason.endswith("; there are no more pictures")
        assert largest(tiny(), limit=1).batch_size == 1

    def test_a_host_with_little_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        used = steps_of(monkeypatch, tiny())
        one, two = used(1), used(2)
        a_picture = two - one
        # Half of it is used, by two processes.
        available = 4 * (two + 4 * 1.2 * a_picture)
        monkeypatch.setattr(batch_size, "available_host_bytes", lambda: available)
        assert largest(tiny(), processes=2).batch_size == 6
        assert largest(tiny(), processes=2, extra_bytes=2 * a_picture).batch_size == 4
        monkeypatch.setattr(batch_size, "available_host_bytes", lambda: one)
        choice = largest(tiny())
        assert choice.batch_size == 1
        assert choice.reason.endswith(": memory is short")

    def test_no_trace_is_left(self) -> None:
        model = tiny(backbone_norm="batch", dropout=0.3)
        model.get_submodule("backbone").eval()
        modes = [module.training for module in model.modules()]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        torch.manual_seed(7)
        stream = torch.get_rng_state()
        largest(model)
        assert torch.equal(torch.get_rng_state(), stream)
        assert [module.training for module in model.modules()] == modes
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert all(weight.grad is None for weight in model.parameters())

    def test_pictures_without_objects_and_bf16(self) -> None:
        def autocast() -> Any:
            return torch.autocast("cpu", dtype=torch.bfloat16)

        assert largest(tiny("yolos_small"), objects=0, autocast=autocast).batch_size == 64

    def test_other_devices_are_refused(self) -> None:
        with pytest.raises(DetrKitError, match="auto knows CPU and CUDA only, not meta"):
            largest(tiny(), device=torch.device("meta"))

    def test_a_device_s_peak_is_read_with_all_that_is_held(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The counters of CUDA are made up; what is run is real."""
        calls: list[str] = []
        model = tiny()

        def wait(device: torch.device) -> None:
            assert all(w.grad is not None for w in model.parameters() if w.requires_grad)
            calls.append("wait")

        def peak(device: torch.device) -> int:
            calls.append("peak")
            return 77

        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(
            torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset")
        )
        monkeypatch.setattr(torch.cuda, "synchronize", wait)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5)
        step = steps_of(monkeypatch, model).step  # type: ignore[attr-defined]
        assert batch_size._OnDevice(step, held=1000)(2) == 77
        assert calls == ["reset", "wait", "peak"]
        assert all(weight.grad is None for weight in model.parameters())
        assert batch_size._free_device_bytes(torch.device("cuda", 0)) == 35

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_on_cuda(self) -> None:
        device = torch.device("cuda", 0)
        model = tiny().to(device)
        stream = torch.cuda.get_rng_state(device)
        choice = largest(model, device=device)
        assert choice.batch_size == 64
        assert torch.equal(torch.cuda.get_rng_state(device), stream)
        assert all(weight.grad is None for weight in model.parameters())


class TestWorstCase:
    @pytest.fixture
    def annotations(self, sample: Path) -> CocoAnnotations:
        loaded = load_annotations(sample / "annotations/train.json")
        loaded.sizes_hw[:] = (480, 640)
        return loaded

    def config(self, augmentation: Any = "small_data", **sizes: Any) -> RunConfig:
        values = {
            "epochs": 1,
            "model": {"name": "detr_small"},
            "data": {"augmentation": augmentation},
            "image_size": {"train_short_sides": [480, 800], **sizes},
        }
        return parse_config(values, source="test")

    def test_wide_pictures(self, annotations: CocoAnnotations) -> None:
        size, objects = worst_case(self.config(), annotations)
        assert size == (800, 1066)
        assert objects == annotations.max_objects == np.diff(annotations.offsets).max()

    def test_upright_ones_among_them(self, annotations: CocoAnnotations) -> None:
        annotations.sizes_hw[0] = (900, 300)
        assert worst_case(self.config(), annotations)[0] == (1332, 1066)

    def test_crops_turn_wide_into_upright(self, annotations: CocoAnnotations) -> None:
        assert worst_case(self.config("detr"), annotations)[0] == (1250, 1250)
        assert worst_case(self.config("yolos"), annotations)[0] == (1248, 1248)

    def test_caps_and_other_rules(self, annotations: CocoAnnotations) -> None:
        assert worst_case(self.config(train_long_side=1000), annotations)[0] == (750, 1000)
        assert worst_case(self.config(rule="square"), annotations)[0] == (800, 800)
        alone = self.config("none", short_side=320, long_side=400)
        assert worst_case(alone, annotations)[0] == (300, 400)

    def test_mosaics_hold_four_pictures_objects(self, annotations: CocoAnnotations) -> None:
        assert worst_case(self.config("strong"), annotations)[1] == 4 * annotations.max_objects

    def test_pipelines_of_users_may_turn_pictures(self, annotations: CocoAnnotations) -> None:
        pipeline = {"__class_fullname__": "Compose", "transforms": []}
        assert worst_case(self.config(pipeline), annotations)[0] == (1066, 1066)
