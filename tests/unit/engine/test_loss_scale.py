import pytest
import torch

from detronome.engine.loss_scale import LossScale

CPU = torch.device("cpu")
GOOD, BAD = torch.tensor(1.0), torch.tensor(0.0)


def test_without_scaling_nothing_changes() -> None:
    scale = LossScale(CPU, enabled=False)
    loss, gradient = torch.tensor(3.0), torch.tensor([2.0])
    assert scale.apply(loss) is loss
    scale.undo([gradient])
    scale.update(BAD)
    assert gradient.item() == 2.0 and scale.scale == 1.0 and scale.state() == {}


def test_gradients_come_back_to_their_size() -> None:
    scale = LossScale(CPU, enabled=True)
    weight = torch.tensor([0.5, -2.0], requires_grad=True)
    scale.apply((weight * torch.tensor([1.0, 3.0])).sum()).backward()
    assert weight.grad is not None and weight.grad.tolist() == [65536.0, 3 * 65536.0]
    scale.undo([weight.grad])
    assert weight.grad.tolist() == [1.0, 3.0]


def test_it_moves_as_torchs_grad_scaler_does() -> None:
    ours = LossScale(CPU, enabled=True)
    theirs = torch.full((), 65536.0)
    tracker = torch.zeros((), dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    for step in range(9000):
        is_good = step > 20 and bool(torch.rand((), generator=generator) > 1e-4)
        ours.update(GOOD if is_good else BAD)
        torch._amp_update_scale_(theirs, tracker, torch.tensor(0.0 if is_good else 1.0), 2.0, 0.5, 2000)
        assert ours.scale == theirs, step
    assert ours.state()["num_good"] == tracker


@pytest.mark.parametrize("num_good", [0, 1999])
def test_the_state_goes_on_where_it_was(num_good: int) -> None:
    scale = LossScale(CPU, enabled=True)
    scale.update(BAD)
    for _ in range(num_good):
        scale.update(GOOD)
    again = LossScale(CPU, enabled=True)
    again.restore(scale.state())
    for one in (scale, again):
        one.update(GOOD)
    assert again.state() == scale.state()
    off = LossScale(CPU, enabled=False)
    off.restore(scale.state())
    assert off.scale == 1.0
