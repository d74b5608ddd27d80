from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest
from run_events import HOSTILE, eventful_run, started, whole_run

from detronome.report.chart import Marks, draw_chart
from detronome.report.curve import Curve
from detronome.report.plots import compare_charts, learning_charts, speed_charts, system_charts


def test_no_records_give_no_charts() -> None:
    assert learning_charts([]) == []
    for charts in (learning_charts, speed_charts, system_charts):
        assert charts([]) == charts([started().to_record()]) == []
    assert compare_charts({"a": [], "b": []}) == []


@pytest.mark.parametrize(
    "values", [[], [math.nan], [0.5], [0.0], [math.nan, 2.0], [1.0, 1.0], [1e-9, 1e9], [-5.0, 5.0], [0.1] * 700]
)
@pytest.mark.parametrize("is_noisy", [True, False])
def test_any_number_of_points_draws_a_well_formed_svg(values: list[float], is_noisy: bool) -> None:
    curve = Curve(label=HOSTILE, x=list(range(len(values))), y=values, is_noisy=is_noisy, best=0.0)
    marks = Marks(skips=[0.5], undone=[(0.5, 1e9)])
    chart = draw_chart(HOSTILE, [curve, curve], allow_log=True, floor=0.0, marks=marks)
    root = ElementTree.fromstring(chart.svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]
    if not any(map(math.isfinite, values)):
        assert chart.is_empty and "nothing recorded yet" in chart.svg


def test_a_run_gives_every_chart_in_the_colors_of_the_page() -> None:
    records = [event.to_record() for event in whole_run()]
    charts = [*learning_charts(records), *speed_charts(records), *system_charts(records)]
    assert [chart.title for chart in charts] == [
        "Average precision",
        "Loss",
        "loss_bbox, unweighted",
        "Gradient norm",
        "Learning rate",
        "Images per second",
        "Waiting for data",
        "Memory of the run, GiB",
    ]
    for chart in charts:
        assert "#0a0" not in chart.svg
        assert "currentColor" in chart.svg and "var(--series-" in chart.svg
    assert "best 0.400" in charts[0].svg
    assert "1 skipped steps" in charts[1].svg


def test_a_single_evaluation_is_enough() -> None:
    records = [event.to_record() for event in whole_run() if event.step <= 10]
    assert "AP 0.040" in learning_charts(records)[0].svg


def test_charts_are_deterministic_and_change_nothing_global() -> None:
    before = dict(mpl.rcParams)
    records = [event.to_record() for event in whole_run()]
    assert learning_charts(records) == learning_charts(records)
    assert dict(mpl.rcParams) == before


def test_charts_on_one_page_do_not_share_ids() -> None:
    records = [event.to_record() for event in whole_run()]
    charts = [*learning_charts(records), *speed_charts(records), *system_charts(records)]
    ids = [name for chart in charts for name in set(re.findall(r' id="([^"]*)"', chart.svg))]
    assert len(ids) == len(set(ids))


def test_more_runs_than_colors_are_compared() -> None:
    records = [event.to_record() for event in whole_run()]
    charts = compare_charts({f"run {number}": records for number in range(11)})
    assert [chart.title for chart in charts] == ["AP", "Loss", "Images per second", "Waiting for data"]
    assert all("run 10" in chart.svg for chart in charts)


def test_panoptic_runs_are_compared_by_both_numbers() -> None:
    records = [event.to_record() for event in whole_run()]
    for record in records:
        if record["kind"] == "eval":
            record["metrics"]["PQ"] = 0.25
    assert [chart.title for chart in compare_charts({"a": records, "b": records})][:2] == ["AP", "PQ"]


def test_the_validation_loss_is_dashed_beside_that_of_training() -> None:
    charts = {chart.title: chart.svg for chart in learning_charts([event.to_record() for event in whole_run()])}
    svg = charts["loss_bbox, unweighted"]
    assert "train 0.1" in svg and "val 0.1" in svg and "stroke-dasharray" in svg
    old = [event.to_record() for event in whole_run()]
    for record in old:
        if record["kind"] == "eval":
            del record["losses"]
    charts = {chart.title: chart.svg for chart in learning_charts(old)}
    assert "val" not in re.sub(r"<[^>]*>", "", charts["loss_bbox, unweighted"])


def test_rollbacks_are_marked_where_the_loss_is_drawn() -> None:
    charts = {chart.title: chart.svg for chart in learning_charts([event.to_record() for event in eventful_run()])}
    assert "4 skipped steps; 1 rollbacks" in charts["Loss"]
    assert "fill-opacity" in charts["Loss"] or "opacity: 0.14" in charts["Loss"]
    assert "rollbacks" not in charts["Average precision"]
