"""Memory is what the narrowest control group grants, in either version's files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from detronome.runtime import processors
from detronome.runtime.host_memory import host_memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB, 48 of them free, whose control groups lie in the folder returned."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=48 * GIB))
    monkeypatch.setattr(processors, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processors, "_OWN_CGROUPS", tmp_path / "own")
    return tmp_path


@pytest.mark.parametrize(
    ("own", "files", "total", "available"),
    [
        ("", {}, 64, 48),
        ("0::/\n", {"memory.max": "max", "memory.current": f"{GIB}"}, 64, 48),
        ("0::/\n", {"memory.max": f"{8 * GIB}", "memory.current": f"{3 * GIB}"}, 8, 5),
        (
            "0::/\n",
            {
                "memory.max": f"{8 * GIB}",
                "memory.current": f"{6 * GIB}",
                "memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
            },
            8,
            4,
        ),
        ("0::/\n", {"memory.max": f"{8 * GIB}", "memory.current": f"{9 * GIB}"}, 8, 0),
        ("0::/\n", {"memory.max": f"{100 * GIB}", "memory.current": f"{GIB}"}, 64, 48),
        (
            "0::/a/b\n",
            {
                "a/memory.max": f"{16 * GIB}",
                "a/memory.current": f"{4 * GIB}",
                "a/b/memory.max": f"{14 * GIB}",
                "a/b/memory.current": f"{GIB}",
            },
            14,
            12,
        ),
        (
            "5:memory:/\n",
            {"memory/memory.limit_in_bytes": f"{4 * GIB}", "memory/memory.usage_in_bytes": f"{GIB}"},
            4,
            3,
        ),
        ("5:cpu:/\n", {"memory/memory.limit_in_bytes": f"{4 * GIB}", "memory/memory.usage_in_bytes": "0"}, 64, 48),
    ],
)
def test_control_groups_bound_it(
    machine: Path, own: str, files: dict[str, str], total: float, available: float
) -> None:
    (machine / "own").write_text(own)
    for name, text in files.items():
        path = machine / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = host_memory()
    assert (found.total_bytes / GIB, found.available_bytes / GIB) == (total, available)
