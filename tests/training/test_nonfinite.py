"""The report of a step that ended in nan or infinity names the first tensor that was bad."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detr_kit.config import ModelConfig
from detr_kit.data.loading import Batch
from detr_kit.losses import LossValues, SetCriterion
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.structures import CollatedImages, ImageBatch, ModelOutput, TargetBatch
from detr_kit.training import nonfinite
from detr_kit.training.nonfinite import nonfinite_report
from detr_kit.training.nonfinite_search import KINDS

CATEGORIES = 2
PREPROCESSING = Preprocessing(SizeRule("square", 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
NAMES = {17: "a.jpg", 33: "b.jpg", 50: "c.jpg"}


class Fault(nn.Module):
    """Computes `change` of what it is given."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 4)
        self.fault = Fault()
        self.fc2 = nn.Linear(4, 4)
        self.between: Callable[[Tensor], Tensor] = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self.fault(self.fc1(x))))


class Tiny(nn.Module):
    """Two blocks on the mean colour of a picture, three queries, two decoder layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4, momentum=0.5)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.drop = nn.Dropout(0.1)
        self.class_head = nn.Linear(4, 3 * (CATEGORIES + 1))
        self.box_head = nn.Linear(4, 12)
        self.checkpointed = False

    def forward(self, batch: ImageBatch) -> ModelOutput:
        x = self.norm(self.embed(batch.pixels.mean((2, 3))))
        layers = []
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x))
            layers.append(self.drop(x))
        features = torch.stack(layers)  # (L, B, D)
        logits = self.class_head(features).unflatten(-1, (3, CATEGORIES + 1))
        return ModelOutput(logits, self.box_head(features).unflatten(-1, (3, 4)).sigmoid())


def make_batch(ids: tuple[int, ...] = (17, 33, 50), *, dtype: torch.dtype = torch.uint8) -> Batch:
    """Pictures of one colour each: 0, 100 and 200, one object in each but the second."""
    pixels = torch.stack(
        [torch.full((8, 8, 3), 100 * i + 5 * (i == 1), dtype=dtype) for i in range(len(ids))]
    )
    sizes = ((8, 8),) * len(ids)
    counts = (1, 0, 2)[: len(ids)]
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.5, 0.3]])
    labels = torch.tensor([0, 1, 0])
    total = sum(counts)
    return (
        CollatedImages(pixels, sizes, sizes, ids),
        TargetBatch(labels[:total], boxes[:total], counts, ids),
    )


def bad_for(image: int) -> Callable[[Tensor], Tensor]:
    """The logarithm of a negative number in one value of a row of the batch."""

    def change(x: Tensor) -> Tensor:
        if len(x) == 1:
            return x
        row = torch.zeros_like(x)
        row[image, 0] = -2.0
        return x + torch.log(row + 1.0)

    return change


def report_of(model: nn.Module, *batches: Batch, folder: Path, **changes: Any) -> str:
    criterion = changes.pop("criterion", SetCriterion(CATEGORIES, on_nonfinite="poison"))
    preprocessing = changes.pop("preprocessing", PREPROCESSING)

    def forward(images: CollatedImages, targets: TargetBatch) -> LossValues:
        batch = images.normalized(preprocessing.mean, preprocessing.std)
        return criterion(model(batch), targets)

    settings: dict[str, Any] = {
        "preprocessing": preprocessing,
        "step": 120,
        "rates": {"backbone": 1e-5, "rest": 1e-4},
        "precision": "fp32",
        "forward": forward,
        "folder": folder,
        "name_of": NAMES.__getitem__,
    }
    model.train()
    return str(nonfinite_report(model, criterion, batches, **(settings | changes)))


class TestFirstTensor:
    def test_weight(self, tmp_path: Path) -> None:
        model = Tiny()
        with torch.no_grad():
            model.blocks[1].fc1.weight[2, 1] = torch.nan
        said = report_of(model, make_batch(), folder=tmp_path)
        assert said == (
            "step 120: the first value that is not finite is in the weight blocks.1.fc1.weight: "
            "1 nan of 16 values; learning rates backbone 1e-05, rest 0.0001; precision fp32; the "
            f"batch is saved in {tmp_path / 'nonfinite_batch.pt'}. It was bad before this step: "
            "start from other weights, or from an earlier checkpoint"
        )

    def test_buffer_that_is_read(self, tmp_path: Path) -> None:
        model = Tiny()
        model.norm.running_var[1] = torch.inf
        model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        said = report_of(model, make_batch(), folder=tmp_path)
        assert "all values are finite" in said  # the statistics of a norm that trains are unread

        def in_evaluation(images: CollatedImages, targets: TargetBatch) -> LossValues:
            raise AssertionError("the buffer is found without running")

        model.norm.train(False)
        model.norm.train = lambda mode=True: model.norm  # type: ignore[method-assign]
        said = report_of(model, make_batch(), folder=tmp_path, forward=in_evaluation)
        assert "is in the buffer norm.running_var: 1 inf of 4 values;" in said

    def test_target_box(self, tmp_path: Path) -> None:
        images, targets = make_batch()
        targets.boxes_cxcywh[2, 3] = torch.nan
        said = report_of(Tiny(), make_batch(), (images, targets), folder=tmp_path)
        assert (
            "is in the target, box 2 of 2: [cx, cy, w, h] = [0.6, 0.6, 0.5, nan]; "
            "image 50 (c.jpg); learning rates"
        ) in said
        assert said.endswith("Find all broken labels with: detr-kit check")

    def test_picture_of_floats(self, tmp_path: Path) -> None:
        images, targets = make_batch(dtype=torch.float32)
        images.pixels[1, 3, 4, 0] = torch.inf
        said = report_of(Tiny(), (images, targets), folder=tmp_path)
        assert "is in the pixels of a picture: 1 inf of 192 values; image 33 (b.jpg);" in said

    def test_pixels_of_floats_are_normalised_on_a_copy(self, tmp_path: Path) -> None:
        images, targets = make_batch(dtype=torch.float32)
        before = images.pixels.clone()
        report_of(Tiny(), (images, targets), folder=tmp_path)
        assert torch.equal(images.pixels, before)

    def test_padding_of_floats_may_be_anything(self, tmp_path: Path) -> None:
        images, targets = make_batch(dtype=torch.float32)
        images.pixels[1, :, 6:] = torch.nan
        images = replace(images, sizes_hw=((8, 8), (8, 6), (8, 8)))
        said = report_of(Tiny(), (images, targets), folder=tmp_path)
        assert "all values are finite" in said

    def test_normalising(self, tmp_path: Path) -> None:
        preprocessing = replace(PREPROCESSING, std=(0.25, 0.0, 0.25))
        said = report_of(Tiny(), make_batch(), folder=tmp_path, preprocessing=preprocessing)
        assert "is a normalised pixel: mean (0.5, 0.5, 0.5), std (0.25, 0.0, 0.25);" in said
        assert said.endswith("Correct image_size.mean and image_size.std")

    def test_output_of_a_module(self, tmp_path: Path) -> None:
        model = Tiny()
        model.blocks[1].fault.change = bad_for(image=1)
        said = report_of(model, make_batch(), folder=tmp_path)
        assert (
            "is the output of blocks.1.fault (Fault): 1 nan of 12 values; "
            "images 17 (a.jpg), 33 (b.jpg), 50 (c.jpg);"
        ) in said

    def test_output_computed_between_the_parts_of_a_module(self, tmp_path: Path) -> None:
        model = Tiny()
        model.blocks[0].between = lambda x: x * torch.nan
        said = report_of(model, make_batch(), folder=tmp_path)
        assert (
            "is the output of blocks.0 (Block): 12 nan of 12 values, computed before its part "
            "blocks.0.fc2;"
        ) in said

    def test_later_batch_of_the_step(self, tmp_path: Path) -> None:
        model = Tiny()
        model.blocks[0].fault.change = lambda x: x if len(x) == 3 else torch.log(x - 100)
        said = report_of(model, make_batch(), make_batch((17, 33)), folder=tmp_path)
        assert "8 nan of 8 values; images 17 (a.jpg), 33 (b.jpg);" in said

    def test_loss_of_a_box_far_outside(self, tmp_path: Path) -> None:
        images, targets = make_batch()
        targets.boxes_cxcywh[0, 2] = 3e38  # its area overflows
        said = report_of(Tiny(), (images, targets), folder=tmp_path)
        assert "is the sum of the losses: nan (image id 17: the matching cost of decoder" in said
        assert "where the target has box 1 of 1: [cx, cy, w, h] = [0.5, 0.5, 3e+38, 0.4];" in said
        assert "; image 17 (a.jpg);" in said
        assert said.endswith("detr-kit check")

    def test_criterion_that_raises(self, tmp_path: Path) -> None:
        images, targets = make_batch()
        targets.boxes_cxcywh[0, 2] = 3e38
        criterion = SetCriterion(CATEGORIES)
        said = report_of(Tiny(), (images, targets), folder=tmp_path, criterion=criterion)
        assert "is in the matching costs (image id 17: the matching cost of decoder" in said

    def test_loss_term_by_name_and_layer(self, tmp_path: Path) -> None:
        class Criterion(SetCriterion):
            def forward(self, *inputs: Any) -> LossValues:
                losses = super().forward(*inputs)
                bad = losses.total / 0
                return replace(losses, total=bad, logged=losses.logged | {"giou_0": bad.detach()})

        said = report_of(Tiny(), make_batch(), folder=tmp_path, criterion=Criterion(CATEGORIES))
        assert "is in the losses, the term giou of decoder layer 0: inf; images 17 (a.jpg)" in said

    @pytest.mark.parametrize("checkpointed", [False, True])
    def test_gradient_only(self, tmp_path: Path, checkpointed: bool) -> None:
        model = Tiny()
        model.checkpointed = checkpointed
        # The root of 0 is 0; its slope is not finite.
        model.blocks[1].fault.change = lambda x: x + (x * 0).sqrt()
        said = report_of(model, make_batch(), folder=tmp_path)
        assert "is the gradient of the weight blocks.1.fc1." in said
        assert "after the backward of Sqrt" in said or "after the backward of Mul" in said

    def test_gradients_too_large_for_their_norm(self, tmp_path: Path) -> None:
        model = Tiny()
        said = report_of(model, make_batch(), folder=tmp_path, loss_scale=1e25)
        assert "is the norm of the gradients; the largest is that of the weight " in said

    def test_one_image_alone(self, tmp_path: Path) -> None:
        model = Tiny()
        model.norm = nn.Identity()  # rows of the batch are independent of each other
        # The darkest picture has the smallest feature: the logarithm fails for it alone.
        model.embed = nn.Linear(3, 4)
        with torch.no_grad():
            model.embed.weight.fill_(1.0)
            model.embed.bias.zero_()
        model.embed.register_forward_hook(lambda module, args, output: torch.log(output + 4))
        said = report_of(model, make_batch(), folder=tmp_path)
        assert "is the output of embed (Linear): 4 nan of 12 values;" in said
        assert "; caused by image 17 (a.jpg); learning rates" in said

    def test_nothing_when_it_does_not_come_again(self, tmp_path: Path) -> None:
        said = report_of(Tiny(), make_batch(), folder=tmp_path)
        assert said.startswith(
            "step 120: the loss or a gradient is not finite, but all values are finite when it is "
            "run again; learning rates backbone 1e-05, rest 0.0001; precision fp32; the batch is "
        )

    def test_infinities_that_come_to_nothing_are_no_fault(self, tmp_path: Path) -> None:
        model = Tiny()
        model.blocks[0].fault.change = lambda x: x.masked_fill(x > 0, -torch.inf)
        model.blocks[0].between = lambda x: x.masked_fill(x.isinf(), 0.0)
        assert "all values are finite" in report_of(model, make_batch(), folder=tmp_path)


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
