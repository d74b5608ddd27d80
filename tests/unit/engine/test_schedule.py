import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detronome.config.schema import ScheduleConfig
from detronome.engine import schedule as schedules
from detronome.engine.build import build_schedule
from detronome.engine.schedule import Schedule


def torch_factors(
    make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], num: int
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(num):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (
            schedules.step_drops(period_steps=7, gamma=0.1),
            lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=7, gamma=0.1),
        ),
        (
            schedules.multistep(milestone_steps=[3, 11], gamma=0.5),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[3, 11], gamma=0.5),
        ),
        (
            schedules.cosine(total_steps=21, min_factor=0.0),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20),
        ),
        (
            schedules.cosine(total_steps=21, min_factor=0.1),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.1),
        ),
        (
            schedules.exponential(gamma=0.9, steps_per_epoch=1),
            lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.9),
        ),
    ],
    ids=["step", "multistep", "cosine", "cosine with floor", "exponential"],
)
def test_equals_torch(
    schedule: Schedule, make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
) -> None:
    assert [schedule(step) for step in range(21)] == pytest.approx(torch_factors(make, 21), abs=1e-12)


def test_constant() -> None:
    assert {schedules.constant()(step) for step in (0, 1, 10**9)} == {1.0}


def test_step_drops_at_the_period_not_before() -> None:
    schedule = schedules.step_drops(period_steps=10, gamma=0.1)
    assert [schedule(step) for step in (0, 9, 10, 19, 20)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_exponential_is_gamma_after_each_epoch() -> None:
    schedule = schedules.exponential(gamma=0.5, steps_per_epoch=8)
    assert [schedule(step) for step in (0, 4, 8, 16)] == pytest.approx([1, 0.5**0.5, 0.5, 0.25])


def test_cyclical_is_a_triangle() -> None:
    schedule = schedules.cyclical(cycle_steps=10, min_factor=0.2)
    assert [schedule(step) for step in (0, 5, 10, 15)] == pytest.approx([0.2, 1.0, 0.2, 1.0])
    assert schedule(2) == pytest.approx(schedule(8))


def test_cosine_ends_at_the_last_step() -> None:
    schedule = schedules.cosine(total_steps=11, min_factor=0.01)
    assert [schedule(0), schedule(5), schedule(10), schedule(50)] == pytest.approx([1.0, 0.505, 0.01, 0.01])
    assert schedules.cosine(total_steps=1, min_factor=0.0)(0) == 1.0


def test_one_cycle_starts_low_peaks_and_ends_low() -> None:
    schedule = schedules.one_cycle(total_steps=101, peak_fraction=0.3, min_factor=0.0)
    assert [schedule(0), schedule(30), schedule(100)] == pytest.approx([1 / 25, 1.0, 0.0], abs=1e-12)
    values = [schedule(step) for step in range(101)]
    assert values[:31] == sorted(values[:31]) and values[30:] == sorted(values[30:], reverse=True)


def test_warmup_rises_to_the_schedule_at_its_last_update() -> None:
    schedule = schedules.with_warmup(schedules.constant(), warmup_steps=4)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    dropping = schedules.with_warmup(schedules.step_drops(period_steps=2, gamma=0.1), warmup_steps=4)
    assert dropping(3) == pytest.approx(0.1)
    assert schedules.with_warmup(schedules.constant(), warmup_steps=0)(0) == 1.0


KINDS = ["constant", "step", "multistep", "exponential", "cyclical", "cosine", "one_cycle"]


@given(
    kind=st.sampled_from(KINDS),
    steps_per_epoch=st.integers(1, 1000),
    epochs=st.integers(1, 300),
    warmup_steps=st.integers(0, 2000),
    gamma=st.floats(0, 1),
    min_factor=st.floats(0, 1),
    cycle_epochs=st.floats(1e-6, 400),
    peak_fraction=st.floats(0, 1),
    drop_epoch=st.integers(1, 300),
    where=st.floats(0, 1),
)
def test_every_factor_is_finite_and_from_0_to_1(
    kind: str,
    steps_per_epoch: int,
    epochs: int,
    warmup_steps: int,
    gamma: float,
    min_factor: float,
    cycle_epochs: float,
    peak_fraction: float,
    drop_epoch: int,
    where: float,
) -> None:
    total_steps = steps_per_epoch * epochs
    config = ScheduleConfig(
        kind=kind,  # type: ignore[arg-type]
        warmup_steps=warmup_steps,
        drop_epochs=(drop_epoch,),
        gamma=gamma,
        min_factor=min_factor,
        cycle_epochs=cycle_epochs,
        peak_fraction=peak_fraction,
    )
    schedule = build_schedule(config, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    for step in (0, int(where * (total_steps - 1)), total_steps - 1):
        factor = schedule(step)
        assert math.isfinite(factor)
        assert -1e-12 <= factor <= 1 + 1e-12
