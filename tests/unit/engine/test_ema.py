import pytest
import torch
from torch import Tensor, nn

from detronome.engine.ema import ModelEma


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(5, 3))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


APPLIED, SKIPPED = torch.tensor(1.0), torch.tensor(0.0)


@pytest.mark.parametrize(("num_updates", "decay"), [(0, 0.1), (8, 0.5), (10**6, 0.99)])
def test_moves_by_the_decay_which_is_small_at_first(num_updates: int, decay: float) -> None:
    model = network()
    ema = ModelEma(model, decay=0.99)  # type: ignore[arg-type]
    before = state(ema.model)
    change(model)
    ema.update(model, num_updates=num_updates, is_applied=APPLIED)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        expected = decay * before[name] + (1 - decay) * parameter.detach()
        torch.testing.assert_close(ema.model.get_parameter(name), expected)


def test_buffers_are_copied() -> None:
    model = network()
    ema = ModelEma(model, decay=0.99)  # type: ignore[arg-type]
    change(model)
    ema.update(model, num_updates=100, is_applied=APPLIED)  # type: ignore[arg-type]
    for name, buffer in model.named_buffers():
        assert torch.equal(ema.model.get_buffer(name), buffer)


def test_a_skipped_step_changes_no_bit() -> None:
    model = network()
    ema = ModelEma(model, decay=0.99)  # type: ignore[arg-type]
    change(model)
    ema.update(model, num_updates=0, is_applied=APPLIED)  # type: ignore[arg-type]
    before = state(ema.model)
    ema.update(model, num_updates=1, is_applied=SKIPPED)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in ema.model.state_dict().items())


def test_is_apart_from_the_model_and_not_trained() -> None:
    model = network().train()
    ema = ModelEma(model, decay=0.99)  # type: ignore[arg-type]
    before = state(ema.model)
    change(model)
    assert all(torch.equal(value, before[name]) for name, value in ema.model.state_dict().items())
    assert not ema.model.training and model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
