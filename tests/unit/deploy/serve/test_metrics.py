from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from detronome.deploy.serve.metrics import Counter, Gauge, Histogram, Metrics


def values(text: str) -> dict[str, float]:
    """Return the samples of Prometheus' text format."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_nothing_counted_is_zero() -> None:
    assert Counter("c", "What.").lines() == ["# HELP c What.", "# TYPE c counter", "c 0"]
    assert Histogram("h", "What.", [1]).lines()[2:] == [
        'h_bucket{le="1"} 0',
        'h_bucket{le="+Inf"} 0',
        "h_sum 0",
        "h_count 0",
    ]


def test_labels_are_escaped() -> None:
    counter = Counter("c", "What.")
    counter.add(path='a"b\\c\nd', status="200")
    counter.add(2, path='a"b\\c\nd', status="200")
    assert counter.lines()[2:] == ['c{path="a\\"b\\\\c\\nd",status="200"} 3']


@given(st.lists(st.floats(0, 100)), st.lists(st.floats(0, 100), min_size=1, max_size=5, unique=True).map(sorted))
def test_buckets_count_what_is_at_most_their_bound(observed: list[float], bounds: list[float]) -> None:
    histogram = Histogram("h", "What.", bounds)
    for value in observed:
        histogram.observe(value)
    counts = [float(line.rpartition(" ")[2]) for line in histogram.lines() if "_bucket" in line]
    assert counts == [sum(value <= bound for value in observed) for bound in (*bounds, math.inf)]
    assert values("\n".join(histogram.lines()))["h_count"] == len(observed)


def test_the_whole_text_names_each_family_once() -> None:
    metrics = Metrics([Gauge("detronome_ready", "Ready.", lambda: 1.0)], max_batch=6)
    text = metrics.text()
    heads = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads)) and text.endswith("\n")
    assert values(text)["detronome_ready"] == 1
    assert [key for key in values(text) if "batch_images_bucket" in key][-2:] == [
        'detronome_batch_images_bucket{le="8"}',
        'detronome_batch_images_bucket{le="+Inf"}',
    ]
