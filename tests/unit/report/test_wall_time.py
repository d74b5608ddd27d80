from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.report.wall_time import time_parts
from detronome.runtime.progress import Section


def test_no_time_has_no_parts() -> None:
    assert time_parts({}) == []
    assert time_parts({"update": 0.0, "log": math.nan, "start": -1.0}) == []


def test_what_counts_comes_first() -> None:
    parts = time_parts({"evaluation": 1.0, "update": 1.0, "forward": 1.0})
    assert [(part.name, part.percent) for part in parts] == [
        ("forward", "33.4%"),
        ("updates", "33.3%"),
        ("evaluation", "33.3%"),
    ]


def test_every_section_has_a_name() -> None:
    names = [part.name for part in time_parts(dict.fromkeys(Section, 1.0))]
    assert len(set(names)) == len(Section) and not any("_" in name for name in names)


def test_tiny_parts_are_shown_together_and_unknown_ones_by_their_name() -> None:
    parts = time_parts({"forward": 1000.0, "log": 0.5, "start": 0.5, "of_tomorrow": 3.0})
    assert [part.name for part in parts] == ["forward", "of_tomorrow", "other"]


@given(st.dictionaries(st.sampled_from([*Section, "of_tomorrow"]), st.floats(1e-9, 1e9), min_size=1))
def test_the_parts_are_the_whole(seconds: dict[str, float]) -> None:
    parts = time_parts(seconds)
    assert sum(part.tenths for part in parts) == 1000
    assert sum(part.value for part in parts) == pytest.approx(sum(seconds.values()))
    assert all(part.tenths >= 0 for part in parts)
