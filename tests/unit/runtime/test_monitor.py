"""The sampler of the machine."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from detronome.runtime import monitor
from detronome.runtime.host_memory import HostMemory
from detronome.runtime.monitor import SystemMonitor

CPU = torch.device("cpu")


def wait_for_sample(watching: SystemMonitor) -> dict[str, float]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if taken := watching.take():
            return taken
        time.sleep(0.01)
    raise AssertionError("no sample")


def test_there_is_nothing_before_the_first_sample() -> None:
    assert SystemMonitor(CPU).take() == {}
    with SystemMonitor(CPU, interval_s=3600) as watching:
        assert watching.take() == {}


def test_a_sample_has_the_gauges_of_a_machine_without_a_gpu() -> None:
    with SystemMonitor(CPU, interval_s=0.02) as watching:
        taken = wait_for_sample(watching)
    assert {"cpu_percent", "process_cpus", "rss_bytes", "ram_percent"} <= taken.keys()
    assert not any(name.startswith("gpu") for name in taken)
    assert taken["rss_bytes"] > 2**20
    assert 0 <= taken["ram_percent"] <= 100
    assert all(value >= 0 for value in taken.values())


def test_between_samples_the_latest_is_given_again() -> None:
    with SystemMonitor(CPU, interval_s=0.02) as watching:
        wait_for_sample(watching)
    last = watching.take() or watching.take()
    assert watching.take() == watching.take() != {}
    assert last.keys() == watching.take().keys()


def test_samples_are_averaged_between_two_takings(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([1.0, 2.0, 6.0])
    all_sampled, going_on = threading.Event(), threading.Event()

    class Sampler:
        def __init__(self, device: torch.device) -> None:
            pass

        def __call__(self) -> dict[str, float]:
            value = next(values, None)
            if value is None:
                all_sampled.set()
                going_on.wait(30)
                return {}
            return {"x": value}

    monkeypatch.setattr(monitor, "_Sampler", Sampler)
    with SystemMonitor(CPU, interval_s=0.001) as watching:
        assert all_sampled.wait(30)
        assert watching.take() == {"x": 3.0}
        assert watching.take() == {"x": 6.0}
        going_on.set()


def test_it_ends_its_thread() -> None:
    with pytest.raises(KeyError), SystemMonitor(CPU, interval_s=0.01):
        assert any(thread.name == "system-monitor" for thread in threading.enumerate())
        raise KeyError
    assert not any(thread.name == "system-monitor" for thread in threading.enumerate())


def test_a_machine_that_tells_nothing_of_its_disks_is_watched_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor.psutil, "disk_io_counters", lambda: None)
    sample = monitor._Sampler(CPU)
    assert "disk_read_bytes_s" not in sample()


@pytest.mark.parametrize("gauge", ["virtual_memory", "cpu_percent", "disk_io_counters"])
def test_what_a_machine_hides_is_left_out(gauge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(*_: object) -> None:
        raise PermissionError(f"/proc hides {gauge}")

    monkeypatch.setattr(monitor.psutil, gauge, hidden)
    assert monitor._Sampler(CPU)()["rss_bytes"] > 2**20


def test_counters_become_rates_of_the_time_that_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = iter([SimpleNamespace(read_bytes=n, write_bytes=10 * n) for n in (0, 300, 600)])
    times = iter([10.0, 12.0, 42.0])
    monkeypatch.setattr(monitor.psutil, "disk_io_counters", lambda: next(counters))
    monkeypatch.setattr("detronome.runtime.monitor.time.perf_counter", lambda: next(times))
    sample = monitor._Sampler(CPU)
    first, late = sample(), sample()
    assert (first["disk_read_bytes_s"], first["disk_write_bytes_s"]) == (150.0, 1500.0)
    assert late["disk_read_bytes_s"] == 10.0


def test_memory_is_that_which_the_control_groups_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    granted = HostMemory(total_bytes=8 * 2**30, available_bytes=2**30)
    monkeypatch.setattr(monitor, "host_memory", lambda: granted)
    assert monitor._Sampler(CPU)()["ram_percent"] == 87.5


@pytest.mark.gpu
def test_a_gpu_is_read_through_nvml() -> None:
    sample = monitor._Sampler(torch.device("cuda", 0))()
    assert 0 <= sample["gpu_percent"] <= 100
    assert sample["gpu_memory_bytes"] > 0
