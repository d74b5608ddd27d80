import json
import math
import random

import pytest

from detronome.engine.events import Evaluated, StepLogged
from detronome.engine.history import Curve, History

WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def logged(step: int, *, loss: float = 10.0, skipped_steps: int = 0) -> StepLogged:
    return StepLogged(
        step=step,
        epoch=step / 25,
        loss=loss,
        losses=dict.fromkeys(WEIGHTS, loss / 10),
        grad_norm=5.0,
        learning_rates={"model": 1e-4},
        images_per_s=1.0,
        step_s=1.0,
        data_wait_s=0.0,
        memory_bytes=0,
        training_s=0.0,
        skipped_steps=skipped_steps,
    )


def history() -> History:
    return History(loss_weights=WEIGHTS, class_names=["a", "b"])


def test_a_curve_without_a_point_has_neither_fallen_nor_risen() -> None:
    curve = Curve()
    assert not curve.has_fallen and not curve.has_risen
    curve.add(math.nan, 10)
    assert curve == Curve()


def test_a_curve_that_stays_at_zero_has_neither_fallen_nor_risen() -> None:
    curve = Curve()
    for _ in range(100):
        curve.add(0.0, 10)
    assert not curve.has_fallen and not curve.has_risen


def test_a_curve_is_smoothed_alike_whatever_the_length_of_its_windows() -> None:
    def smoothed(window: int) -> float:
        curve = Curve()
        for step in range(0, 2000, window):
            curve.add(10 * math.exp(-(step + window / 2) / 500), window)
        return curve.now

    assert smoothed(1) == pytest.approx(smoothed(20), rel=0.05)


def test_a_lucky_first_record_is_not_the_lowest() -> None:
    curve = Curve()
    for value in [2.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0]:
        curve.add(value, 10)
        assert not curve.has_risen


def test_a_rise_within_the_first_steps_is_a_rise() -> None:
    curve = Curve()
    for value in [27.0, 23.0, 24.0, 42.0, 68.0, *[56.0] * 30]:
        curve.add(value, 10)
    assert curve.is_above_start and curve.has_risen


def test_one_spike_is_no_rise_but_a_steady_one_is() -> None:
    curve = Curve()
    for value in [10.0] * 20 + [1000.0] + [10.0] * 20:
        curve.add(value, 10)
        assert not curve.has_risen
    for value in [12.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 100.0, 100.0, 100.0]:
        curve.add(value, 10)
    assert curve.has_risen


def test_noise_is_neither_a_rise_nor_hides_a_fall() -> None:
    noise = random.Random(0)
    curve = Curve()
    for step in range(0, 3000, 10):
        curve.add((10 * math.exp(-step / 500) + 5) * noise.lognormvariate(0, 0.3), 10)
        assert not curve.has_risen, step
    assert curve.has_fallen


def test_a_loss_near_zero_may_double() -> None:
    curve = Curve()
    for value in [10.0] * 20 + [0.1] * 200 + [0.4] * 50:
        curve.add(value, 10)
    assert not curve.has_risen


def test_windows_that_are_not_finite_are_left_out_and_skips_are_a_part_of_the_steps() -> None:
    told = history()
    told.add_log(logged(10))
    told.add_log(logged(20, loss=math.nan, skipped_steps=5))
    assert told.curve("loss").now == 10.0
    assert told.curve("skipped").now == pytest.approx(0.25)


def test_a_run_that_goes_back_adds_nothing_twice() -> None:
    told = history()
    told.add_log(logged(100))
    told.add_log(logged(50, loss=99.0))
    assert told.curve("loss").now == 10.0
    told.add_log(logged(60))
    assert told.curve("loss").num_steps == 110


def test_an_evaluation_without_truth_or_losses_is_left_out() -> None:
    told = history()
    losses = dict.fromkeys(WEIGHTS, 1.0)
    told.add_evaluation(Evaluated(step=1, epoch=1, metrics={"AP": math.nan}, losses=losses))
    told.add_evaluation(Evaluated(step=1, epoch=1, metrics={"AP": 0.3}))
    assert told.evaluations == []
    told.add_evaluation(Evaluated(step=1, epoch=1, metrics={"AP": 0.3}, losses=losses, per_class_ap={"b": 0.2, "c": 1}))
    assert [evaluation.loss for evaluation in told.evaluations] == [8.0]
    assert told.class_ap == {"a": 0.0, "b": 0.2}


def test_the_state_survives_json() -> None:
    told = history()
    for again in (history(), history()):
        again.restore(json.loads(json.dumps(told.state(), allow_nan=False)))
        assert again.state() == told.state()
        told.add_log(logged(10))
        told.add_log(logged(20, loss=100.0))
        told.add_evaluation(
            Evaluated(
                step=20, epoch=1, metrics={"AP": 0.1}, losses=dict.fromkeys(WEIGHTS, 1.0), per_class_ap={"a": 0.1}
            )
        )
