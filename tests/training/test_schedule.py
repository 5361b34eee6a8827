"""Learning rates of the recipes."""

import pytest
import torch

from detr_kit.config import OptimizerConfig, ScheduleConfig
from detr_kit.training.optimizer import build_optimizer, parameter_groups
from detr_kit.training.schedule import Schedule, learning_rate


def rate(step: int, config: ScheduleConfig, base_lr: float = 1e-4) -> float:
    return learning_rate(step, base_lr, config, steps_per_epoch=10, epochs=300)


def test_step_schedule_drops_at_its_milestone() -> None:
    config = ScheduleConfig(kind="step", milestones=(200,), gamma=0.1)
    assert rate(1999, config) == 1e-4
    assert rate(2000, config) == pytest.approx(1e-5)


def test_cosine_ends_at_its_lowest_rate_and_moves_once_an_epoch() -> None:
    config = ScheduleConfig(kind="cosine", min_lr=1e-7)
    assert rate(0, config) == rate(9, config) == pytest.approx(1e-4)
    assert rate(1500, config) == pytest.approx((1e-4 + 1e-7) / 2)
    assert rate(3000, config) == pytest.approx(1e-7)
    assert rate(15, config) == rate(10, config) > rate(20, config)


def test_cosine_per_step() -> None:
    config = ScheduleConfig(kind="cosine", per="step")
    assert rate(1, config) > rate(2, config)


def test_warmup_is_linear() -> None:
    config = ScheduleConfig(kind="constant", warmup_steps=3)
    assert [rate(step, config) / 1e-4 for step in range(5)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1]
    )


class TinyDetector(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Module()
        self.backbone.weight = torch.nn.Parameter(torch.zeros(2, 2))
        self.backbone.norm = torch.nn.Parameter(torch.zeros(2))
        self.backbone.pos_embed = torch.nn.Parameter(torch.zeros(1, 3, 2))
        self.backbone.mid_pos_embed = torch.nn.Parameter(torch.zeros(1, 3, 2))
        self.head = torch.nn.Linear(2, 2)


def settings_by_name(model: torch.nn.Module, config: OptimizerConfig) -> dict[str, tuple]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, config)
        for parameter in group["params"]
    }


def test_detr_gives_the_backbone_its_own_rate_and_decays_all() -> None:
    found = settings_by_name(TinyDetector(), OptimizerConfig(lr=1e-4, lr_backbone=1e-5))
    assert found == {
        "backbone.weight": (1e-5, 1e-4),
        "backbone.norm": (1e-5, 1e-4),
        "backbone.pos_embed": (1e-5, 1e-4),
        "backbone.mid_pos_embed": (1e-5, 1e-4),
        "head.weight": (1e-4, 1e-4),
        "head.bias": (1e-4, 1e-4),
    }


def test_yolos_spares_vectors_and_tokens_of_the_backbone() -> None:
    found = settings_by_name(TinyDetector(), OptimizerConfig(lr=5e-5, decay="yolos"))
    assert found == {
        "backbone.weight": (5e-5, 1e-4),
        "backbone.norm": (5e-5, 0.0),
        "backbone.pos_embed": (5e-5, 0.0),
        "backbone.mid_pos_embed": (5e-5, 1e-4),
        "head.weight": (5e-5, 1e-4),
        "head.bias": (5e-5, 1e-4),
    }


def test_frozen_parameters_reach_no_group() -> None:
    model = TinyDetector()
    model.backbone.requires_grad_(False)
    assert set(settings_by_name(model, OptimizerConfig())) == {"head.weight", "head.bias"}


def test_schedule_scales_every_group_from_its_own_rate() -> None:
    optimizer = build_optimizer(TinyDetector(), OptimizerConfig(lr=1e-4, lr_backbone=1e-5))
    config = ScheduleConfig(kind="step", milestones=(1,), gamma=0.5)
    schedule = Schedule(optimizer, config, steps_per_epoch=10, epochs=2)
    schedule.apply(10)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([5e-6, 5e-5])
