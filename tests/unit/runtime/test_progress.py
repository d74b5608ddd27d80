import json
import time

import pytest
from tests.cpu_time import CpuTime

from detronome.runtime.progress import Moment, Progress, Section, explain, goodput


def useful_s(progress: Progress) -> float:
    """Seconds spent on steps that count."""
    seconds = progress.seconds
    return goodput(seconds) * sum(seconds.values())


def test_a_new_run_is_starting() -> None:
    progress = Progress()
    assert progress.now[:3] == (Section.START, -1, ())
    assert list(progress.seconds) == ["start"]
    assert useful_s(progress) == 0


def test_every_moment_belongs_to_one_section() -> None:
    started = time.perf_counter()
    progress = Progress()
    for step in range(3):
        progress.enter(Section.DATA_WAIT, step=step, images=[1, 2])
        time.sleep(0.02)
        progress.enter(Section.FORWARD)
        time.sleep(0.04)
        with progress.within(Section.AGREE):
            time.sleep(0.01)
    progress.enter(Section.CHECKPOINT)
    time.sleep(0.03)
    seconds = progress.seconds
    wall_s = time.perf_counter() - started
    assert sum(seconds.values()) == pytest.approx(wall_s, rel=0.01)
    assert seconds["data_wait"] >= 0.06
    assert seconds["forward"] >= 0.12
    assert seconds["agree"] >= 0.03
    assert seconds["checkpoint"] >= 0.03


def test_the_section_under_way_counts() -> None:
    progress = Progress()
    progress.enter(Section.EVALUATION)
    time.sleep(0.01)
    assert progress.seconds["evaluation"] >= 0.01
    assert progress.now.section is Section.EVALUATION


def test_the_step_stays_until_another_is_named_and_images_belong_to_their_section() -> None:
    progress = Progress()
    progress.enter(Section.DATA_WAIT, step=7, images=[17, 23])
    assert progress.now[:3] == (Section.DATA_WAIT, 7, [17, 23])
    progress.enter(Section.AGREE)
    assert progress.now[:3] == (Section.AGREE, 7, ())


def test_the_same_section_again_begins_anew() -> None:
    progress = Progress()
    progress.enter(Section.EVALUATION)
    first = progress.now
    progress.enter(Section.EVALUATION)
    assert progress.now.since > first.since


def test_within_goes_back_also_after_an_error() -> None:
    progress = Progress()
    progress.enter(Section.FORWARD, step=4, images=[9])
    with (
        pytest.raises(RuntimeError),
        progress.within(Section.RECOVERY, step=2),
        progress.within(Section.AGREE),
    ):
        assert progress.now[:3] == (Section.AGREE, 2, ())
        raise RuntimeError
    assert progress.now[:3] == (Section.FORWARD, 4, [9])


def test_seconds_survive_a_checkpoint_and_the_pause_is_stopped() -> None:
    first = Progress()
    first.enter(Section.UPDATE)
    seconds = json.loads(json.dumps(first.seconds))
    resumed = Progress({**seconds, "of_a_later_version": 2.0}, saved_at=time.time() - 100)
    assert resumed.seconds["stopped"] == pytest.approx(100, abs=1)
    assert resumed.seconds["of_a_later_version"] == 2
    again = Progress(resumed.seconds, saved_at=time.time() - 50)
    assert again.seconds["stopped"] == pytest.approx(150, abs=2)


def test_a_clock_that_was_set_back_takes_no_time_away() -> None:
    assert Progress(saved_at=time.time() + 1000).seconds["stopped"] == 0


def test_what_is_taken_over_is_not_changed() -> None:
    previous = {"update": 1.0, "start": 1.0}
    progress = Progress(previous, saved_at=1.0)
    progress.enter(Section.UPDATE)
    assert previous == {"update": 1.0, "start": 1.0}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("detronome.runtime.progress.time.perf_counter", lambda: self.now)

    def spend(self, progress: Progress, section: Section, seconds: float) -> None:
        progress.enter(section)
        self.now += seconds

    def step(self, progress: Progress, step: int, seconds: float) -> None:
        progress.begin_step(step)
        self.spend(progress, Section.DATA_WAIT, 1.0)
        self.spend(progress, Section.FORWARD, seconds)


def test_a_skipped_step_does_not_count_whether_the_next_has_begun_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, progress = Clock(monkeypatch), Progress()
    for step, seconds in enumerate((2.0, 3.0, 5.0, 7.0)):
        clock.step(progress, step, seconds)
        if step == 2:
            progress.void_step(1)
        if step == 3:
            progress.void_step(2)
            progress.void_step(3)
    assert useful_s(progress) == pytest.approx(2)
    assert progress.seconds["skipped"] == pytest.approx(15)
    assert sum(progress.seconds.values()) == pytest.approx(clock.now - 100)
    progress.void_step(99)
    assert useful_s(progress) == pytest.approx(2)


def test_a_step_that_does_not_count_takes_its_time_out_of_its_own_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    progress = Progress({"forward": 1000.0, "backward": 5000.0})
    for step, (forward_s, backward_s) in enumerate([(3.0, 1.0), (2.0, 7.0)]):
        progress.begin_step(step)
        clock.spend(progress, Section.FORWARD, forward_s)
        clock.spend(progress, Section.BACKWARD, backward_s)
    progress.void_step(0)
    assert (progress.seconds["forward"], progress.seconds["backward"]) == (1002, 5007)
    progress.void_since(1)
    seconds = progress.seconds
    assert (seconds["forward"], seconds["backward"]) == (1000, 5000)
    assert (seconds["skipped"], seconds["redone"]) == (4, 9)


def test_a_rollback_voids_what_has_grown_since_the_checkpoint_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, progress = Clock(monkeypatch), Progress()
    for step in range(4):
        clock.step(progress, step, 2.0)
    progress.void_step(3)
    progress.void_since(1)
    seconds = progress.seconds
    assert (seconds["redone"], seconds["skipped"]) == (pytest.approx(4), pytest.approx(2))
    assert useful_s(progress) == pytest.approx(2)
    clock.step(progress, 1, 3.0)
    assert useful_s(progress) == pytest.approx(5)
    progress.void_since(2)  # it has not begun again
    assert useful_s(progress) == pytest.approx(5)
    progress.void_since(0)
    assert useful_s(progress) == pytest.approx(0) and sum(progress.seconds.values()) == pytest.approx(clock.now - 100)


def test_goodput_counts_steps_alone() -> None:
    assert goodput({}) == 0
    assert goodput({"start": 0.0}) == 0
    assert goodput({"forward": 6, "reduce": 1, "update": 1, "data_wait": 1, "agree": 0.5, "skipped": 0.5}) == 0.8


def test_the_explanation_names_what_ate_the_rest() -> None:
    seconds = {
        "forward": 900.0,
        "update": 13.0,
        "evaluation": 42.0,
        "data_wait": 21.0,
        "checkpoint": 4.0,
        "start": 15.0,
        "log": 5.0,
    }
    assert explain(seconds) == (
        "goodput 91.3 %; the rest: evaluation 4.2 %, data wait 2.1 %, start 1.5 %, logging 0.5 %, other 0.4 %"
    )
    assert explain(seconds, top=1) == "goodput 91.3 %; the rest: evaluation 4.2 %, other 4.5 %"


def test_the_explanation_of_nothing_and_of_all() -> None:
    assert explain({}) == "goodput: no time has passed"
    assert explain({"update": 3.0}) == "goodput 100.0 %"
    assert explain({"of_a_later_version": 3.0}) == "goodput 0.0 %; the rest: of_a_later_version 100.0 %"


def test_entering_costs_microseconds() -> None:
    progress = Progress()

    with CpuTime() as spent:
        for step in range(10_000):
            progress.enter(Section.DATA_WAIT, step=step)
    assert spent.seconds / 10_000 < 20e-6  # about 1 us on an idle machine


def test_a_moment_is_replaced_never_changed() -> None:
    progress = Progress()
    moment = progress.now
    progress.enter(Section.LOG)
    assert isinstance(moment, Moment)
    assert moment.section is Section.START
