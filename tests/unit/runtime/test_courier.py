import pytest

from detronome.runtime import courier
from detronome.runtime.courier import AwakeClock


def test_the_clock_leaves_out_what_the_process_slept_through(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(courier.time, "monotonic", lambda: now)
    clock = AwakeClock(2.0)
    now = 101.5
    assert clock() == 101.5
    now = 601.5  # stopped, suspended, or in a debugger
    assert clock() == 101.5
    now = 602.5
    assert clock() == 102.5
