import pytest
import torch
from torch import nn

from detronome.engine.diagnosis import Diagnosis
from detronome.engine.ladder import Ladder, RollBack, Skip
from detronome.engine.recovery import compute_in_fp32
from detronome.errors import TrainingError


def ladder(**changes: object) -> Ladder:
    settings = {
        "on_spike": "skip",
        "rewind_steps": 3,
        "max_skipped_steps": 2,
        "max_rollbacks": 2,
        "rollback_lr_factor": 0.5,
    }
    return Ladder(**{**settings, **changes})  # type: ignore[arg-type]


OVERFLOW = Diagnosis(where="forward", module="encoder.0", dtype="bfloat16", is_finite_in_fp32=True)
BROKEN = Diagnosis(where="forward", module="encoder.0", dtype="bfloat16", is_finite_in_fp32=False)


def test_single_bad_steps_are_skipped_for_ever() -> None:
    ours = ladder()
    for step in range(50):
        assert ours.not_finite(step, "loss nan", BROKEN) == Skip()
        ours.applied()
    assert (ours.num_skipped, ours.num_consecutive) == (50, 0)


def test_a_module_that_overflows_computes_in_fp32_after_some_skips_in_a_row_and_only_once() -> None:
    ours = ladder(max_rollbacks=0)
    assert ours.not_finite(0, "loss nan", OVERFLOW) == Skip()
    second = ours.not_finite(1, "loss nan", OVERFLOW)
    assert second.fp32_module == "encoder.0" and "encoder.0 computes in fp32" in second.action
    ours.not_finite(2, "loss nan", OVERFLOW)
    with pytest.raises(TrainingError):
        ours.not_finite(3, "loss nan", OVERFLOW)


def test_the_run_goes_back_at_a_lower_rate_and_then_stops_with_a_report() -> None:
    ours = ladder()
    for expected in (0.5, 0.25):
        ours.not_finite(4, "loss nan", BROKEN)
        with pytest.raises(RollBack) as request:
            ours.not_finite(5, "loss nan", BROKEN)
        assert request.value.lr_scale == ours.lr_scale == expected and request.value.excluded == []
    ours.not_finite(4, "loss nan", BROKEN)
    with pytest.raises(TrainingError) as error:
        ours.not_finite(5, "loss nan, gradient norm nan", BROKEN)
    text = str(error.value)
    assert "2 steps in a row" in text and "encoder.0" in text and "step 5, after 2 rollbacks" in text and "fix:" in text


def test_a_loss_scale_that_is_too_high_is_no_step_towards_the_next_rung() -> None:
    ours = ladder(max_skipped_steps=1, max_rollbacks=0)
    for step in range(20):
        diagnosis = Diagnosis(where="backward", is_loss_scale=True)
        skip = ours.not_finite(step, "gradient norm inf", diagnosis, is_loss_scale=True)
        assert skip.action == "loss scale lowered"
    assert (ours.num_skipped, ours.num_consecutive) == (20, 0)


def test_without_a_diagnosis_the_ladder_is_the_same_but_for_fp32() -> None:
    ours = ladder(max_skipped_steps=1)
    with pytest.raises(RollBack):
        ours.not_finite(0, "loss nan", None)


@pytest.mark.parametrize(("step", "excluded"), [(10, [7, 8, 9, 10]), (1, [0, 1]), (0, [0])])
def test_a_spike_is_skipped_or_rewound_with_the_batches_before_it(step: int, excluded: list[int]) -> None:
    assert ladder().spike(step, "spike") == Skip()
    ours = ladder(on_spike="rewind")
    with pytest.raises(RollBack) as request:
        ours.spike(step, "spike")
    assert request.value.excluded == excluded and request.value.lr_scale == 1.0 and ours.num_rollbacks == 0


def test_a_row_of_rewinds_ends_with_skips_and_a_later_spike_is_rewound_again() -> None:
    ours = ladder(on_spike="rewind", max_rollbacks=2)
    for step in (10, 11):
        with pytest.raises(RollBack):
            ours.spike(step, "spike")
    assert [ours.spike(step, "spike") for step in (12, 13, 112)] == [Skip()] * 3
    with pytest.raises(RollBack):
        ours.spike(300, "spike")


def test_a_module_computes_in_fp32_under_autocast_and_its_neighbours_do_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
    x = torch.randn(2, 4)
    kinds: dict[str, torch.dtype] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: kinds.update({name: out.dtype}))
    compute_in_fp32(model, "1")
    with torch.autocast("cpu", torch.bfloat16):
        model(x).float().sum().backward()
    assert kinds["1"] == kinds["1.0"] == torch.float32 and kinds["0"] == kinds["2"] == torch.bfloat16
    assert model[1][0].weight.grad is not None and model[1][0].weight.grad.isfinite().all()
