"""One optimiser step: what it reads, what it refuses to update, what it repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import detr_kit
from detr_kit.config import AverageConfig
from detr_kit.training.average import WeightAverage
from detr_kit.training.run import train
from detr_kit.training.step import TrainingStep
from tests.host_reads import counting_host_reads
from tests.training.steps import batch, first_and_last, make_step, take

# Pictures of the batches 0 to 3.
PICTURES = ((0, 1), (2, 3), (4, 5), (6, 7))


def copies(step: TrainingStep) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in step.model.state_dict().items()}


def poison(step: TrainingStep) -> torch.utils.hooks.RemovableHandle:
    """Make the gradient of a weight nan, whatever the loss is."""
    weight = next(p for p in step.model.parameters() if p.requires_grad)
    return weight.register_hook(lambda gradient: gradient * torch.nan)


@pytest.mark.parametrize("family", ["detr", "yolos", "patches", "deformable", "groups"])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_step_reads_the_device_once_a_batch(
    family: str, accumulated: int, sampling_as_on_a_device: None
) -> None:
    average = AverageConfig(decay=0.9)
    step = make_step(family)
    step.average = WeightAverage(step.model, average)
    batches = [batch(PICTURES[seed]) for seed in range(accumulated)]
    take(step, 0, *batches)
    with counting_host_reads() as reads:
        take(step, 1, *batches)
    assert len(reads) == accumulated, [read.where for read in reads]


def test_a_batch_without_objects_takes_the_figures_along() -> None:
    step = make_step()
    take(step, 0, batch(PICTURES[0]))
    with counting_host_reads() as reads:
        figures = take(step, 1, batch([3]))
    assert len(reads) == 1
    assert figures is not None
    assert figures.step == 0


def test_figures_come_a_step_late_and_are_those_of_the_losses() -> None:
    step, twin = make_step(), make_step()
    assert take(step, 0, batch(PICTURES[0])) is None
    figures = take(step, 1, batch(PICTURES[1]))
    assert figures is not None
    assert (figures.step, figures.gated, figures.failed) == (0, False, False)
    twin.seed_streams(0)
    losses = twin.forward(twin.model, *batch(PICTURES[0]))
    assert figures.values["loss"] == pytest.approx(losses.total.item(), rel=1e-6)
    assert figures.values["class_0"] == pytest.approx(losses.logged["class_0"].item(), rel=1e-6)
    assert figures.values["grad_norm"] > 0
    last = step.flush()
    assert last is not None
    assert last.step == 1
    assert step.flush() is None


def test_a_step_can_be_repeated() -> None:
    """Its random draws depend on its number alone."""
    one, other = make_step("yolos", seed=3), make_step("yolos", seed=3)
    take(one, 0, batch(PICTURES[0]))
    take(other, 0, batch(PICTURES[0]))
    torch.rand(100)  # draws in between
    one.seed_streams(7)
    first = torch.rand(3)
    other.seed_streams(7)
    assert torch.equal(first, torch.rand(3))


def test_gradients_that_are_not_finite_change_nothing() -> None:
    step = make_step(tolerated=2)
    average = WeightAverage(step.model, AverageConfig(decay=0.5))
    step.average = average
    take(step, 0, batch(PICTURES[0]))
    before, optimizer_before = (
        copies(step),
        [
            {name: value.clone() for name, value in state.items()}
            for state in step.optimizer.state.values()
        ],
    )
    hook = poison(step)
    take(step, 1, batch(PICTURES[1]))
    hook.remove()
    for name, tensor in copies(step).items():  # the running statistics among them
        assert torch.equal(tensor, before[name]), name
    for state, old in zip(step.optimizer.state.values(), optimizer_before, strict=True):
        assert all(torch.equal(state[name], old[name]) for name in old)
    figures = take(step, 2, batch(PICTURES[2]))
    assert figures is not None
    assert (figures.gated, figures.failed) == (True, False)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in copies(step).items())


def test_as_many_bad_steps_in_a_row_as_are_tolerated_fail() -> None:
    step = make_step(tolerated=2)
    take(step, 0, batch(PICTURES[0]))
    hook = poison(step)
    take(step, 1, batch(PICTURES[1]))
    take(step, 2, batch(PICTURES[2]))
    before = copies(step)
    figures = take(step, 3, batch(PICTURES[3]))
    hook.remove()
    assert figures is not None
    assert (figures.step, figures.failed) == (2, True)
    assert [images.image_ids for images, _ in figures.batches] == [(4, 5)]
    weights = dict(step.model.named_parameters())
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.parametrize("place", ["weight", "target"])
def test_a_run_that_meets_nan_ends_with_what_was_bad(
    tiny_config, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The third step of nine; what was saved before is kept."""
    called = TrainingStep.__call__

    def planted(self: TrainingStep, batches: Any, number: int, *rest: Any, **more: Any) -> Any:
        if number == 2 and place == "weight":
            with torch.no_grad():
                self.model.queries.weight[0, 0] = torch.nan
        elif number == 2:
            batches[0][1].boxes_cxcywh[1, 2] = torch.nan
        return called(self, batches, number, *rest, **more)

    monkeypatch.setattr(TrainingStep, "__call__", planted)
    config = tiny_config(sample, tmp_path / "run", epochs=3, checkpoint={"steps": 1})
    with pytest.raises(detr_kit.DetrKitError, match=r"step 2.*not finite") as caught:
        train(config)
    text = str(caught.value)
    assert {"weight": "queries.weight", "target": "box"}[place] in text
    assert "\n" not in text
    saved = torch.load(tmp_path / "run/last/training_state/state.pt", weights_only=True)
    assert saved["progress"]["step"] == 2


def test_a_run_that_skips_goes_on_without_the_bad_step(
    tiny_config, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = TrainingStep.__call__

    def planted(self: TrainingStep, batches: Any, number: int, *rest: Any, **more: Any) -> Any:
        if number == 1:
            batches[0][1].boxes_cxcywh[0, 2] = torch.nan
        return called(self, batches, number, *rest, **more)

    monkeypatch.setattr(TrainingStep, "__call__", planted)
    guard = {"on_nonfinite": "skip"}
    run = train(tiny_config(sample, tmp_path / "run", epochs=1, guard=guard))
    assert run.metrics[0]["skipped_steps"] == 1
    assert run.metrics[0]["train"]["loss"] > 0


def test_patches_learn_beside_the_queries() -> None:
    step, pictures = make_step("patches", clip=0.0), batch([1, 2, 4, 5])
    first, last = first_and_last(step, pictures, steps=20)
    for name in ("loss", "patch_class", "patch_l1", "patch_giou"):
        assert last[name] < 0.9 * first[name], name
