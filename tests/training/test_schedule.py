"""Learning rates of the recipes."""

import pytest
import torch
from torch import nn

from detr_kit.config import ScheduleConfig
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


def test_cosine_stays_at_its_lowest_rate_beyond_the_end() -> None:
    config = ScheduleConfig(kind="cosine", min_lr=1e-7)
    assert rate(3000, config) == rate(4000, config) == rate(6000, config) == pytest.approx(1e-7)


def two_groups() -> torch.optim.Optimizer:
    backbone, rest = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    return torch.optim.AdamW(
        [
            {"params": [backbone], "lr": 1e-5, "name": "backbone"},
            {"params": [rest], "lr": 1e-4, "name": "rest"},
        ]
    )


def schedule_of(config: ScheduleConfig, *, epochs: int = 100) -> Schedule:
    return Schedule(two_groups(), config, steps_per_epoch=10, epochs=epochs)


def test_every_group_is_scaled_from_its_own_rate() -> None:
    schedule = schedule_of(ScheduleConfig(kind="step", milestones=(1,), gamma=0.5))
    assert schedule.rates() == {"backbone": 1e-5, "rest": 1e-4}
    schedule.apply(10)
    assert schedule.rates() == pytest.approx({"backbone": 5e-6, "rest": 5e-5})
    assert [group["lr"] for group in schedule.optimizer.param_groups] == list(
        schedule.rates().values()
    )


def test_rates_depend_on_the_step_alone() -> None:
    config = ScheduleConfig(kind="cosine", per="step", warmup_steps=5)
    direct, wandering = schedule_of(config), schedule_of(config)
    for step in (700, 3, 999, 421):
        wandering.apply(step)
    direct.apply(421)
    assert direct.rates() == wandering.rates()


def test_groups_without_names_are_numbered() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.5)
    schedule = Schedule(optimizer, ScheduleConfig(), steps_per_epoch=10, epochs=2)
    assert schedule.rates() == {"group 0": 0.5}


def test_extending_a_cosine_says_that_the_rate_jumps() -> None:
    schedule = schedule_of(ScheduleConfig(kind="cosine", min_lr=1e-7, per="step"), epochs=100)
    assert schedule.describe_change(500, old_epochs=50) == (
        "100 epochs instead of 50: the learning rate goes on at 5.01e-05 after 1.01e-07 (with 50 "
        "epochs: 1e-07), as the cosine now ends with epoch 100"
    )
    schedule.apply(500)
    assert schedule.rates()["rest"] == pytest.approx(5.005e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ScheduleConfig(kind="constant"), "goes on at 0.0001 as it would have, after 0.0001"),
        (
            ScheduleConfig(kind="step", milestones=(50,)),
            "goes on at 1e-05 as it would have, after 0.0001",
        ),
    ],
    ids=["constant", "step"],
)
def test_extending_other_schedules_changes_no_rate(config: ScheduleConfig, expected: str) -> None:
    sentence = schedule_of(config).describe_change(500, old_epochs=50)
    assert sentence == f"100 epochs instead of 50: the learning rate {expected}"
