"""Quotas of control groups bound the processors, whichever version says so and at whichever level."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detronome.runtime import processors
from detronome.runtime.processors import usable_cpus


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 processors whose control groups lie in the folder returned."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(processors, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processors, "_OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def write(machine: Path, own: str, files: dict[str, str]) -> None:
    (machine / "own").write_text(own)
    for name, text in files.items():
        path = machine / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_control_groups_all_processors_count(machine: Path) -> None:
    assert usable_cpus() == 16


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "350000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "rubbish\n"}, 16),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "400000 100000\n"}, 4),
        ("0::/job/step\n", {"job/step/cpu.max": "300000 100000\n", "job/cpu.max": "400000 100000\n"}, 3),
        ("4:memory:/\n3:cpu,cpuacct:/docker/abc\n0::/\n", {"cpu/cpu.cfs_quota_us": "500000\n"}, 5),
        ("3:cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1\n"}, 16),
        ("3:cpuset:/job\n", {"cpu/job/cpu.cfs_quota_us": "500000\n"}, 16),
    ],
)
def test_the_quota_bounds_them(machine: Path, own: str, files: dict[str, str], cpus: int) -> None:
    periods = {name.replace("quota", "period"): "100000\n" for name in files if "quota" in name}
    write(machine, own, files | periods)
    assert usable_cpus() == cpus
