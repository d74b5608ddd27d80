"""A benchmark's session: forms come in groups where memory is short, and one that fails ends nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from detronome.deploy.benchmark import session as session_module
from detronome.deploy.benchmark.calls import Call
from detronome.deploy.benchmark.messages import (
    CallTimes,
    Evaluate,
    Evaluated,
    Measure,
    Measured,
    Open,
    Opened,
    Output,
    Outputs,
    Subject,
)
from detronome.deploy.benchmark.process import FormFailedError
from detronome.deploy.benchmark.records import FormRecord
from detronome.deploy.benchmark.session import Contender, Session
from detronome.types import Categories

SUBJECT = Subject(source="run", form=None, data="data", split="val", device="cpu", threads=1, image_size=None)


class FakeProcess:
    """A form's process whose network needs as many milliseconds as its name says."""

    available_bytes = 10**9
    fails_at: ClassVar[dict[str, type]] = {}
    """The first request that a form fails at, by the form's name."""
    num_classes: ClassVar[dict[str, int]] = {}
    """By the form's name; 1 where it is not said."""
    is_open: ClassVar[dict[str, bool]] = {}
    opened: ClassVar[list[str]] = []

    def __init__(self, entry: str, *, threads: int, log: Path) -> None:
        self.name = log.stem
        self.is_open[self.name] = True
        self.opened.append(self.name)

    def __enter__(self) -> FakeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.is_open[self.name] = False

    def ask(self, request: object, answer: type) -> Any:
        if isinstance(request, self.fails_at.get(self.name, ())):
            raise FormFailedError("broke", "mend it")
        classes = self.num_classes.get(self.name, 1)
        match request:
            case Open():
                return Opened(
                    seconds=1.0,
                    backend="b",
                    precision="fp32",
                    categories=Categories(ids=tuple(range(classes)), names=("thing",) * classes),
                    resident_bytes=100,
                    available_bytes=self.available_bytes,
                )
            case Measure():
                network_s = int(self.name) / 1000
                times = CallTimes(decode_s=0.0, before_s=0.0, network_s=network_s, after_s=0.0, network_cpu_s=network_s)
                return Measured(times=tuple(times for _ in request.calls), peak_bytes=7)
            case Outputs():
                return [
                    Output(scores=np.full((2, classes), 0.5, np.float32), boxes_cxcywh=np.zeros((2, 4), np.float32))
                    for _ in request.images
                ]
            case Evaluate():
                return Evaluated(numbers={"AP": 0.5})
        raise AssertionError(request)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> type[FakeProcess]:
    class OfThisTest(FakeProcess):
        fails_at: ClassVar[dict[str, type]] = {}
        num_classes: ClassVar[dict[str, int]] = {}
        is_open: ClassVar[dict[str, bool]] = {}
        opened: ClassVar[list[str]] = []

    monkeypatch.setattr(session_module, "FormProcess", OfThisTest)
    return OfThisTest


def run(tmp_path: Path, *names: str) -> list[FormRecord]:
    session = Session(
        entry="entry",
        threads=1,
        logs=tmp_path,
        calls={1: [Call((0,), (32, 32))], 2: [Call((0, 1), (32, 32))]},
        seconds=0.1,
        compared=(0,),
        evaluated=(0, 1),
    )
    return session.run([Contender(name=name, subject=SUBJECT, file=None) for name in names])


def speeds(records: list[FormRecord]) -> list[list[float | None]]:
    return [[batch.network_speedup and batch.network_speedup.ratio for batch in one.batches] for one in records]


@pytest.mark.parametrize(("available_bytes", "most_open"), [(10**9, 4), (299, 2)])
def test_each_form_is_compared_with_the_first_however_many_have_room(
    tmp_path: Path, process: type[FakeProcess], available_bytes: int, most_open: int
) -> None:
    process.available_bytes = available_bytes
    largest = 0
    plain_ask = process.ask

    def ask(self: FakeProcess, request: object, answer: type) -> Any:
        nonlocal largest
        largest = max(largest, sum(process.is_open.values()))
        return plain_ask(self, request, answer)

    process.ask = ask  # type: ignore[method-assign]
    records = run(tmp_path, "100", "50", "20", "200")
    assert [record.form for record in records] == process.opened == ["100", "50", "20", "200"]
    assert speeds(records) == [[None, None], *([pytest.approx(r)] * 2 for r in (2.0, 5.0, 0.5))]
    assert [record.difference is None for record in records] == [True, False, False, False]
    assert all(record.metrics == {"AP": 0.5} and not record.failure for record in records)
    assert largest == most_open and not any(process.is_open.values())


@pytest.mark.parametrize("request_type", [Open, Measure, Outputs, Evaluate])
@pytest.mark.parametrize("name", ["100", "50"])
def test_a_form_that_fails_ends_nothing(
    tmp_path: Path, process: type[FakeProcess], name: str, request_type: type
) -> None:
    process.fails_at[name] = request_type
    records = {record.form: record for record in run(tmp_path, "100", "50", "20")}
    assert (records[name].failure, records[name].fix, records[name].metrics) == ("broke", "mend it", None)
    for other in {"100", "50", "20"} - {name}:
        assert not records[other].failure and len(records[other].batches) == 2
    if name == "100" and request_type in (Open, Measure):
        assert speeds([records["20"]]) == [[None, None]]
    else:
        assert speeds([records["20"]]) == [[pytest.approx(5.0)] * 2]
    assert not any(process.is_open.values())


def test_outputs_of_other_categories_are_not_compared(tmp_path: Path, process: type[FakeProcess]) -> None:
    process.num_classes["50"] = 3
    records = run(tmp_path, "100", "50", "20")
    assert [record.difference is None for record in records] == [True, True, False]
    assert all(record.metrics == {"AP": 0.5} and not record.failure for record in records)
