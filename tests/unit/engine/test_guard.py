import math

import pytest
import torch
from torch import nn

from detronome.engine.guard import Judgement, StepGuard, Verdict

CPU = torch.device("cpu")


def guard_of(model: nn.Module | None = None, **factors: float) -> StepGuard[str]:
    return StepGuard(model or nn.Linear(1, 1), CPU, **factors)


def judge(guard: StepGuard[str], loss: float, *, grad_norm: float = 1.0, step: int = 0) -> Judgement:
    return guard.judge(loss=torch.tensor(loss), grad_norm=torch.tensor(grad_norm), step=step, kept=f"step {step}")


def read(guard: StepGuard[str]) -> Verdict[str]:
    verdict = guard.read()
    assert verdict is not None
    return verdict


def test_nothing_to_read() -> None:
    assert guard_of().read() is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_or_norm_that_is_not_finite_is_refused_and_told_once(bad: float) -> None:
    guard = guard_of()
    assert judge(guard, 1.0, step=0).is_applied == 1
    assert read(guard).is_applied
    for step, (loss, grad_norm) in enumerate([(bad, 1.0), (1.0, bad)], start=1):
        judgement = judge(guard, loss, grad_norm=grad_norm, step=step)
        assert judgement.is_applied == 0 and judgement.is_finite == 0
        verdict = read(guard)
        assert (verdict.step, verdict.kept, verdict.is_applied, verdict.is_finite) == (
            step,
            f"step {step}",
            False,
            False,
        )
        assert verdict.reason == f"loss {loss:g}, gradient norm {grad_norm:g}"
        assert guard.read() is None


def warmed_up(**factors: float) -> StepGuard[str]:
    guard = guard_of(**factors)
    for step in range(150):
        judge(guard, 2.0 + step % 3, grad_norm=5.0 + step % 5)
    return guard


@pytest.mark.parametrize(("loss", "grad_norm"), [(40.0, 6.0), (3.0, 900.0)])
def test_a_spike_is_refused_and_told_with_what_is_usual(loss: float, grad_norm: float) -> None:
    guard = warmed_up(loss_spike_factor=10.0, gradient_spike_factor=100.0)
    assert judge(guard, 20.0, grad_norm=400.0).is_applied == 1, "high, and no spike yet"
    judgement = judge(guard, loss, grad_norm=grad_norm)
    assert judgement.is_applied == 0 and judgement.is_finite == 1
    verdict = read(guard)
    assert not verdict.is_applied and verdict.is_finite
    assert 2.0 <= verdict.usual_loss <= 4.0 and 5.0 <= verdict.usual_grad_norm <= 9.0
    assert verdict.reason.startswith("spike: loss ")
    assert judge(guard, 3.0, grad_norm=6.0).is_applied == 1


def test_no_spike_is_seen_in_the_first_steps_nor_where_the_check_is_off() -> None:
    young = guard_of(loss_spike_factor=10.0, gradient_spike_factor=100.0)
    for step in range(99):
        assert judge(young, 10.0 ** (step % 5), grad_norm=10.0 ** (step % 7)).is_applied == 1
    off = warmed_up()
    assert judge(off, 1e9, grad_norm=1e9).is_applied == 1


def test_a_loss_that_stays_high_is_a_new_level_and_no_spike() -> None:
    guard = warmed_up(loss_spike_factor=10.0)
    applied = [bool(judge(guard, 100.0).is_applied) for _ in range(100)]
    assert applied == [False] * 5 + [True] * 95
    assert judge(guard, 3000.0).is_applied == 0, "the running mean has come up to it"


def test_a_refused_step_leaves_the_running_means_as_they_were() -> None:
    guard = warmed_up(loss_spike_factor=10.0)
    before = guard.state()
    judge(guard, math.nan)
    assert guard.state() == before
    judge(guard, 1e6)
    assert guard.state() == before | {"high_in_row": 1.0}


def test_the_state_goes_through_numbers_without_a_bit_lost() -> None:
    guard = warmed_up(loss_spike_factor=10.0)
    judge(guard, 1e6)
    again = guard_of(loss_spike_factor=10.0)
    again.restore(guard.state())
    assert again.state() == guard.state() and again.read() is None
    for loss in (3.0, 1e6, math.nan, 2.0):
        assert torch.equal(judge(again, loss).is_applied, judge(guard, loss).is_applied)
        assert again.state() == guard.state()
    fresh = guard_of()
    fresh.restore({})
    assert fresh.state() == guard_of().state()


def test_batch_norm_statistics_are_put_back_bit_for_bit_after_a_bad_step_only() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    guard = guard_of(model)
    model(torch.randn(2, 2, 4, 4))
    before = [buffer.clone() for buffer in model.buffers()]
    guard.remember()
    model(torch.full((2, 2, 4, 4), math.nan))
    judge(guard, math.nan)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    guard.remember()
    model(torch.randn(2, 2, 4, 4))
    judge(guard, 1.0)
    assert not torch.equal(next(model.buffers()), before[0])
    guard.put_back()
    assert torch.equal(next(model.buffers()), before[0])
