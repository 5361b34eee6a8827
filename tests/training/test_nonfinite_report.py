"""The report of a bad step: advice, the saved batch, and what it leaves as it was."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detr_kit.config import ModelConfig
from detr_kit.data.loading import Batch
from detr_kit.losses import LossValues
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import CollatedImages, TargetBatch
from detr_kit.training import nonfinite
from detr_kit.training.nonfinite_search import KINDS
from tests.training.nonfinite_models import (
    CATEGORIES,
    Tiny,
    bad_for,
    make_batch,
    report_of,
)


class TestAdvice:
    def test_fp16_is_told_of_bf16(self, tmp_path: Path) -> None:
        model = Tiny()
        model.blocks[0].fault.change = lambda x: (x * 1e6).half()
        model.blocks[0].between = lambda x: x.float()
        said = report_of(model, make_batch(), folder=tmp_path, precision="fp16")
        assert "inf of 12 values of float16;" in said
        assert "precision fp16;" in said
        assert "train with precision=bf16" in said

    def test_grown_weights_are_named(self, tmp_path: Path) -> None:
        model = Tiny()
        with torch.no_grad():
            model.blocks[0].fc1.weight[0, 0] = -3e38
        said = report_of(model, make_batch(), folder=tmp_path)
        assert "Weights have grown, blocks.0.fc1.weight to 3e+38: lower optimizer.lr" in said

    def test_rates_are_short(self, tmp_path: Path) -> None:
        same = report_of(Tiny(), make_batch(), folder=tmp_path, rates={"a": 1e-4, "b": 1e-4})
        assert "; learning rate 0.0001; precision" in same
        rates = {f"layer {layer}": 1e-4 / 2**layer for layer in range(8)}
        many = report_of(Tiny(), make_batch(), folder=tmp_path, rates=rates)
        assert "; learning rates layer 7 7.8125e-07 to layer 0 0.0001; precision" in many


class TestSaving:
    def test_batch_reads_back_without_pickled_classes(self, tmp_path: Path) -> None:
        images, targets = make_batch()
        report_of(Tiny(), (images, targets), make_batch((1,)), folder=tmp_path / "run", name_of=str)
        saved = torch.load(tmp_path / "run" / "nonfinite_batch.pt", weights_only=True)
        assert saved["step"] == 120
        assert saved["rates"] == {"backbone": 1e-5, "rest": 1e-4}
        first, second = saved["batches"]
        assert torch.equal(first["pixels"], images.pixels)
        assert torch.equal(first["boxes_cxcywh"], targets.boxes_cxcywh)
        assert first["counts"] == [1, 0, 2]
        assert first["image_ids"] == [17, 33, 50]
        assert second["image_ids"] == [1]

    def test_full_disk_costs_the_batch_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(nonfinite.torch, "save", fail)
        model = Tiny()
        model.blocks[1].fault.change = bad_for(image=0)
        said = report_of(model, make_batch(), folder=tmp_path)
        assert "is the output of blocks.1.fault" in said
        assert "could not be saved in" in said
        assert "No space left on device" in said
        assert list(tmp_path.iterdir()) == []


class TestSideEffects:
    @pytest.mark.parametrize("faulty", [False, True])
    def test_model_and_streams_are_left_as_they_were(self, tmp_path: Path, faulty: bool) -> None:
        model = Tiny()
        if faulty:
            model.blocks[1].fault.change = lambda x: x + (x * 0).sqrt()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        torch.manual_seed(5)
        stream = torch.get_rng_state()
        report_of(model, make_batch(), folder=tmp_path)
        assert torch.equal(torch.get_rng_state(), stream)
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert all(weight.grad is None for weight in model.parameters())
        assert not any(weight._post_accumulate_grad_hooks for weight in model.parameters())
        assert hooks == [
            (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
        ]

    def test_failure_while_repeating_is_said(self, tmp_path: Path) -> None:
        def forward(images: CollatedImages, targets: TargetBatch) -> LossValues:
            raise RuntimeError("no luck")

        model = Tiny()
        said = report_of(model, make_batch(), folder=tmp_path, forward=forward)
        assert "but running it again failed (RuntimeError: no luck); learning rates" in said

    def test_error_that_bad_values_lead_to_does_not_hide_them(self, tmp_path: Path) -> None:
        model = Tiny()
        model.blocks[0].fault.change = lambda x: x * torch.nan

        def fragile(x: Tensor) -> Tensor:
            assert x.isfinite().all(), "degenerate boxes"
            return x

        model.blocks[1].between = fragile
        said = report_of(model, make_batch(), folder=tmp_path)
        assert "is the output of blocks.0.fault (Fault): 12 nan of 12 values;" in said


class TestProcesses:
    def test_all_say_what_the_one_found_that_has_it(self, tmp_path: Path) -> None:
        def bad(rank: int) -> tuple[Tiny, list[Batch]]:
            images, targets = make_batch((1, 2, 3) if rank == 0 else (17, 33, 50))
            if rank == 1:
                targets.boxes_cxcywh[0, 0] = torch.nan
            return Tiny(), [(images, targets)]

        outcomes: list[object] = []

        def collect(own: object) -> list[object]:
            outcomes.append(own)
            return [own]

        said = []
        for gather in (collect, lambda own: outcomes):
            for rank in (0, 1):
                model, batches = bad(rank)
                said.append(
                    report_of(
                        model,
                        *batches,
                        folder=tmp_path,
                        rank=rank,
                        gather=gather,
                        name_of=lambda image_id: f"{image_id}.jpg",
                    )
                )
        assert "all values are finite" in said[0]
        assert said[2] == said[3]
        assert "box 1 of 1: [cx, cy, w, h] = [nan, 0.5, 0.4, 0.4]; image 17 (17.jpg)" in said[2]
        assert "; in process 1; " in said[2]
        assert str(tmp_path / "nonfinite_batch_1.pt") in said[2]
        assert (tmp_path / "nonfinite_batch_1.pt").is_file()


def test_real_detector(tmp_path: Path) -> None:
    config = ModelConfig(
        name="detr_small",
        backbone_stages=2,
        hidden_dim=32,
        num_heads=2,
        feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=6,
    )
    torch.manual_seed(0)
    model = build_model(resolve(config), num_classes=CATEGORIES)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), generator=generator, dtype=torch.uint8)
    images = CollatedImages(pixels, ((64, 64), (48, 64)), ((64, 64), (48, 64)), (17, 33))
    targets = replace(make_batch((17, 33))[1], counts=(1, 0))
    assert "all values are finite" in report_of(model, (images, targets), folder=tmp_path)
    with torch.no_grad():
        model.decoder.layers[1].mlp.fc1.weight[0, 0] = 3e38
        model.decoder.layers[1].mlp.fc1.weight[1, 0] = 3e38
        model.decoder.layers[1].mlp.fc2.weight.fill_(1e3)
    said = report_of(model, (images, targets), folder=tmp_path)
    assert "is the output of decoder.layers.1.mlp.fc" in said
    assert "(Linear):" in said


def test_kinds_follow_the_order_of_a_step() -> None:
    assert KINDS.index("weight") < KINDS.index("target") < KINDS.index("output")
    assert KINDS.index("output") < KINDS.index("loss") < KINDS.index("gradient")
