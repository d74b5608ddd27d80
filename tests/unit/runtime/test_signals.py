"""One signal asks, a second interrupts, a third ends; launchers' echoes of the first do not count."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from detronome.runtime import signals
from detronome.runtime.signals import STOP_SIGNALS, Interrupted, StopRequest, exit_code


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_without_a_signal_nothing_is_asked() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with StopRequest() as stop:
        assert (stop.is_set, stop.signal) == (False, "")
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_each_signal_asks_for_a_stop_and_has_its_exit_code(name: str, code: int) -> None:
    with StopRequest() as stop:
        send(signal.Signals[name])
        assert (stop.is_set, stop.signal) == (True, name)
    if sys.platform == "linux":
        assert exit_code(name) == code


def test_the_echo_of_a_launcher_is_no_second_request() -> None:
    """On Ctrl-C the terminal signals the process group, and torchrun or uv pass it on to their children."""
    with StopRequest() as stop:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            send(number)
        assert stop.signal == "SIGINT"


def test_a_second_request_interrupts_and_gives_the_handlers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_REQUEST_S", 0.0)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with pytest.raises(Interrupted) as error, StopRequest():
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
    assert error.value.exit_code == exit_code("SIGTERM")
    assert isinstance(error.value, KeyboardInterrupt)
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_a_third_request_ends_a_clean_up_that_hangs(tmp_path: Path) -> None:
    script = """
import os, signal, time
from detronome.runtime import signals
signals._SAME_REQUEST_S = 0.0
with signals.StopRequest():
    try:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("cleaning up", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "cleaning up\n", "")


def test_in_another_thread_no_signal_is_caught() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[bool] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(signal.getsignal(signal.SIGTERM) is before and not stop.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
