"""The median of ratios and its interval."""

from itertools import product

import pytest

from detronome.runtime.speedup import speedup_of


def test_an_interval_is_a_median_and_its_bounds() -> None:
    alone = speedup_of([1.5])
    assert (alone.ratio, alone.low, alone.high, alone.num_pairs) == (1.5, 1.5, 1.5, 1)
    several = speedup_of([1.0, 1.1, 1.2, 1.3, 5.0])
    assert several.ratio == 1.2 and 1.0 <= several.low < 1.2 < several.high <= 5.0
    assert several == speedup_of([1.0, 1.1, 1.2, 1.3, 5.0])


@pytest.mark.parametrize("num_pairs", [6, 7, 8, 11, 13])
def test_an_interval_holds_the_true_median_in_at_least_95_of_100_measurements(num_pairs: int) -> None:
    """Each ratio is above the true one, 1, or below it by even chance: all outcomes, which are equally probable."""
    intervals = [speedup_of(ratios) for ratios in product((0.9, 1.1), repeat=num_pairs)]
    share = sum(found.low <= 1 <= found.high for found in intervals) / len(intervals)
    assert 0.95 <= share < 1
