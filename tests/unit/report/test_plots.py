from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest
from run_events import HOSTILE, started, whole_run

from detronome.report.plots import Curve, compare_charts, draw_chart, run_charts


def test_no_records_give_no_charts() -> None:
    assert run_charts([]) == []
    assert run_charts([started().to_record()]) == []
    assert compare_charts({"a": [], "b": []}) == []


@pytest.mark.parametrize(
    "values", [[], [math.nan], [0.5], [0.0], [math.nan, 2.0], [1.0, 1.0], [1e-9, 1e9], [-5.0, 5.0], [0.1] * 700]
)
@pytest.mark.parametrize("is_noisy", [True, False])
def test_any_number_of_points_draws_a_well_formed_svg(values: list[float], is_noisy: bool) -> None:
    curve = Curve(label=HOSTILE, x=list(range(len(values))), y=values, is_noisy=is_noisy, best=0.0)
    svg = draw_chart(HOSTILE, [curve, curve], allow_log=True, floor=0.0, alarms=[0.5])
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]
    if not any(map(math.isfinite, values)):
        assert "nothing recorded yet" in svg


def test_a_run_gives_every_chart_in_the_colors_of_the_page() -> None:
    charts = run_charts([event.to_record() for event in whole_run()])
    assert [chart.title for chart in charts] == [
        "Average precision",
        "Loss",
        "Loss terms, unweighted",
        "Gradient norm",
        "Learning rate",
        "Images per second",
        "Waiting for data",
        "Peak memory, GiB",
    ]
    for chart in charts:
        assert "#0a0" not in chart.svg
        assert "currentColor" in chart.svg and "var(--series-" in chart.svg
    assert "best 0.400" in charts[0].svg
    assert "1 skipped steps" in charts[1].svg


def test_a_single_evaluation_is_enough() -> None:
    records = [event.to_record() for event in whole_run() if event.step <= 10]
    assert "AP 0.040" in run_charts(records)[0].svg


def test_charts_are_deterministic_and_change_nothing_global() -> None:
    before = dict(mpl.rcParams)
    records = [event.to_record() for event in whole_run()]
    assert run_charts(records) == run_charts(records)
    assert dict(mpl.rcParams) == before


def test_charts_on_one_page_do_not_share_ids() -> None:
    charts = run_charts([event.to_record() for event in whole_run()])
    ids = [name for chart in charts for name in set(re.findall(r' id="([^"]*)"', chart.svg))]
    assert len(ids) == len(set(ids))


def test_more_runs_than_colors_are_compared() -> None:
    records = [event.to_record() for event in whole_run()]
    charts = compare_charts({f"run {number}": records for number in range(11)})
    assert [chart.title for chart in charts] == ["AP", "Loss"]
    assert all("run 10" in chart.svg for chart in charts)
