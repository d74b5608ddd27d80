"""The median of ratios and its interval."""

from detronome.runtime.speedup import speedup_of


def test_an_interval_is_a_median_and_its_bounds() -> None:
    alone = speedup_of([1.5])
    assert (alone.ratio, alone.low, alone.high, alone.num_pairs) == (1.5, 1.5, 1.5, 1)
    several = speedup_of([1.0, 1.1, 1.2, 1.3, 5.0])
    assert several.ratio == 1.2 and 1.0 <= several.low < 1.2 < several.high <= 5.0
    assert several == speedup_of([1.0, 1.1, 1.2, 1.3, 5.0])
