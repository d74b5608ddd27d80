from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.report.page.memory import CAUSE_LOOKS
from detronome.report.stacked_bar import Look, parts_of
from detronome.report.wall_time import SECTION_LOOKS

LOOKS = {"b": Look(name="bee", color=3, fill="striped"), "a": Look(name="ay", color=1)}


def test_nothing_has_no_parts() -> None:
    assert parts_of({}, LOOKS) == []
    assert parts_of({"a": 0.0, "b": math.nan, "c": -1.0, "d": math.inf}, LOOKS) == []


def test_parts_come_in_the_order_of_their_looks_and_strangers_last() -> None:
    parts = parts_of({"stranger": 1.0, "a": 2.0, "b": 1.0}, LOOKS)
    assert [(part.name, part.percent, part.fill) for part in parts] == [
        ("bee", "25.0%", "striped"),
        ("ay", "50.0%", "solid"),
        ("stranger", "25.0%", "solid"),
    ]


def test_small_parts_are_shown_together() -> None:
    parts = parts_of({"a": 98.0, "b": 1.0, "c": 1.0}, LOOKS, smallest=0.05)
    assert [(part.name, part.value) for part in parts] == [("ay", 98.0), ("other", 2.0)]


@pytest.mark.parametrize("looks", [SECTION_LOOKS, CAUSE_LOOKS])
def test_no_two_parts_of_a_bar_look_alike(looks: dict[str, Look]) -> None:
    assert len({(look.color, look.fill) for look in looks.values()}) == len(looks)
    assert len({look.name for look in looks.values()}) == len(looks)


@given(st.dictionaries(st.sampled_from([*LOOKS, "c", "d"]), st.floats(1e-9, 1e12), min_size=1), st.floats(0, 0.5))
def test_the_parts_are_the_whole(values: dict[str, float], smallest: float) -> None:
    parts = parts_of(values, LOOKS, smallest=smallest)
    assert sum(part.tenths for part in parts) == 1000
    assert sum(part.value for part in parts) == pytest.approx(sum(values.values()))
    assert all(part.tenths >= 0 for part in parts)
