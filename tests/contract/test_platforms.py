"""Other systems than Linux: simulated in child processes, and rules that the source keeps (docs/platforms.md)."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.other_system import digest_of

import detronome

SOURCE = Path(detronome.__file__).parent
REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = sorted(SOURCE.rglob("*.py"))
MORE = {"batch.global_batch_size": 8}
"""Three steps in an epoch, so that there is a middle to stop in."""


def module_id(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.fixture(scope="module", params=["win32", "darwin"])
def told(
    request: pytest.FixtureRequest,
    blocks: Path,
    tiny_settings: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What came of a training, and of all that follows it, on a simulated system."""
    out = tmp_path_factory.mktemp(request.param)
    settings = {**tiny_settings, **MORE}
    asked = {"system": request.param, "data": str(blocks), "out": str(out), "settings": settings}
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.other_system", json.dumps(asked)],
        cwd=REPOSITORY,
        env={**os.environ, "DETRONOME_CACHE": str(out / "cache"), "DETRONOME_SHAPE_CHECKS": "off"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return {"system": request.param, **json.loads(done.stdout.splitlines()[-1])}


def test_every_module_is_imported(told: dict[str, Any]) -> None:
    assert told["modules"] >= len([path for path in MODULES if path.name not in ("__init__.py", "__main__.py")])


def test_a_run_is_interrupted_and_goes_on_to_its_end(told: dict[str, Any]) -> None:
    assert told["interrupted"] == ["interrupted", "SIGINT"]
    reason, names = told["trained"]
    assert reason == "finished"
    assert {"checkpoints", "config.toml", "report.html"} <= set(names)
    # A held lock cannot be removed on Windows; nothing else may be left.
    assert {name for name in names if name.startswith(".")} <= ({".lock"} if told["system"] == "win32" else set())


def test_its_weights_are_those_of_this_system(
    told: dict[str, Any], blocks: Path, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**tiny_settings, **MORE}
    run = detronome.train(blocks, model="nano", epochs=2, out=tmp_path / "run", settings=settings)
    assert told["weights"] == digest_of(run.model.detector)


def test_what_it_has_trained_is_loaded_and_used(told: dict[str, Any]) -> None:
    in_training, now = told["AP"]
    assert in_training == now == told["AP of shards"]
    assert told["predicted"] == 30


def test_data_is_checked_and_converted(told: dict[str, Any]) -> None:
    assert told["checked"] == "note"
    assert told["converted"] >= 29


def test_where_links_are_refused_copies_are_advised(told: dict[str, Any]) -> None:
    assert ("--images copy" in told["linked"]) if told["system"] == "win32" else ("linked" not in told)


def test_the_cache_is_emptied(told: dict[str, Any]) -> None:
    assert {"index", "pixels"} <= set(told["cleared"])


def test_pixels_go_to_the_disk_where_memory_has_no_files(told: dict[str, Any]) -> None:
    assert "this system has no anonymous files" in told["pixels in memory"]
    assert "data.cache=disk" in told["pixels in memory"]


def test_locks_keep_others_out(told: dict[str, Any]) -> None:
    assert told["locks"] == [True, False]


def test_loader_workers_are_not_bounded_by_a_folder_that_is_not_there(told: dict[str, Any]) -> None:
    assert told["shared memory"] > 2**20


def test_the_machine_is_examined(told: dict[str, Any]) -> None:
    facts = told["doctor"]
    assert facts["processors"]["usable"] >= 1 and "flags" not in facts["processors"]
    assert facts["memory"]["total_bytes"] > facts["memory"]["available_bytes"] > 0
    assert (facts["open_files"]["soft"] is None) == (told["system"] == "win32")
    assert [disk["locks"] and disk["is_whole"] for disk in facts["disks"]["disks"]] == [True, True]


# ----------------------------------------------------------------------------------------------- what the source keeps


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Yield each call with what is called, e.g. `os.rename` or `.read_text` of anything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""
            yield node, called


def text_files_without_encoding(source: str) -> list[int]:
    """Return the lines that read or write text in whatever encoding the system prefers."""
    found = []
    for node, called in calls(ast.parse(source)):
        method = called.rpartition(".")[2]
        is_given = any(keyword.arg in ("encoding", None) for keyword in node.keywords)
        modes = [*node.args[:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        is_binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)
        place = {"read_text": 0, "write_text": 1}.get(method)
        if place is not None and "." in called:
            is_late = is_given or len(node.args) > place
        elif called in ("open", "os.fdopen", "gzip.open") or (method == "open" and _is_of_a_path(node, called)):
            is_late = is_given or is_binary
        else:
            continue
        found += [] if is_late or _is_of_linux(node, source) else [node.lineno]
    return found


def _is_of_a_path(node: ast.Call, called: str) -> bool:
    """Whether `x.open(...)` is that of a path: its first argument is a mode, or there is none."""
    mode = node.args[0] if node.args else None
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) <= set("rwabx+t")


def _is_of_linux(node: ast.Call, source: str) -> bool:
    """Whether what is read is the kernel's, which is ASCII and only there on Linux."""
    text = ast.get_source_segment(source, node) or ""
    return any(
        part in text
        for part in ("/proc/", "folder / ", "kernel.", "level / ", "group / ", "_STATUS", "_VMSTAT", "_OWN_CGROUPS")
    )


def unguarded_posix(source: str) -> list[str]:
    """Return the imports of POSIX modules that a Windows would meet, and `os.open` without `BINARY`."""
    tree = ast.parse(source)
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "sys.platform" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in guarded:
            names = {alias.name for alias in node.names} & {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty"}
            found += [f"line {node.lineno}: import {name}" for name in sorted(names)]
    for node, called in calls(tree):
        if (
            called == "os.open"
            and "BINARY" not in ast.unparse(node)
            and node not in guarded
            and "devnull" not in ast.unparse(node)
        ):
            found.append(f"line {node.lineno}: os.open without BINARY")
    return found


def test_text_has_an_encoding_and_posix_a_guard() -> None:
    found = {}
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        found[module_id(path)] = [*text_files_without_encoding(source), *unguarded_posix(source)]
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text()",
        "path.write_text(text)",
        "open(path)",
        "open(path, 'w')",
        "path.open('w')",
        "os.fdopen(1, 'w')",
    ],
)
def test_text_without_an_encoding_is_found(source: str) -> None:
    assert text_files_without_encoding(source) == [1]


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text('utf-8')",
        "path.write_text(text, encoding='utf-8')",
        "open(path, 'rb')",
        "open(path, encoding='ascii')",
        "path.open('xb')",
        "Image.open(path)",
        "Path('/proc/meminfo').read_text()",
    ],
)
def test_bytes_and_text_with_an_encoding_pass(source: str) -> None:
    assert text_files_without_encoding(source) == []


@pytest.mark.parametrize("source", ["import fcntl", "def f():\n    import resource", "os.open(path, os.O_RDONLY)"])
def test_what_windows_lacks_is_found(source: str) -> None:
    assert len(unguarded_posix(source)) == 1


@pytest.mark.parametrize(
    "source",
    ["import sys\nif sys.platform != 'win32':\n    import fcntl", "os.open(path, os.O_RDONLY | BINARY)"],
)
def test_what_is_guarded_passes(source: str) -> None:
    assert unguarded_posix(source) == []


USUAL_METHOD = {"data/loader.py": {"DataLoader"}, "doctor/probes/machine.py": {"multiprocessing.Lock"}}
"""Where processes are started, or their locks made, by the method that is usual on the system: it works with each
(`tests/unit/data/test_start_methods.py`), or looks at it."""
NO_START = {"get_context", "get_start_method", "get_all_start_methods", "active_children", "Pipe"}


def starts_by_the_usual_method(source: str) -> set[str]:
    """Return what starts processes, or makes what they share, without naming a start method."""
    found = set()
    for node, called in calls(ast.parse(source)):
        module, _, name = called.rpartition(".")
        if name == "get_context" and not node.args:
            found.add(called)
        elif name == "DataLoader":
            if not any(keyword.arg == "multiprocessing_context" for keyword in node.keywords):
                found.add(called)
        elif name == "ProcessPoolExecutor":
            if len(node.args) < 2 and not any(keyword.arg == "mp_context" for keyword in node.keywords):
                found.add(called)
        elif module in ("multiprocessing", "torch.multiprocessing", "mp"):
            found |= {called} if name not in NO_START else set()
    return found


def test_processes_are_started_by_a_method_that_is_named() -> None:
    found = {module_id(path): starts_by_the_usual_method(path.read_text(encoding="utf-8")) for path in MODULES}
    assert {name: starts for name, starts in found.items() if starts} == USUAL_METHOD


@pytest.mark.parametrize(
    "source",
    [
        "multiprocessing.Process(target=f)",
        "multiprocessing.Queue()",
        "ProcessPoolExecutor(4)",
        "DataLoader(data, num_workers=2)",
        "multiprocessing.get_context().Process(target=f)",
    ],
)
def test_a_start_by_the_usual_method_is_found(source: str) -> None:
    assert len(starts_by_the_usual_method(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "multiprocessing.get_context('spawn').Process(target=f)",
        "ProcessPoolExecutor(4, get_context('spawn'))",
        "DataLoader(data, multiprocessing_context='fork')",
        "multiprocessing.active_children()",
    ],
)
def test_a_start_by_a_named_method_passes(source: str) -> None:
    assert starts_by_the_usual_method(source) == set()
