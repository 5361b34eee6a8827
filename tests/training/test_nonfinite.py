"""The report of a step that ended in nan or infinity names the first tensor that was bad."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detr_kit.losses import LossValues, SetCriterion
from detr_kit.structures import CollatedImages, TargetBatch
from tests.training.nonfinite_models import (
    CATEGORIES,
    PREPROCESSING,
    Tiny,
    bad_for,
    make_batch,
    report_of,
)


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
