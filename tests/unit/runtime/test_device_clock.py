"""The device's own time, by section."""

import pytest
import torch

from detronome.runtime.device_clock import DeviceClock
from detronome.runtime.progress import Progress, Section


class Event:
    """An event of a device whose clock the test sets."""

    now_ms, done_ms = 0.0, 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.at_ms = Event.now_ms

    def query(self) -> bool:
        return self.at_ms <= Event.done_ms

    def elapsed_time(self, later: "Event") -> float:
        return later.at_ms - self.at_ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> DeviceClock:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    Event.now_ms = Event.done_ms = 0.0
    return DeviceClock(torch.device("cuda", 0))


def begin(progress: Progress, section: Section, at_ms: float) -> None:
    Event.now_ms = at_ms
    progress.enter(section)


def test_there_is_nothing_to_read_at_first(clock: DeviceClock) -> None:
    assert clock.read() == {}
    clock.mark("forward")
    assert clock.read() == {}


def test_sections_add_up_and_unfinished_ones_come_later(clock: DeviceClock) -> None:
    progress = Progress(marker=clock.mark)
    for section, at_ms in [
        (Section.FORWARD, 0),
        (Section.BACKWARD, 1000),
        (Section.FORWARD, 3000),
        (Section.BACKWARD, 3500),
    ]:
        begin(progress, section, at_ms)
    Event.done_ms = 3200
    assert clock.read() == {"forward": 1.0, "backward": 2.0}
    assert clock.read() == {}
    Event.done_ms = 4000
    assert clock.read() == {"forward": 0.5}


def test_marks_that_nobody_reads_do_not_pile_up(clock: DeviceClock) -> None:
    for n in range(20_000):
        clock.mark(f"section {n % 3}")
    assert len(clock._marks) <= 2**14


def test_a_device_that_has_failed_keeps_nobody_from_ending_in_order(
    clock: DeviceClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    progress = Progress(marker=clock.mark)
    with pytest.raises(KeyError), progress.within(Section.FORWARD):
        monkeypatch.setattr(Event, "record", fail)
        raise KeyError
    assert progress.now.section is Section.START


@pytest.mark.gpu
def test_a_gpu_tells_its_time() -> None:
    clock = DeviceClock(torch.device("cuda", 0))
    x = torch.rand(4096, 4096, device="cuda")
    clock.mark("multiply")
    for _ in range(20):
        x = x @ x / 4096
    clock.mark("rest")
    torch.cuda.synchronize()
    assert clock.read()["multiply"] > 0
