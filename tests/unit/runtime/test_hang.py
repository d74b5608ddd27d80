from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.runtime.hang import HangReport, Heard, Limits, RankRecord, judge
from detronome.runtime.progress import Section

LIMITS = Limits(timeout_s=60)
NOW = 1000.0
WAITING = {Section.AGREE, Section.REDUCE, Section.EVALUATION_MERGE}


def heard(
    rank: int, section: Section, seconds: float, *, step: int = 5, silent_s: float = 1.0, images: tuple[int, ...] = ()
) -> Heard:
    record = RankRecord(
        rank=rank,
        host="node1",
        pid=100 + rank,
        section=section,
        step=step,
        in_section_s=seconds,
        images=images,
    )
    return Heard(record, NOW - silent_s)


def ended(rank: int) -> Heard:
    last = heard(rank, Section.LOG, 500, silent_s=500)
    return Heard(replace(last.record, has_ended=True), last.at)


def verdict(*ranks: Heard) -> HangReport | None:
    return judge({h.record.rank: h for h in ranks}, now=NOW, limits=LIMITS, num_ranks=len(ranks))


def test_of_nobody_nothing_is_said() -> None:
    assert verdict() is None


def test_a_run_that_goes_on_is_left_alone() -> None:
    assert verdict(heard(0, Section.FORWARD, 59), heard(1, Section.AGREE, 59)) is None


def test_the_slow_rank_is_named_with_its_images_and_not_those_that_wait() -> None:
    report = verdict(
        heard(0, Section.AGREE, 62, step=812),
        heard(1, Section.AGREE, 62, step=812),
        heard(2, Section.REDUCE, 61, step=811),
        heard(3, Section.DATA_WAIT, 62, step=812, images=(17, 23)),
    )
    assert report is not None
    assert (report.kind, report.culprits, report.step) == ("overdue", (3,), 812)
    assert report.what == (
        "rank 3 of 4 (node1, pid 103) has been in data_wait for 62 s at step 812, image ids 17, 23; "
        "ranks 0, 1 wait for it in agree; rank 2 waits for it in reduce"
    )
    assert [record.rank for record in report.records] == [0, 1, 2, 3]


def test_a_silent_rank_is_named_with_what_it_did_last() -> None:
    report = verdict(
        heard(0, Section.AGREE, 60, step=90),
        heard(1, Section.FORWARD, 3, step=90, silent_s=61),
        heard(2, Section.DATA_WAIT, 70, step=90),
    )
    assert report is not None
    assert (report.kind, report.culprits, report.step) == ("silent", (1,), 90)
    assert report.what == (
        "rank 1 of 3 (node1, pid 101) has not been heard of for 61 s (stopped, killed, starved or cut off); "
        "it was in forward at step 90; rank 0 waits for it in agree"
    )


def test_silence_while_waiting_is_silence() -> None:
    report = verdict(heard(0, Section.AGREE, 62), heard(1, Section.AGREE, 0.1, silent_s=62))
    assert report is not None
    assert (report.kind, report.culprits) == ("silent", (1,))


def test_who_waits_for_a_rank_in_a_long_section_is_patient() -> None:
    ranks = heard(0, Section.CHECKPOINT, 170, step=4), heard(1, Section.AGREE, 170)
    assert verdict(*ranks) is None
    report = verdict(heard(0, Section.CHECKPOINT, 181, step=4), ranks[1])
    assert report is not None
    assert report.culprits == (0,)


def test_a_rank_that_waits_on_its_device_for_one_behind_is_not_blamed() -> None:
    assert verdict(heard(0, Section.FORWARD, 70), heard(1, Section.DATA_WAIT, 50)) is None
    report = verdict(heard(0, Section.FORWARD, 81), heard(1, Section.DATA_WAIT, 61))
    assert report is not None
    assert report.culprits == (1,)


def test_a_rank_in_its_next_micro_batch_is_not_behind_one_that_hangs_in_the_pass_before() -> None:
    report = verdict(heard(0, Section.BACKWARD, 70), heard(1, Section.MATCHER, 30))
    assert report is not None
    assert report.culprits == (0,)


def test_where_all_wait_and_nobody_is_behind_the_network_is_named() -> None:
    report = verdict(heard(0, Section.REDUCE, 61), heard(1, Section.REDUCE, 61))
    assert report is not None
    assert report.culprits == (0, 1)
    assert "no rank is behind" in report.what


def test_ranks_of_which_nothing_is_known_are_mentioned() -> None:
    known = heard(1, Section.AGREE, 61)
    report = judge({1: known}, now=NOW, limits=LIMITS, num_ranks=3)
    assert report is not None
    assert report.what == (
        "rank 1 of 3 (node1, pid 101) has been in agree for 61 s at step 5; what the other ranks do is not known"
    )


def test_where_all_wait_in_different_places_the_earliest_is_named() -> None:
    report = verdict(heard(0, Section.REDUCE, 61), heard(1, Section.AGREE, 61))
    assert report is not None
    assert report.culprits == (1,)
    assert report.what.endswith("rank 0 waits for it in reduce")


def test_a_rank_that_left_while_others_wait_is_named() -> None:
    report = verdict(heard(0, Section.AGREE, 61), ended(1))
    assert report is not None
    assert (report.kind, report.culprits) == ("ended", (1,))
    assert "has ended its part; rank 0 waits for it in agree" in report.what


def test_ranks_that_have_all_ended_hang_no_more() -> None:
    assert verdict(ended(0), ended(1)) is None


def test_a_lone_process_is_called_so() -> None:
    report = verdict(heard(0, Section.START, 361, step=-1))
    assert report is not None
    assert report.what == "the process (node1, pid 100) has been in start for 361 s"


def test_many_images_are_counted() -> None:
    report = verdict(heard(0, Section.DATA_WAIT, 61, images=tuple(range(32))))
    assert report is not None
    assert report.what.endswith("image ids 0, 1, 2, 3, 4, 5, 6, 7 and 24 more")


ranks = st.lists(
    st.builds(
        lambda section, seconds, step, silent_s, has_ended: (section, seconds, step, silent_s, has_ended),
        st.sampled_from([s for s in Section if s not in (Section.SKIPPED, Section.REDONE, Section.STOPPED)]),
        st.floats(0, 400),
        st.integers(-1, 3),
        st.sampled_from([0.0, 5.0, 59.0, 61.0, 500.0]),
        st.booleans(),
    ),
    max_size=6,
)


@given(ranks)
def test_the_verdict_is_fair(drawn: list[tuple[Section, float, int, float, bool]]) -> None:
    known: dict[int, Heard] = {}
    for rank, (section, seconds, step, silent_s, has_ended) in enumerate(drawn):
        h = heard(rank, section, seconds, step=step, silent_s=silent_s)
        known[rank] = Heard(replace(h.record, has_ended=has_ended), h.at)
    report = judge(known, now=NOW, limits=LIMITS, num_ranks=len(known))
    running = {rank: h for rank, h in known.items() if not h.record.has_ended}
    silent = {rank for rank, h in running.items() if NOW - h.at > 60}
    overdue = {rank for rank, h in running.items() if h.record.in_section_s > LIMITS.of(h.record.section)}
    at_work = {rank for rank, h in running.items() if h.record.section not in WAITING}
    if silent:
        assert report is not None
        assert set(report.culprits) == silent
    elif report is not None:
        culprits = set(report.culprits)
        if at_work:
            assert culprits <= at_work & overdue
            earliest = min(known[r].record.step for r in at_work)
            assert {known[r].record.step for r in culprits} == {earliest}
        else:
            assert overdue == running.keys()
            assert running
    elif running and overdue == running.keys():
        pytest.fail("all are overdue and nobody is named")
    if report is not None:
        assert "wait for it" not in report.what or len(report.culprits) < len(known)
        assert all(f"rank {r} of" in report.what or len(known) == 1 for r in report.culprits)
