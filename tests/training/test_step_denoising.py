"""Steps of models that learn from objects that they are shown with noise, and of groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from detr_kit import evaluate, train
from detr_kit.errors import DetrKitError
from detr_kit.inference.detector import Detector
from detr_kit.losses import DENOISING_NAMES, SetCriterion
from detr_kit.structures import DenoisedOutput, ImageBatch, ModelOutput, TargetBatch
from detr_kit.training.batch_size import largest_batch
from detr_kit.training.forward import run_model, wants_targets
from detr_kit.training.run_files import read_metrics
from detr_kit.training.step import Batch
from detr_kit.training.tensor_watch import TensorWatch
from tests.host_reads import counting_host_reads
from tests.training.conftest import ConfigMaker
from tests.training.steps import (
    CATEGORIES,
    PREPROCESSING,
    QUERIES,
    batch,
    first_and_last,
    make_step,
    take,
)


class Shown(nn.Module):
    """Keeps what it is shown; one that `wants` takes objects besides pictures."""

    def __init__(self, *, wants: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(CATEGORIES))
        if wants:
            self.wants_targets = True
        self.shown: list[TargetBatch | None] = []

    def forward(self, images: ImageBatch, targets: TargetBatch | None = None) -> ModelOutput:
        self.shown.append(targets)
        count = len(images.pixels)
        logits = self.weight.expand(1, count, QUERIES, CATEGORIES)
        boxes = torch.full((1, count, QUERIES, 4), 0.5) + self.weight.sum()
        return ModelOutput(logits, boxes, "sigmoid")


@pytest.fixture
def process_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def normalized(pictures: Batch) -> ImageBatch:
    return pictures[0].normalized(PREPROCESSING.mean, PREPROCESSING.std)


@pytest.mark.parametrize("wants", [True, False])
def test_targets_go_to_models_that_want_them(wants: bool) -> None:
    model, pictures = Shown(wants=wants), batch([1, 2])
    run_model(model, normalized(pictures), pictures[1])
    assert model.shown == [pictures[1] if wants else None]


@pytest.mark.parametrize("wants", [True, False])
def test_a_wrapper_hides_nothing_of_that(wants: bool, process_group: None) -> None:
    model, pictures = Shown(wants=wants), batch([1, 2])
    wrapped = DistributedDataParallel(model)
    assert wants_targets(wrapped) == wants
    run_model(wrapped, normalized(pictures), pictures[1])
    assert (model.shown[0] is not None) == wants


def test_the_search_for_a_batch_size_shows_objects_too() -> None:
    model = Shown(wants=True)
    largest_batch(
        model,
        SetCriterion(CATEGORIES),
        image_hw=(32, 32),
        objects=3,
        preprocessing=PREPROCESSING,
        device=torch.device("cpu"),
        autocast=nullcontext,
        limit=2,
    )
    assert model.shown
    assert all(targets is not None and targets.counts[0] == 3 for targets in model.shown)


@pytest.mark.parametrize("family", ["deformable", "groups"])
def test_denoising_losses_are_among_the_figures(family: str) -> None:
    step, twin = make_step(family), make_step(family)
    take(step, 0, batch([1, 2]))
    figures = step.flush()
    assert figures is not None
    twin.seed_streams(0)
    losses = twin.forward(twin.model, *batch([1, 2]))
    for name in ("loss", "class", "giou_0", *DENOISING_NAMES):
        expected = losses.total if name == "loss" else losses.logged[name]
        assert figures.values[name] == pytest.approx(expected.item(), rel=1e-5)
        assert figures.values[name] > 0


def test_figures_have_the_same_names_with_and_without_objects() -> None:
    """Processes add theirs up by their order."""
    names = []
    for groups_of_pictures in ([[1, 2]], [[3, 6]], [[3, 6], [1, 2]]):
        step = make_step("deformable")
        take(step, 0, *map(batch, groups_of_pictures))
        figures = step.flush()
        assert figures is not None
        assert not figures.gated
        names.append(list(figures.values))
        if groups_of_pictures == [[3, 6]]:
            assert all(figures.values[name] == 0 for name in DENOISING_NAMES)
    assert names[0] == names[1] == names[2]
    assert names[0][-3:] == list(DENOISING_NAMES)


@pytest.mark.parametrize("pictures", [[1, 2], [3, 6]])
def test_every_weight_gets_a_gradient_whether_there_are_objects_or_not(
    pictures: list[int],
) -> None:
    """Processes would wait for each other's otherwise."""
    step = make_step("deformable")
    losses = step.forward(step.model, *batch(pictures))
    losses.total.backward()
    without = [name for name, weight in step.model.named_parameters() if weight.grad is None]
    assert without == []


def test_a_batch_without_objects_reads_the_device_once_too(
    sampling_as_on_a_device: None,
) -> None:
    step = make_step("deformable")
    take(step, 0, batch([1, 2]))
    with counting_host_reads() as reads:
        take(step, 1, batch([3, 6]))
    assert len(reads) == 1, [read.where for read in reads]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["deformable", "groups"])
def test_a_few_steps_lower_the_loss_and_the_denoising_loss(family: str) -> None:
    step, pictures = make_step(family, clip=0.0), batch([1, 2, 4, 5])
    first, last = first_and_last(step, pictures, steps=15)
    assert last["loss"] < 0.8 * first["loss"]
    assert last["dn_class"] < first["dn_class"]


def test_the_watch_looks_into_outputs_of_denoised_queries() -> None:
    def broken(output: ModelOutput) -> ModelOutput:
        assert isinstance(output.denoised, DenoisedOutput)
        logits: Tensor = output.denoised.layer_logits.clone()
        logits[0, 0, 0, 0] = torch.nan
        return replace(output, denoised=replace(output.denoised, layer_logits=logits))

    model, pictures = make_step("deformable").model, batch([1, 2])
    model.register_forward_hook(lambda module, args, output: broken(output))
    with TensorWatch(model) as watch:
        run_model(model, normalized(pictures), pictures[1])
    assert watch.output is not None
    assert watch.output.startswith("the output of the model (DeformableDETR): 1 nan")


def test_a_loss_for_another_scoring_ends_a_run_before_it_begins(
    sample: Path, tmp_path: Path, tiny_config: ConfigMaker
) -> None:
    loss = {"classification": "focal"}
    with pytest.raises(DetrKitError, match=r"loss\.classification 'focal' needs model\.scoring"):
        train(tiny_config(sample, tmp_path / "run", loss=loss))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_records_denoising_and_its_detector_finds_the_same_again(
    sample: Path, tmp_path: Path, tiny_config: ConfigMaker
) -> None:
    loss = {"classification": "matchability", "class_cost": 2.0}
    config = tiny_config(sample, tmp_path / "run", family="deformable", epochs=2, loss=loss)
    run = train(config)
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 2
    for row in rows:
        assert all(row["train"][name] > 0 for name in DENOISING_NAMES)
    detector = Detector.from_checkpoint(tmp_path / "run" / "last", "cpu")
    assert detector.model.scoring == "sigmoid"
    metrics = evaluate(
        detector,
        annotations=config.data.val.annotations,
        images=config.data.val.images,
    )
    assert metrics.ap == pytest.approx(rows[-1]["val"]["ap"], abs=1e-6)
    assert run is not None
