import json
import math

from detronome.engine.early_stop import BestMetric


def test_the_first_value_is_the_best_even_when_it_is_zero() -> None:
    best = BestMetric()
    assert best.update(0.0, step=5)
    assert (best.value, best.step) == (0.0, 5)


def test_equal_is_not_better_and_nan_never_is() -> None:
    best = BestMetric(patience=1)
    assert not best.update(math.nan, step=1)
    assert best.update(0.5, step=2)
    assert not best.update(0.5, step=3)
    assert not best.update(math.nan, step=4)
    assert best.step == 2


def test_patience_counts_evaluations_without_gain_and_starts_with_the_first_object_found() -> None:
    best = BestMetric(patience=2)
    for step in range(10):
        best.update(0.0, step=step)
    assert not best.should_stop
    best.update(0.3, step=10)
    best.update(0.2, step=11)
    assert not best.should_stop
    best.update(0.3, step=12)
    assert best.should_stop


def test_a_gain_smaller_than_min_delta_is_a_better_checkpoint_but_not_a_reason_to_go_on() -> None:
    best = BestMetric(patience=2, min_delta=0.1)
    best.update(0.5, step=1)
    assert best.update(0.55, step=2) and best.update(0.58, step=3)
    assert best.step == 3 and best.should_stop


def test_small_gains_that_add_up_to_min_delta_count() -> None:
    best = BestMetric(patience=3, min_delta=0.1)
    for step, value in enumerate((0.5, 0.56, 0.62, 0.68, 0.74)):
        best.update(value, step=step)
    assert not best.should_stop


def test_patience_zero_never_stops() -> None:
    best = BestMetric()
    for step in range(100):
        best.update(1.0 - step / 100, step=step)
    assert not best.should_stop


def test_the_state_survives_json() -> None:
    for values in ((), (math.nan,), (0.4, 0.3, 0.2)):
        best = BestMetric(patience=3, min_delta=0.01)
        for step, value in enumerate(values):
            best.update(value, step=step)
        again = BestMetric(patience=3, min_delta=0.01)
        again.restore(json.loads(json.dumps(best.state(), allow_nan=False)))
        assert vars(again) == vars(best)
