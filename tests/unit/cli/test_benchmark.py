"""The table of `detronome benchmark`: what was measured, what failed, what was left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from detronome.api.benchmarking import Benchmark
from detronome.cli.benchmark import _exit_code, _print, _whole_numbers
from detronome.deploy.benchmark.forms import LeftOut
from detronome.deploy.benchmark.messages import CallTimes
from detronome.deploy.benchmark.records import FormRecord, summarize
from detronome.errors import ConfigError


def calls(network_s: float, count: int, *, cpu: float = 1.0) -> list[list[CallTimes]]:
    one = CallTimes(decode_s=0.001, before_s=0.001, network_s=network_s, after_s=0.001, network_cpu_s=cpu * network_s)
    return [[one] * count for _ in range(5)]


def found(*, cpu: float = 1.0) -> Benchmark:
    eager, fast = calls(0.1, 3, cpu=cpu), calls(0.025, 3, cpu=cpu)
    batches = {
        "eager": (summarize(eager, None, batch_size=1, peak_bytes=2**29),),
        "fast": (summarize(fast, eager, batch_size=1, peak_bytes=2**28),),
        "wrong": (summarize(calls(0.01, 30), eager, batch_size=1, peak_bytes=2**28),),
    }
    aps = {"eager": 0.5, "fast": 0.495, "wrong": 0.3}
    forms = [
        FormRecord(form=name, backend="b", precision="fp32", what="", batches=records, metrics={"AP": aps[name]})
        for name, records in batches.items()
    ]
    forms.append(FormRecord(form="torn", backend="b", precision="fp32", what="", failure="it broke", fix="mend it"))
    return Benchmark(
        folder=Path("out"),
        forms=forms,
        left_out=[LeftOut(form="openvino", why="openvino not installed", fix="pip install 'detronome[openvino]'")],
        model="run",
        data="data",
        split="val",
        num_images=7,
        shapes_hw=[(32, 32 + n) for n in range(6)],
        threads=1,
        is_on_cpu=True,
        environment={"device": "a processor", "torch": "2"},
        date="2026-01-01",
    )


def test_the_table_says_what_was_measured_and_what_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    _print(found())
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["fast"][:6] == ["fast", "1", "25", "4.00", "4.00-4.00", "4.00"]
    assert rows["fast"][6:] == ["28", "-", "-", "35.7", "256", "0.495", "+0.0050"]
    assert rows["eager"] == ["eager", "1", "100", "103", "-", "-", "9.71", "512", "0.500"]
    assert rows["wrong"][-2:] == ["0.300", "+0.2000"] and "-" not in rows["wrong"][6:9]
    assert rows["torn"] == ["torn", "failed"] and "and 2 other shapes" in out
    assert rows["recommended"][1] == "fast"
    assert "failed: torn: it broke (mend it)" in err and "pip install 'detronome[openvino]'" in err
    assert "other programs" not in err


def test_a_form_that_fails_is_told_and_all_of_them_are_a_failure() -> None:
    measured = found()
    assert _exit_code(measured) == 0
    assert _exit_code(replace(measured, forms=measured.forms[-1:])) == 1


def test_a_busy_machine_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    _print(found(cpu=0.25))
    assert "other programs took 75%" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1.5"])
def test_what_is_no_list_of_numbers_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="no list of numbers"):
        _whole_numbers(text)
