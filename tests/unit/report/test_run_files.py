from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from full_run import write_full_run
from hypothesis import given
from hypothesis import strategies as st

from detronome.report.html import write_report
from detronome.report.run_files import DataFile, EvaluationFile, PlanFile, VerdictFile, read_run_file

KINDS = {"plan.json": PlanFile, "verdict.json": VerdictFile, "evaluation.json": EvaluationFile, "data.json": DataFile}


def test_a_missing_file_is_no_gap(tmp_path: Path) -> None:
    gaps: list[str] = []
    assert all(read_run_file(tmp_path / name, kind, gaps) is None for name, kind in KINDS.items())  # type: ignore[type-var]
    assert gaps == []


def test_whole_files_are_read(tmp_path: Path) -> None:
    run, gaps = write_full_run(tmp_path / "run", epochs=1), list[str]()
    evaluation = read_run_file(run / "evaluation.json", EvaluationFile, gaps)
    assert evaluation is not None and evaluation.overall is not None and evaluation.curves[0].name == "car"
    assert evaluation.worst_images[1].class_ == 1
    plan = read_run_file(run / "plan.json", PlanFile, gaps)
    assert plan is not None and sum(plan.training.bytes_by_cause.values()) == plan.training.peak_bytes
    assert read_run_file(run / "verdict.json", VerdictFile, gaps) and read_run_file(run / "data.json", DataFile, gaps)
    assert gaps == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("plan.json", "", "is not what it should be"),
        ("plan.json", '{"format": 1}', "missing required field `training`"),
        ("plan.json", '{"format": 2, "training": 3}', "of format 2"),
        ("verdict.json", "[1]", "Expected `object`"),
        ("verdict.json", '{"format": 1, "verdict": "DATA", "sentence": "s", "best_gain": "much"}', "best_gain"),
        ("evaluation.json", '{"format": 1, "classes": ["a"], "confusion": [[1, 2], [3]]}', "is not 2 by 2"),
        ("evaluation.json", '{"format": 1, "classes": ["a"], "confusion": [[1, 1e999], [3, 4]]}', "out of range"),
        (
            "data.json",
            '{"format": 1, "splits": {"train": {"num_images": 1, "num_objects": 1, '
            '"box_size_px": {"bins": [1, 2, 3], "counts": [1]}}}}',
            "do not fit",
        ),
        ("data.json", '{"format": 1, "splits": ' + "[" * 100_000, "is not what it should be"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_said_so_on_the_page(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    run = write_full_run(tmp_path / "run", epochs=1)
    (run / name).write_text(content)
    page = write_report([run], tmp_path / "a.html").read_text()
    assert "What is missing" in page and f"{name} is" in page
    gaps: list[str] = []
    assert read_run_file(run / name, KINDS[name], gaps) is None  # type: ignore[type-var]
    assert len(gaps) == 1 and said in gaps[0]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(kind=st.sampled_from(sorted(KINDS)), field=st.integers(0, 20), value=_JSON)
def test_any_value_in_any_field_is_read_or_refused(
    kind: str, field: int, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-value"
    if not folder.exists():
        write_full_run(folder, epochs=1)
    record = json.loads((folder / kind).read_text())
    record[list(record)[field % len(record)]] = value
    path = folder / f"changed-{kind}"
    path.write_text(json.dumps(record))
    gaps: list[str] = []
    found = read_run_file(path, KINDS[kind], gaps)  # type: ignore[type-var]
    assert (found is None) == (len(gaps) == 1)
