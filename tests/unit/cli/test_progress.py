"""How far a command has come: nothing for short work in a pipe, a line now and then for long work."""

import pytest

from detronome.cli.progress import show_progress

Capture = pytest.CaptureFixture[str]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_said_of_nothing(capsys: Capture) -> None:
    with show_progress() as show:
        show("predicting", 0, 0)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_every_ten_seconds(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take a pipe for a terminal
    clock = Clock()
    with show_progress(clock=clock) as show:
        for done in range(251):
            clock.now = 0.1 * done
            show("images", 100 * done, 30_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["images: 10,000 of 30,000, 33 %", "images: 20,000 of 30,000, 66 %"]


def test_bytes_and_an_unknown_end(capsys: Capture) -> None:
    clock = Clock()
    with show_progress(is_bytes=True, clock=clock) as show:
        clock.now = 11.0
        show("writing [train]", 3 << 20, 6 << 20)
        clock.now = 22.0
        show("writing [train]", 3 << 20, 0)
    assert capsys.readouterr().err.splitlines() == [
        "writing [train]: 3.0 MiB of 6.0 MiB, 50 %",
        "writing [train]: 3.0 MiB",
    ]
