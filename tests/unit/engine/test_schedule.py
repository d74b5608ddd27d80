"""Schedules as pure functions, against torch's where torch has the same one."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detronome.config.schema import ScheduleConfig
from detronome.engine import schedule
from detronome.engine.build import build_schedule

KINDS = ("constant", "step", "multistep", "exponential", "cyclical", "cosine", "one_cycle")


def torch_factors(kind: type, steps: int, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = kind(optimizer, **settings)
    factors = []
    for _ in range(steps):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("ours", "kind", "settings"),
    [
        (
            schedule.step_drops(period_steps=7, gamma=0.1),
            torch.optim.lr_scheduler.StepLR,
            {"step_size": 7, "gamma": 0.1},
        ),
        (
            schedule.multistep(milestone_steps=[3, 11], gamma=0.5),
            torch.optim.lr_scheduler.MultiStepLR,
            {"milestones": [3, 11], "gamma": 0.5},
        ),
        (
            schedule.exponential(gamma=0.9, steps_per_epoch=1),
            torch.optim.lr_scheduler.ExponentialLR,
            {"gamma": 0.9},
        ),
        (
            schedule.cosine(total_steps=20, min_factor=0.1),
            torch.optim.lr_scheduler.CosineAnnealingLR,
            {"T_max": 19, "eta_min": 0.1},
        ),
    ],
)
def test_equals_torch(ours: schedule.Schedule, kind: type, settings: dict[str, Any]) -> None:
    assert [ours(step) for step in range(20)] == pytest.approx(torch_factors(kind, 20, **settings), abs=1e-9)


def test_one_cycle_equals_torch() -> None:
    ours = schedule.one_cycle(total_steps=50, peak_fraction=0.3, min_factor=0.0)
    theirs = torch_factors(
        torch.optim.lr_scheduler.OneCycleLR, 50, max_lr=1.0, total_steps=51, pct_start=0.3, cycle_momentum=False
    )
    assert ours(0) == pytest.approx(theirs[0])
    assert max(ours(step) for step in range(50)) == pytest.approx(1.0, abs=0.01)
    assert ours(49) == pytest.approx(0.0)


def test_cyclical_is_a_triangle() -> None:
    ours = schedule.cyclical(cycle_steps=10, min_factor=0.2)
    assert [ours(0), ours(5), ours(10), ours(15)] == pytest.approx([0.2, 1.0, 0.2, 1.0])


def test_warmup_rises_to_the_schedule() -> None:
    ours = schedule.with_warmup(schedule.constant(), warmup_steps=4)
    assert [ours(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@given(
    kind=st.sampled_from(KINDS),
    steps_per_epoch=st.integers(1, 50),
    epochs=st.integers(1, 30),
    warmup=st.integers(0, 40),
    position=st.floats(0, 1),
)
def test_every_schedule_stays_between_0_and_1(
    kind: Any, steps_per_epoch: int, epochs: int, warmup: int, position: float
) -> None:
    total = steps_per_epoch * epochs
    ours = build_schedule(
        ScheduleConfig(kind=kind, warmup_steps=warmup), steps_per_epoch=steps_per_epoch, total_steps=total
    )
    step = min(int(position * total), total - 1)
    assert 0 <= ours(step) <= 1 + 1e-9
    assert ours(step) == ours(step)
