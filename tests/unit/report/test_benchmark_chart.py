"""The picture of a benchmark: with AP and without, crowded and alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from detronome.report.benchmark_chart import BenchmarkPoint, save_benchmark

POINT = BenchmarkPoint(
    form="eager",
    backend="PyTorch",
    precision="fp32",
    batch_size=1,
    ms=10.0,
    quartiles_ms=(9.0, 12.0),
    images_per_s=100.0,
    speedup=None,
    ap=0.7,
)


def test_nothing_measured_gives_no_picture(tmp_path: Path) -> None:
    assert save_benchmark([], tmp_path, title="t", tolerance=0.01) == []


@pytest.mark.parametrize("ap", [None, float("nan"), 0.0, 0.7])
@pytest.mark.parametrize("count", [1, 12])
def test_any_number_of_forms_is_drawn_and_named(count: int, ap: float | None, tmp_path: Path) -> None:
    points = [
        replace(POINT, form=f"form <{n}> $x$", ms=10.0 + n % 3, ap=ap, batch_size=size, speedup=1.5 if n else None)
        for n in range(count)
        for size in (1, 8)
    ]
    png, svg = save_benchmark(points, tmp_path, title="model & data_$1$", tolerance=0.01)
    with Image.open(png) as picture:
        assert min(picture.size) > 300
    text = svg.read_text()
    assert all(f"form &lt;{n}&gt; $x$" in text for n in range(count)) and "model &amp; data_$1$" in text
    has_accuracy = ap is not None and ap == ap
    assert ("AP of form" in text) == has_accuracy
