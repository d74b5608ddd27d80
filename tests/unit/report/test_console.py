from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_events import (
    HOSTILE,
    bad_image,
    checkpoint_failed,
    diagnosed,
    ended,
    evaluated,
    eventful_run,
    logged,
    rolled_back,
    skipped,
    split,
    started,
    warned,
    whole_run,
)

from detronome.engine.events import Event, StepSkipped
from detronome.report.console import ConsoleProgress


class _Terminal(io.StringIO):
    """A text stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class _Broken(io.StringIO):
    """A stream whose reader has gone away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.just(0.0)
counts = st.integers(-5, 10**12)
events = st.one_of(
    st.builds(lambda s, t: replace(started(s), total_steps=t), counts, counts),
    st.builds(
        lambda s, e, v, w: replace(logged(s, loss=v), epoch=e, step_s=w, data_wait_s=v, images_per_s=w, grad_norm=v),
        counts, numbers, numbers, numbers,
    ),
    st.builds(lambda s, e: replace(skipped(s), epoch=e), counts, numbers),
    st.builds(lambda s, v: replace(evaluated(s, v), eval_s=v, training_s=v), counts, numbers),
    st.builds(lambda s, v, r: replace(ended(s, r), best_metrics={"AP": v}, wall_s=v), counts, numbers, st.text()),
    st.builds(lambda s: replace(evaluated(s, 0.1), metrics={}), counts),
    st.builds(lambda s: replace(logged(s), losses={}, learning_rates={}), counts),
    st.builds(lambda s: replace(ended(s), best_metrics={}, seconds={}), counts),
    st.builds(lambda s, v: replace(rolled_back(s, s), lr_scale=v, excluded=[s]), counts, numbers),
    st.builds(lambda s, m: m(s), counts, st.sampled_from([diagnosed, split, checkpoint_failed, warned, bad_image])),
)  # fmt: skip


def _is_healthy(progress: ConsoleProgress, stream: list[Event], caplog: pytest.LogCaptureFixture) -> bool:
    """Feed the events; False where one was swallowed by the last-resort handler."""
    caplog.clear()
    with caplog.at_level("DEBUG", logger="detronome.report.console"):
        for event in stream:
            progress(event)
        progress.close()
    return not caplog.records


@settings(max_examples=40, deadline=None)
@given(stream=st.lists(events, max_size=8), is_terminal=st.booleans())
def test_no_order_of_events_raises(stream: list[Event], is_terminal: bool) -> None:
    progress = ConsoleProgress(_Terminal() if is_terminal else io.StringIO(), plain_interval_s=0)
    for event in stream:
        progress(event)
    progress.close()


@settings(max_examples=40, deadline=None)
@given(stream=st.lists(events, max_size=8))
def test_no_event_needs_the_last_resort(stream: list[Event]) -> None:
    out = io.StringIO()
    progress = ConsoleProgress(out, plain_interval_s=0)
    num_skips = 0
    for event in stream:
        num_skips += isinstance(event, StepSkipped)
        before = out.tell()
        progress(event)
        is_counted = isinstance(event, StepSkipped) and num_skips > 3
        assert out.tell() > before or is_counted  # something was shown, so nothing failed on the way


def test_a_whole_run_on_a_terminal_fails_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    out = _Terminal()
    assert _is_healthy(ConsoleProgress(out), [*eventful_run(), *whole_run()], caplog)
    assert "★ best" in out.getvalue() and "\x1b[?25h" in out.getvalue()  # the cursor is given back


@pytest.mark.parametrize("force_color", [True, False])
def test_piped_output_has_no_control_characters(monkeypatch: pytest.MonkeyPatch, force_color: bool) -> None:
    if force_color:
        monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    progress = ConsoleProgress(out, plain_interval_s=0)
    for event in eventful_run():
        progress(event)
    text = out.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert "<script>" in text  # the hostile name is there, harmless
    assert "best at step 90: AP 0.400" in text


def test_the_end_of_a_panoptic_run_tells_both_numbers() -> None:
    out = io.StringIO()
    ConsoleProgress(out)(replace(ended(), best_metrics={"AP": 0.4, "PQ": 0.3}))
    assert "best at step 90: AP 0.400, PQ 0.300" in out.getvalue()


def test_plain_lines_keep_their_interval() -> None:
    out, now = io.StringIO(), [0.0]
    progress = ConsoleProgress(out, plain_interval_s=10, clock=lambda: now[0])
    progress(started())
    for step in range(1, 101):
        now[0] += 1
        progress(logged(step))
    lines = [line for line in out.getvalue().splitlines() if line.startswith("epoch")]
    assert len(lines) == 10
    assert lines[0] == (
        "epoch 0.1/10  step 1/100  loss 5  bbox 0.1 giou -  lr 1e-4  20 img/s  wait 25%  3.0 GiB  1 skipped  ETA 0:20"
    )


@pytest.mark.parametrize("interval_s", [0.0, 10.0])
def test_the_last_plain_line_is_written_once(interval_s: float) -> None:
    out = io.StringIO()
    progress = ConsoleProgress(out, plain_interval_s=interval_s, clock=lambda: 0.0)
    for event in (started(), logged(1), logged(2), ended(step=2)):
        progress(event)
    assert [line.split()[3] for line in out.getvalue().splitlines() if line.startswith("epoch")] == ["1/100", "2/100"]


def test_a_broken_pipe_and_a_narrow_encoding_do_not_raise() -> None:
    progress = ConsoleProgress(_Broken(), plain_interval_s=0)
    for event in whole_run():
        progress(event)
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    progress = ConsoleProgress(out, plain_interval_s=0)
    for event in (replace(started(), preset="größe"), evaluated(10, 0.1), ended()):
        progress(event)
    assert b"gr??e - 1.5M parameters" in raw.getvalue()


@pytest.mark.parametrize("no_color", [True, False])
@pytest.mark.parametrize("columns", [40, 80, 140])
def test_the_live_line_fits_a_real_terminal(columns: int, no_color: bool) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from run_events import whole_run\n"
        "from detronome.report.console import ConsoleProgress\n"
        "progress = ConsoleProgress()\n"
        "for event in whole_run(): progress(event)\n"
    )
    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    environment |= {"COLUMNS": str(columns), "TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if no_color else {})
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent)], stderr=slave, stdout=slave, env=environment
    )
    os.close(slave)
    chunks = []
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(master)
    assert process.wait() == 0
    text = b"".join(chunks).decode()
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]m", text)) is not no_color
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    live = [line for line in re.split(r"[\r\n]+", plain) if "loss" in line and "skipped:" not in line]
    assert live and all(len(line) < columns for line in live)


def test_skipped_steps_name_their_images() -> None:
    out = io.StringIO()
    ConsoleProgress(out)(skipped(33))
    assert "warning: step 33 skipped" in out.getvalue()
    assert "(images 0, 1, 2, 3, 4, 5, 6, 7 and 4 more)" in out.getvalue()
    assert HOSTILE not in out.getvalue()


def _shown(*stream: Event) -> list[str]:
    out = io.StringIO()
    progress = ConsoleProgress(out, plain_interval_s=1e9)
    for event in stream:
        progress(event)
    progress.close()
    return out.getvalue().splitlines()


def test_each_happening_is_a_line_and_a_warning_has_its_fix_below() -> None:
    assert _shown(rolled_back(600, 812))[0].startswith(
        "warning: went back from step 812 to 600: step 811: 2 steps in a"
    )
    assert _shown(rolled_back(600, 812))[0].endswith("; rates x 0.5")
    assert _shown(split(5)) == [
        "warning: memory ran out at 800x1344 (rank 1): 4 -> 2 images at once from now on, same gradient"
    ]
    first, second = _shown(warned(5))
    assert first.startswith("warning: it is <script>") and second.startswith("  fix: stop early <script>")
    (line,) = _shown(diagnosed(44))
    assert line.endswith("(bfloat16, image 44) (rank 3); model.decoder.layers.2.cross_attention computes in fp32 "
                         "from now on")  # fmt: skip
    assert "no space left" in _shown(checkpoint_failed(5))[0]
    assert "warning: image 17 of train: images/" in _shown(bad_image(5))[0]


def test_many_skips_for_one_reason_are_counted() -> None:
    lines = _shown(*(skipped(step, f"loss nan, gradient norm {step}.5e+03") for step in range(100)))
    assert len(lines) == 4
    assert lines[-1] == (
        "warning: 97 more steps skipped for the same reason, up to step 99; the run log names each"
    )  # fmt: skip
    assert len(_shown(*(skipped(step) for step in range(3)))) == 3
    assert "1 more step skipped for the same reason, step 3;" in _shown(*(skipped(step) for step in range(4)))[-1]


def test_skips_for_another_reason_or_after_an_evaluation_are_shown_again() -> None:
    row = [skipped(step) for step in range(5)]
    lines = _shown(*row, diagnosed(5), *row, evaluated(10, 0.1), *row)
    assert [line.split()[1] for line in lines] == [
        *["step"] * 3, "2", "step", *["step"] * 3, "2", "epoch", *["step"] * 3, "2"
    ]  # fmt: skip


def test_the_last_line_says_where_the_time_went() -> None:
    assert (
        _shown(ended())[-1]
        == "goodput 61.3 %; the rest: evaluation 32.3 %, data wait 3.2 %, steps undone by a rollback 3.2 %"
    )
    assert _shown(replace(ended(), seconds={}))[-1].startswith("training 0:20")
