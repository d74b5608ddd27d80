import math

import pytest
import torch
from torch import Tensor, nn

from detronome.engine.guard import StepGuard
from detronome.errors import TrainingError


def judge(guard: StepGuard, loss: float, *, grad_norm: float = 1.0, step: int = 0) -> Tensor:
    return guard.judge(loss=torch.tensor(loss), grad_norm=torch.tensor(grad_norm), step=step, image_ids=[7, 8])


def test_nothing_to_drain() -> None:
    guard = StepGuard(nn.Linear(1, 1), max_consecutive=0)
    assert guard.drain() == []
    guard.check()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_or_norm_that_is_not_finite_is_refused_and_told(bad: float) -> None:
    guard = StepGuard(nn.Linear(1, 1), max_consecutive=5)
    assert judge(guard, 1.0, step=0) == 1
    assert judge(guard, bad, step=1) == 0
    assert judge(guard, 1.0, grad_norm=bad, step=2) == 0
    skipped = guard.drain()
    assert [(s.step, s.image_ids) for s in skipped] == [(1, [7, 8]), (2, [7, 8])]
    assert skipped[0].reason == f"loss {bad:g}, gradient norm 1"
    assert (guard.num_skipped, guard.num_consecutive) == (2, 2)
    assert guard.drain() == []


def test_a_good_step_ends_the_row() -> None:
    guard = StepGuard(nn.Linear(1, 1), max_consecutive=2)
    for loss in (math.nan, math.nan, 1.0, math.nan, math.nan):
        judge(guard, loss)
        guard.drain()
        guard.check()
    assert (guard.num_skipped, guard.num_consecutive) == (4, 2)


def test_too_many_in_a_row_stop_the_run_after_they_were_told() -> None:
    guard = StepGuard(nn.Linear(1, 1), max_consecutive=2)
    for step in range(3):
        judge(guard, math.nan, step=step)
    assert len(guard.drain()) == 3
    with pytest.raises(TrainingError, match="3 steps in a row") as error:
        guard.check()
    assert "step 2, images [7, 8]" in str(error.value) and "fix:" in str(error.value)


def test_batch_norm_statistics_are_put_back_bit_for_bit_after_a_bad_step_only() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    guard = StepGuard(model, max_consecutive=5)
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
