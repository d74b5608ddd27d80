from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from run_events import HOSTILE, ended, evaluated, eventful_run, logged, skipped, started, whole_run

from detronome.engine.events import Event
from detronome.errors import DataError
from detronome.report.html import write_report
from detronome.report.pictures import save_picture
from detronome.report.run_folder import differing_settings, read_run_folders
from detronome.report.run_log import RunLog

CONFIG = 'preset = "tiny"\n\n[optim]\nlr = {lr}\n\n[augment]\nsizes = [96, 128]\n'


def _make_run(folder: Path, events: list[Event], *, lr: float = 1e-4, num_pictures: int = 0) -> Path:
    log = RunLog(folder / "log.jsonl")
    for event in events:
        log(event)
    (folder / "config.toml").write_text(CONFIG.format(lr=lr))
    index = []
    for number in range(num_pictures):
        save_picture(np.full((60, 2000, 3), number, np.uint8), folder / "pictures" / f"{number}.jpg")
        index.append({"file": f"{number}.jpg", "image_id": number, "caption": HOSTILE})
    if num_pictures:
        (folder / "pictures" / "index.json").write_text(json.dumps(index))
    return folder


class _Page(HTMLParser):
    """Collects tags, visible text and the addresses that a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "img":
            assert dict(attrs).get("alt")

    def handle_data(self, data: str) -> None:
        self.text += data


def _render(runs: list[Path], out: Path) -> tuple[str, _Page]:
    text = write_report(runs, out).read_text(encoding="utf-8")
    return text, _Page(text)


def test_a_run_that_only_just_started_says_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(CONFIG.format(lr=1))
    _, page = _render([run], tmp_path / "a.html")
    assert "There is no log" in page.text and "There are no pictures" in page.text
    _make_run(run, [started()])
    _, page = _render([run], tmp_path / "b.html")
    assert "The run has not ended" in page.text and "no AP" in page.text
    _make_run(run, [started(), logged(1)])
    _, page = _render([run], tmp_path / "c.html")
    assert "Loss" in page.text


def test_a_whole_run_is_one_page_that_needs_no_network(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", list(whole_run()), num_pictures=3)
    text, page = _render([run], run)
    assert (run / "report.html").is_file()
    assert "0.400" in page.text and "finished" in page.text and "1.5M" in page.text
    assert "What is missing" not in page.text
    assert page.tags.count("img") == 3
    assert "script" not in page.tags and "link" not in page.tags
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", text)


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "<b>run</b>$x", list(whole_run()), num_pictures=1)
    text, page = _render([run], tmp_path / "a.html")
    assert "<script" not in text and "<b>run" not in text
    assert page.text.count("alert('x')") >= 3


def test_names_that_are_no_utf8_are_shown_as_far_as_they_can_be(tmp_path: Path) -> None:
    odd = "\udcff"  # how Python reads a byte of a file's name that is no UTF-8
    names = {"resolved": {"data.root": f"data{odd}"}, "environment": {odd: odd}}
    records = [replace(started(), **names), replace(logged(1), losses={f"loss{odd}": 1.0}), ended(1)]  # type: ignore[arg-type]
    run = _make_run(tmp_path / "run", records)
    log = "".join(json.dumps(record.to_record()) + "\n" for record in records)
    (run / "log.jsonl").write_text(log)
    _, page = _render([run], tmp_path / "a.html")
    assert "data?" in page.text and "loss" in page.text


def test_a_run_without_config_and_with_a_broken_index_works(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", list(whole_run()), num_pictures=2)
    (run / "config.toml").unlink()
    (run / "pictures" / "index.json").write_text("{")
    (run / "pictures" / "1.jpg").write_bytes(b"no picture")
    _, page = _render([run], tmp_path / "a.html")
    assert "config.toml) is missing" in page.text
    assert "cannot be read" in page.text
    assert page.tags.count("img") == 1


def test_an_index_cannot_pull_files_from_elsewhere(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", [started()], num_pictures=1)
    save_picture(np.zeros((8, 8, 3), np.uint8), run / "secret.png")
    (run / "pictures" / "index.json").write_text('[{"file": "../secret.png"}, {"file": ".."}, 3]')
    assert read_run_folders([run])[0].pictures == []


def test_a_folder_that_is_no_run_is_named_with_all_others(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        write_report([tmp_path / "empty", tmp_path / "none"], tmp_path / "a.html")
    assert [problem.where for problem in caught.value.problems] == [str(tmp_path / "empty"), str(tmp_path / "none")]
    assert "is no run" in caught.value.problems[0].what and "no such folder" in caught.value.problems[1].what
    assert all(problem.fix for problem in caught.value.problems)
    assert not (tmp_path / "a.html").exists()


def test_several_runs_are_compared_by_what_differs(tmp_path: Path) -> None:
    runs = [
        _make_run(tmp_path / "a" / "run", list(whole_run())),
        _make_run(tmp_path / "b" / "run", [started(), logged(5), evaluated(10, 0.1)], lr=2e-4),
    ]
    assert differing_settings(read_run_folders(runs)) == {"optim.lr": ["0.0001", "0.0002"]}
    _, page = _render(runs, tmp_path / "a.html")
    assert "2 runs compared" in page.text and "a/run" in page.text and "optim" in page.text and "lr" in page.text
    assert "not ended" in page.text
    same, _ = _render([runs[0], runs[0]], tmp_path / "b.html")
    assert "No setting differs" in same


def test_the_best_evaluation_is_the_one_the_run_called_so(tmp_path: Path) -> None:
    events: list[Event] = [started(), evaluated(10, 0.3), evaluated(20, 0.4, is_best=False), ended(20)]
    (run,) = read_run_folders([_make_run(tmp_path / "run", events)])
    assert run.best is not None and run.best["step"] == 10
    assert run.state == "finished" and run.num_resumes == 0


def test_what_happened_is_told_step_by_step_and_warnings_come_first(tmp_path: Path) -> None:
    text, page = _render([_make_run(tmp_path / "run", list(eventful_run()))], tmp_path / "a.html")
    assert "<script" not in text
    assert page.text.index("Worth changing") < page.text.index("Average precision") < page.text.index("What happened")
    for part in (
        "4 skipped steps", "1 rollback", "1 memory split", "2 failed checkpoints", "2 bad images", "2 warnings",
        "went back from step 46 to 40", "rates x 0.5", "memory ran out at 800x1344", "rank 3", "image 38 of train",
        "model.decoder.layers.2.cross_attention computes in fp32 from now on", "steps undone by a rollback",
    ):  # fmt: skip
        assert part in page.text, part
    assert "log.jsonl has all" not in page.text


def test_the_wall_time_is_shown_with_its_parts(tmp_path: Path) -> None:
    text, page = _render([_make_run(tmp_path / "run", list(eventful_run()))], tmp_path / "a.html")
    assert "goodput 61.3% of 0:31" in page.text
    assert "forward54.8%0:17" in page.text.replace("\n", "")
    assert sum(int(part) for part in re.findall(r"flex: (\d+) 0 0", text)) == 1000


def test_many_happenings_are_counted_and_the_last_are_shown(tmp_path: Path) -> None:
    skips = [skipped(step) for step in range(1, 200, 2)] + [skipped(step) for step in range(300, 350)]
    _, page = _render([_make_run(tmp_path / "run", [started(), *skips])], tmp_path / "a.html")
    assert "150 skipped steps" in page.text and "300-349" in page.text and "the last 20 of each kind" in page.text
    assert "told of the first of them" in page.text


def test_a_log_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", list(whole_run()))
    known = {"kind", "time", "step", "epoch", "reason", "image_ids", "metrics", "loss"}
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    old = [{key: value for key, value in record.items() if key in known} for record in records]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in old))
    _, page = _render([run], tmp_path / "a.html")
    assert "1 skipped step" in page.text and "goodput" not in page.text and "Where the time went" not in page.text
    bare = [{key: record[key] for key in ("kind", "step")} for record in records]
    bare += [{"kind": kind, "step": 3} for kind in ("rollback", "split", "checkpoint_failed", "warning", "bad_image")]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in bare))
    _, page = _render([run], tmp_path / "b.html")
    assert "1 rollback" in page.text


def test_a_finished_run_of_the_trainer_is_shown(tiny_run: Path, tmp_path: Path) -> None:
    _, page = _render([tiny_run], tmp_path / "a.html")
    assert "Where the time went" in page.text and "forward" in page.text
