"""What happens in a child stays there: crashes, hangs, exits and noise become answers."""

import os
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import pytest

from detronome.doctor.child import Answer, Batch, run_batch
from detronome.doctor.explain import explain_error

PROBES = """
import os, signal, subprocess, sys, tempfile, time
def fine(): return {"a": [1, 2.5, None, "b"]}
def noisy():
    print("noise"); os.write(1, b"more noise\\n"); sys.stderr.write("and more\\n"); return {"b": 1}
def wrong(): raise ValueError("this is wrong")
def dead(): os.kill(os.getpid(), signal.SIGSEGV)
def gone(): os._exit(3)
def left(): sys.exit(5)
def slow():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(60)
def folder():
    with tempfile.TemporaryDirectory(prefix="made-", dir=os.getcwd()):
        time.sleep(60)
def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
def full():
    from detronome.doctor.probes import torch_calls
    torch_calls._send_tensor = lambda *_: os.kill(os.getpid(), signal.SIGBUS)
    return torch_calls.worker_tensor()
def strange(): return {"c": object()}
def where(): return {"folder": os.getcwd(), "path": sys.path[0], "other": os.environ.get("OTHER")}
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put probes of our own where the child finds them."""
    import detronome.doctor.child as child

    (tmp_path / "made_probes.py").write_text(PROBES)
    launch = child._LAUNCH.replace(
        "import sys;",
        f"import sys; sys.path.append({str(tmp_path)!r}); import made_probes;"
        "sys.modules['detronome.doctor.probes.made'] = made_probes;",
        1,
    )
    monkeypatch.setattr(child, "_LAUNCH", launch)


def run(*names: str, limit_s: float = 60, is_first_needed: bool = False) -> list[Answer]:
    probes = [f"made.{name}" for name in names]
    return list(run_batch(Batch(probes=probes, is_first_needed=is_first_needed), limit_s=limit_s).values())


@pytest.mark.usefixtures("made")
def test_no_probe_gives_no_answer() -> None:
    assert run() == []


@pytest.mark.usefixtures("made")
def test_answers_come_in_order_and_noise_does_not_disturb_them() -> None:
    answers = run("noisy", "fine")
    assert [(answer.probe, answer.end, answer.facts) for answer in answers] == [
        ("made.noisy", "answered", {"b": 1}),
        ("made.fine", "answered", {"a": [1, 2.5, None, "b"]}),
    ]
    assert all(answer.seconds >= 0 for answer in answers)


@pytest.mark.usefixtures("made")
def test_after_each_kind_of_end_the_next_probe_is_run() -> None:
    answers = run("wrong", "dead", "fine", "gone", "left", "noisy")
    assert [answer.end for answer in answers] == ["raised", "died", "answered", "died", "raised", "answered"]
    wrong, dead, _, gone, left, _ = answers
    assert wrong.last_line == "ValueError: this is wrong"
    assert "ended by SIGSEGV" in dead.last_line and "made_probes.py" in dead.error  # faulthandler names the line
    assert gone.last_line == "the process ended with exit code 3"
    assert left.last_line == "SystemExit: 5"


@pytest.mark.usefixtures("made")
def test_what_hangs_is_ended_with_all_that_it_started() -> None:
    begin = time.monotonic()
    first, slow, after = run("fine", "slow", "noisy", limit_s=3)
    assert time.monotonic() - begin < 30
    assert (first.end, slow.end, after.end) == ("answered", "timed out", "not run")
    while (running := _sleepers()) and time.monotonic() - begin < 30:
        time.sleep(0.05)  # what is killed ends when the system comes to it
    assert running == []


def _sleepers() -> list[str]:
    commands = [_command(folder) for folder in Path("/proc").glob("[0-9]*")]
    return [command for command in commands if "import time; time.sleep(60)" in command]


def _command(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.usefixtures("made")
def test_a_child_whose_parent_is_gone_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import detronome.doctor.child as child

    monkeypatch.setattr(child, "_LAUNCH", child._LAUNCH.replace("float(sys.argv[3])", "-4.0"))
    begin = time.monotonic()
    slow, after = run("slow", "fine", limit_s=30)
    assert time.monotonic() - begin < 20
    assert (slow.end, after.end) == ("died", "answered") and "Timeout" in slow.error


@pytest.mark.usefixtures("made")
def test_it_can_be_stopped() -> None:
    stop = threading.Event()
    threading.Timer(1.5, stop.set).start()
    begin = time.monotonic()
    answers = run_batch(Batch(probes=["made.slow", "made.fine"]), limit_s=60, stop=stop)
    assert time.monotonic() - begin < 20
    assert [answer.end for answer in answers.values()] == ["timed out", "not run"]


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("is_stopped", [True, False])
def test_what_is_ended_leaves_no_files(is_stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is stopped by Ctrl-C, and where its time is over."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    stop, seen = threading.Event(), list[str]()

    def watch() -> None:
        for _ in range(2000):
            if seen or stop.wait(0.01):
                break
            seen.extend(entry.name for entry in folder.iterdir())
        if is_stopped:
            stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    answers = run_batch(Batch(probes=["made.folder", "made.fine"]), limit_s=60 if is_stopped else 4, stop=stop)
    stop.set()
    watcher.join()
    assert [answer.end for answer in answers.values()] == ["timed out", "not run"]
    assert len(seen) == 1 and list(folder.iterdir()) == []


@pytest.mark.usefixtures("made")
def test_what_does_not_listen_is_ended_too() -> None:
    begin = time.monotonic()
    (deaf,) = run("deaf", limit_s=2)
    assert deaf.end == "timed out" and time.monotonic() - begin < 10


@pytest.mark.usefixtures("made")
def test_a_worker_that_dies_is_told_and_the_next_probe_is_run() -> None:
    """As where /dev/shm is full."""
    full, fine = run("full", "fine", limit_s=60)
    assert full.end == "raised" and full.last_line == "RuntimeError: the worker was ended by SIGBUS"
    assert full.seconds < 30 and fine.end == "answered"
    best = explain_error(full.error).best
    assert best is not None and best.name == "shared memory too small"


@pytest.mark.usefixtures("made")
def test_where_the_first_is_needed_the_others_wait_for_it() -> None:
    assert [answer.end for answer in run("wrong", "fine", is_first_needed=True)] == ["raised", "not run"]
    assert [answer.end for answer in run("dead", "fine", is_first_needed=True)] == ["died", "not run"]
    assert [answer.end for answer in run("fine", "wrong", is_first_needed=True)] == ["answered", "raised"]


@pytest.mark.usefixtures("made")
def test_the_child_works_in_our_folder_and_does_not_search_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (answer,) = run_batch(Batch(probes=["made.where"], environment={"OTHER": "yes"}), limit_s=30).values()
    assert answer.facts["folder"] == os.path.realpath(tmp_path)
    assert answer.facts["path"] not in ("", str(tmp_path))
    assert answer.facts["other"] == "yes"


def test_a_probe_that_does_not_exist_is_an_answer_too() -> None:
    (answer,) = run_batch(Batch(probes=["installed.nothing"]), limit_s=30).values()
    assert answer.end == "raised" and "AttributeError" in answer.last_line


def test_every_probe_of_the_examination_exists() -> None:
    from detronome.doctor.examination import _BATCHES

    for batch in _BATCHES:
        for probe in batch.probes:
            module, _, function = probe.rpartition(".")
            found = import_module(f"detronome.doctor.probes.{module}")
            assert function in found.__all__ and callable(getattr(found, function))


def test_probes_import_nothing_that_could_be_broken() -> None:
    script = (
        "import sys, pkgutil, importlib, detronome.doctor.probes as p\n"
        "for m in pkgutil.iter_modules(p.__path__): importlib.import_module(p.__name__ + '.' + m.name)\n"
        "import detronome.doctor.examination, detronome.doctor.explain\n"
        "print(sorted({n.split('.')[0] for n in sys.modules} - sys.stdlib_module_names"
        " - {'detronome', '__main__', '__mp_main__'}))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            "import sys; sys.path.append(sys.argv[1]); exec(sys.argv[2])",
            str(Path(__file__).resolve().parents[3] / "src"),
            script,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
