import json
import math

from hypothesis import given
from hypothesis import strategies as st

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


def test_an_ap_that_is_chance_does_not_start_patience() -> None:
    best = BestMetric(patience=2)
    for step in range(10):
        best.update(0.0004 if step == 0 else 0.0001, step=step)
    assert not best.should_stop
    assert (best.value, best.step) == (0.0004, 0)


def test_the_best_so_far_survives_a_resume() -> None:
    best = BestMetric(patience=2)
    best.update(0.6, step=10)
    again = BestMetric(patience=2)
    again.restore(best.state())
    assert not again.update(0.5, step=20), "a worse evaluation after a resume must not replace the best checkpoint"
    assert (again.value, again.step) == (0.6, 10)


def test_an_empty_state_is_that_of_a_run_without_an_evaluation() -> None:
    best = BestMetric(patience=2)
    best.restore({})
    assert vars(best) == vars(BestMetric(patience=2))


def test_a_run_that_stopped_early_stays_stopped_when_resumed() -> None:
    best = BestMetric(patience=1)
    best.update(0.5, step=1)
    best.update(0.5, step=2)
    again = BestMetric(patience=1)
    again.restore(best.state())
    assert again.should_stop
    more_patient = BestMetric(patience=3)
    more_patient.restore(best.state())
    assert not more_patient.should_stop


@given(
    values=st.lists(st.floats(0, 1) | st.just(math.nan) | st.sampled_from([0.0, 0.3, 0.5]), max_size=20),
    cut=st.integers(0, 20),
    patience=st.integers(0, 4),
    min_delta=st.sampled_from([0.0, 0.01, 0.2]),
)
def test_a_resumed_run_judges_as_one_that_never_stopped(
    values: list[float], cut: int, patience: int, min_delta: float
) -> None:
    whole = BestMetric(patience=patience, min_delta=min_delta)
    resumed = BestMetric(patience=patience, min_delta=min_delta)
    for step, value in enumerate(values):
        if step == cut:
            state = json.loads(json.dumps(resumed.state(), allow_nan=False))
            resumed = BestMetric(patience=patience, min_delta=min_delta)
            resumed.restore(state)
        assert whole.update(value, step=step) == resumed.update(value, step=step)
        assert whole.should_stop == resumed.should_stop
    assert vars(whole) == vars(resumed)
    finite = [value for value in values if not math.isnan(value)]
    assert whole.value == max(finite, default=-math.inf)
