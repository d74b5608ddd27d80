"""The page of a run that has everything, and of several of them."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from full_run import write_full_run
from hypothesis import given
from hypothesis import strategies as st
from run_events import HOSTILE

from detronome.report.histogram_chart import Spread, _on_common_bins, draw_histogram
from detronome.report.html import write_report
from detronome.report.page.comparison import compare_runs
from detronome.report.page.quality import quality_of
from detronome.report.page.run_view import view_run
from detronome.report.recall_chart import RecallCurve, draw_recall
from detronome.report.run_folder import read_run_folders
from detronome.report.stack_chart import draw_stack
from detronome.report.wall_time import SECTION_LOOKS

MAX_PAGE_BYTES = 3_000_000


class _Page(HTMLParser):
    """Collects ids, inner links, images and visible text; every tag must be closed in its order."""

    _VOID = frozenset(("meta", "img", "br", "wbr", "link", "input", "hr"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.num_images = 0
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in self._VOID:
            self._open.append(tag)
        if identity := values.get("id"):
            self.ids.append(identity)
        if tag == "a":
            self.targets.append((values.get("href") or "").removeprefix("#"))
        if tag == "img":
            self.num_images += 1
            assert values.get("alt") and (values.get("src") or "").startswith("data:image/")
        assert tag not in ("script", "link", "iframe")
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self._VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(runs: list[Path], out: Path) -> _Page:
    text = write_report(runs, out).read_text(encoding="utf-8")
    assert len(text) < MAX_PAGE_BYTES
    page = _Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.targets) <= set(page.ids)
    return page


def test_everything_that_a_run_knows_is_on_its_page(tmp_path: Path) -> None:
    page = _page([write_full_run(tmp_path / "run", epochs=3)], tmp_path / "a.html")
    for part in (
        "DEVICE",
        "limited by arithmetic",
        "1.12×",
        "93.1%",
        "train.compile=true",
        "measured by detronome profile",
        "Time of a step by section",
        "Time of a step on the device's own clock",
        "In use on the machine",
        "GPU power, W",
        "the tensors were planned 2.8% above what was measured",
        "RTX 4090: 22.5 GiB may be used of 23.4 GiB",
        "allocator slack",
        "Kinds of mistakes",
        "260",
        "AP by class",
        "Precision over recall",
        "car → truck",
        "Worst images",
        "F1 0.08",
        "4 missed · 2 on background · 1 of the wrong class · 1 badly placed",
        "Objects by class",
        "none in val",
        "Resolved configuration",
    ):
        assert part in page.text, part
    assert "What is missing" not in page.text and "Not on this page" not in page.text
    assert page.num_images == 8


def test_parts_that_a_run_lacks_are_left_out_with_the_command_that_makes_them(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run", epochs=1)
    for name in ("plan.json", "verdict.json", "evaluation.json", "data.json"):
        (run / name).unlink()
    page = _page([run], tmp_path / "a.html")
    assert "What is missing" not in page.text
    assert "detronome profile RUN" in page.text and "detronome eval RUN DATA" in page.text
    for part in ("Confusion", "Worst images", "Memory by cause", "Objects by class", "what was measured"):
        assert part not in page.text, part
    assert "AP by class" in page.text


@pytest.mark.parametrize("num_classes", [0, 1, 2, 20, 21, 80])
def test_any_number_of_classes_is_shown(tmp_path: Path, num_classes: int) -> None:
    classes = tuple(f"class {number}" for number in range(num_classes))
    run = write_full_run(tmp_path / "run", classes=classes, epochs=1)
    _page([run], tmp_path / "a.html")
    view = quality_of(read_run_folders([run])[0])
    assert len(view.rows) == (num_classes + 1 if 0 <= num_classes <= 20 else 0)
    assert bool(view.pairs) == (num_classes > 1)
    assert sum(len(column) for column in view.class_columns) == num_classes


def test_too_many_classes_for_a_matrix_are_told_by_their_pairs(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run", epochs=1)
    record = json.loads((run / "evaluation.json").read_text())
    record |= {"confusion": None, "top_confusions": [{"truth": "car", "predicted": "bus", "count": 109}]}
    (run / "evaluation.json").write_text(json.dumps(record))
    view = quality_of(read_run_folders([run])[0])
    assert view.rows == []
    (pair,) = view.pairs
    assert (pair.truth, pair.predicted, pair.count) == ("car", "bus", "109")
    assert float(pair.share.rstrip("%")) == pytest.approx(100 * 109 / record["curves"][0]["num_objects"], abs=0.05)


def test_the_matrix_is_the_files(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run", epochs=1)
    counts = json.loads((run / "evaluation.json").read_text())["confusion"]
    view = quality_of(read_run_folders([run])[0])
    shown = [[int(cell.text or 0) for cell in row.cells] for row in view.rows]
    assert shown == counts
    assert [[cell.is_right for cell in row.cells].count(True) for row in view.rows] == [1] * len(counts)
    assert all((cell.heat > 0) == (cell.text != "") for row in view.rows for cell in row.cells)


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_are_drawn_without_a_word(tmp_path: Path) -> None:
    names = ("車", "سيارة", "😀")
    page = _page([write_full_run(tmp_path / "run", classes=names, epochs=1)], tmp_path / "a.html")
    assert all(name in page.text for name in names)


def test_hostile_names_are_text_on_every_part_of_the_page(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "<b>run</b>", classes=(HOSTILE, '"><img src=x onerror=y>', "a" * 300), epochs=1)
    for name in ("verdict.json", "plan.json", "evaluation.json", "data.json"):
        record = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(_with_hostile_texts(record)))
    for runs in ([run], [run, run]):
        text = write_report(runs, tmp_path / "a.html").read_text(encoding="utf-8")
        assert "<script" not in text and "<b>run" not in text and "<img src=x" not in text
        _Page(text)
        assert "alert('x')" in _Page(text).text


def _with_hostile_texts(value: object) -> object:
    """Return the record with every text made hostile, but for what the page is told to look up."""
    if isinstance(value, dict):
        keep = ("picture", "source")
        return {key: inner if key in keep else _with_hostile_texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_hostile_texts(inner) for inner in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def test_pictures_from_outside_the_run_are_not_pulled_in(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run", epochs=1)
    (run / "pictures" / "worst-0.jpg").rename(tmp_path / "secret.jpg")
    (run / "pictures" / "worst-1.jpg").unlink()
    (run / "pictures" / "worst-1.jpg").symlink_to(tmp_path / "secret.jpg")
    record = json.loads((run / "evaluation.json").read_text())
    for one, picture in zip(
        record["worst_images"],
        ("../secret.jpg", "pictures/worst-1.jpg", str(tmp_path / "secret.jpg"), "a\x00b"),
        strict=True,
    ):
        one["picture"] = picture
    (run / "evaluation.json").write_text(json.dumps(record))
    view = view_run(read_run_folders([run])[0], max_pictures=12)
    assert view.worst == []


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    run = write_full_run(tmp_path / "run", epochs=1)
    noise = np.random.default_rng(0).integers(0, 255, (1200, 3000, 3), dtype=np.uint8)
    for path in (run / "pictures").glob("*.jpg"):
        Image.fromarray(noise).save(path, quality=95)
    assert sum(path.stat().st_size for path in (run / "pictures").glob("*.jpg")) > 10e6
    for one in view_run(read_run_folders([run])[0], max_pictures=12).pictures:
        assert one.uri.startswith("data:image/jpeg") and len(one.uri) < 700_000


def test_several_runs_are_compared_part_by_part(tmp_path: Path) -> None:
    good = write_full_run(tmp_path / "good", epochs=3)
    slow = write_full_run(tmp_path / "slow", epochs=3, lr=5e-5, wait=9, verdict="DATA")
    view = compare_runs(read_run_folders([good, slow]))
    rows = {row.name: row for row in view.results}
    assert rows["AP"].best == 0 and rows["images/s"].best == 0 and rows["state"].best is None
    assert [verdict.word for _, verdict in view.verdicts if verdict] == ["DEVICE", "DATA"]
    assert {group: [row.name for row in of_group] for group, of_group in view.settings.items()} == {
        "optim": ["lr", "lr_backbone"],
        "data": ["workers"],
    }
    assert [is_changed for _, is_changed in view.settings["data"][0].values] == [False, True]
    assert view.steps[1].percent == 100 > view.steps[0].percent
    waits = [next(part.value for part in bar.parts if part.name == "waiting for data") for bar in view.steps]
    assert waits[1] > 5 * waits[0]
    page = _page([good, slow], tmp_path / "a.html")
    assert "Settings that differ" in page.text and "Verdicts" in page.text
    three = _page([good, slow, write_full_run(tmp_path / "third", epochs=1)], tmp_path / "b.html")
    assert three.num_images == 24


def test_runs_without_measurements_are_compared_by_what_they_have(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text('preset = "tiny"\n')
        runs.append(tmp_path / name)
    view = compare_runs(read_run_folders(runs))
    assert not view.steps and not view.memory and not view.verdicts and not view.charts and not view.settings
    assert "No setting differs" in _page(runs, tmp_path / "a.html").text


def test_a_measured_peak_alone_and_a_device_far_larger_are_drawn(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run", epochs=1)
    plan = json.loads((run / "plan.json").read_text())
    plan["budget_bytes"] = 141 * 2**30
    plan["evaluation"] = None
    (run / "plan.json").write_text(json.dumps(plan))
    view = view_run(read_run_folders([run])[0], max_pictures=1).memory
    assert (
        view is not None
        and view.limit_percent is None
        and [bar.name for bar in view.bars] == ["planned, training", "measured"]
    )
    assert max(bar.percent for bar in view.bars) > 95
    assert view.summary.startswith("the tensors were planned 2.8% above")  # CUDA's context is in no measurement
    plan["device"]["type"] = "cpu"
    (run / "plan.json").write_text(json.dumps(plan))
    view = view_run(read_run_folders([run])[0], max_pictures=1).memory
    assert view is not None and view.summary == ""  # there it is the whole process that is measured
    plan["budget_bytes"] = 12 * 2**30
    (run / "plan.json").write_text(json.dumps(plan))
    view = view_run(read_run_folders([run])[0], max_pictures=1).memory
    assert view is not None and view.limit_percent is not None and 95 < view.limit_percent < 100


@pytest.mark.parametrize("count", [0, 1, 2, 119, 120, 121, 1000])
def test_a_stack_of_any_length_is_well_formed(count: int) -> None:
    values = {"forward": [1.0] * count, "backward": [2.0] * count, HOSTILE: [float("nan")] * count}
    chart = draw_stack("a stack", [i / 10 for i in range(count)], values, SECTION_LOOKS, unit="ms")
    assert chart.is_empty == (count == 0)
    ElementTree.fromstring(chart.svg)
    if count:
        assert "forward 1" in chart.svg and "backward 2" in chart.svg and "var(--series-" in chart.svg


def test_charts_of_nothing_say_so() -> None:
    for chart in (draw_recall("r", [], None), draw_histogram("h", [Spread(name="a", bins=[], counts=[])], x_label="x")):
        assert chart.is_empty
        ElementTree.fromstring(chart.svg)


@pytest.mark.parametrize("bins", [[0.0, 1.0, 2.0, None], [0, 1, 2], [0, 1, 2, 3], [0.5, 1.0, 4.0, 9.0]])
def test_bins_may_be_edges_or_values(bins: list[float | None]) -> None:
    chart = draw_histogram("h", [Spread(name=HOSTILE, bins=bins, counts=[3, 9, 0])], x_label="objects")
    root = ElementTree.fromstring(chart.svg)
    assert "most are 1" in root.attrib["aria-label"]
    assert ("∞" in chart.svg) == (bins[-1] is None)
    assert (" to " in root.attrib["aria-label"]) == (bins[-1] in (None, 9.0))


def test_splits_that_reach_differently_far_share_their_bins() -> None:
    near, far = (
        Spread(name="near", bins=[1, 2, 4], counts=[5, 5]),
        Spread(name="far", bins=[2, 4, 8, 16], counts=[2, 2, 4]),
    )
    chart = draw_histogram("h", [near, far], x_label="pixels")
    shown = re.sub(r"<[^>]*>", " ", chart.svg)
    assert all(re.search(rf"\b{text}\b", shown) for text in ("near", "far", "1", "16"))
    label = ElementTree.fromstring(chart.svg).attrib["aria-label"]
    assert "near: most are 1 to 2" in label and "far: most are 8 to 16" in label


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=2, max_size=6, unique=True).map(sorted), min_size=1, max_size=3),
    st.integers(1, 1000),
)
def test_no_count_is_lost_on_common_bins(edges: list[list[int]], count: int) -> None:
    spreads = [Spread(name="s", bins=one, counts=[count] * (len(one) - 1)) for one in edges]
    for before, after in zip(spreads, _on_common_bins(spreads), strict=True):
        assert len(after.bins) == len(after.counts) + 1
        assert sum(after.counts) == pytest.approx(sum(before.counts))


def test_the_best_and_worst_of_many_curves_are_named() -> None:
    curves = [RecallCurve(name=f"c{i}", precision=[1.0, 1 - i / 20, 0.0], average=1 - i / 20) for i in range(20)]
    text = re.sub(r"<[^>]*>", " ", draw_recall("r", curves, curves[10]).svg)
    assert all(name in text for name in ("c0 ", "c3 ", "c10 ", "c17 ", "c19 ")) and "c8 " not in text
