from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from detronome.report.watch.text_chart import text_chart

numbers = st.floats(-1e6, 1e6)


def test_no_point_gives_blank_lines() -> None:
    assert text_chart([], [], width=4, height=2) == ["    ", "    "]


def test_a_rising_line_goes_from_one_corner_to_the_other() -> None:
    assert text_chart([0, 1], [0, 1], width=4, height=4, is_unicode=False) == ["   *", "  * ", " *  ", "*   "]
    chart = text_chart([0, 1], [0, 1], width=2, height=1)
    assert chart == ["⡠⠊"]


def test_the_floor_is_part_of_the_chart() -> None:
    assert text_chart([0, 1], [2, 2], width=3, height=3, low=0, is_unicode=False) == ["***", "   ", "   "]


@given(points=st.lists(st.tuples(numbers, numbers), max_size=60), width=st.integers(0, 30), height=st.integers(0, 9))
def test_it_always_has_the_size_asked_for(points: list[tuple[float, float]], width: int, height: int) -> None:
    points.sort()
    for is_unicode in (True, False):
        lines = text_chart(
            [x for x, _ in points], [y for _, y in points], width=width, height=height, is_unicode=is_unicode
        )
        assert [len(line) for line in lines] == [width] * height
        if points and width and height:
            assert any(line.strip() for line in lines)
