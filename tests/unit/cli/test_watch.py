"""`detronome watch` from a shell's point of view."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest

from detronome.cli import main

Capture = pytest.CaptureFixture[str]


def write(run: Path, *records: dict[str, object], ago_s: float = 1.0) -> None:
    run.mkdir(parents=True, exist_ok=True)
    at = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat()
    with (run / "log.jsonl").open("a") as file:
        file.writelines(json.dumps({"time": at, "epoch": 1.0, **record}) + "\n" for record in records)


START: dict[str, object] = {"kind": "start", "step": 0, "preset": "nano", "total_steps": 10, "total_epochs": 2}
STEP: dict[str, object] = {"kind": "step", "step": 5, "loss": 2.0, "images_per_s": 20.0, "step_s": 0.2}


def watch(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["watch", *map(str, arguments)])
    captured = capsys.readouterr()
    return (end.value.code if isinstance(end.value.code, int) else 0), captured.out, captured.err


def test_where_there_is_no_run_once_says_so(capsys: Capture, tmp_path: Path) -> None:
    code, out, error = watch(capsys, tmp_path / "nothing", "--once")
    assert code == 1 and out == "" and "there is no such folder" in error
    code, _, error = watch(capsys, tmp_path, "--once")
    assert code == 1 and "is no run, and holds none" in error
    (tmp_path / "file").touch()
    code, _, error = watch(capsys, tmp_path / "file")
    assert code == 2 and "this is a file" in error


@pytest.mark.parametrize(
    ("reason", "ago_s", "code"),
    [("", 1.0, 0), ("finished", 1.0, 0), ("early_stop", 9e5, 0), ("interrupted", 1.0, 4), ("", 9e5, 3)],
)
def test_the_exit_code_tells_the_state(reason: str, ago_s: float, code: int, capsys: Capture, tmp_path: Path) -> None:
    end = [{"kind": "end", "step": 5, "reason": reason}] if reason else []
    write(tmp_path / "run", START, STEP, *end, ago_s=ago_s)
    assert watch(capsys, tmp_path, "--once")[0] == code
    found, out, _ = watch(capsys, tmp_path / "run", "--once", "--json")
    assert found == code and json.loads(out)["step"] == 5


def test_a_run_is_followed_to_its_end(capsys: Capture, tmp_path: Path) -> None:
    write(tmp_path / "run", START, STEP, {"kind": "end", "step": 10, "reason": "finished"})
    code, out, _ = watch(capsys, tmp_path / "run")
    assert code == 0 and "finished" in out and "\x1b" not in out
    code, out, _ = watch(capsys, tmp_path / "run", "--json")
    assert code == 0 and json.loads(out)["status"] == "finished"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_page_is_served_until_a_signal_comes(number: int, code: int, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    write(tmp_path / "run", START, STEP)
    before = (tmp_path / "run" / "log.jsonl").stat().st_mtime_ns
    command = [sys.executable, "-m", "detronome", "watch", str(tmp_path / "run"), "--serve", "--port", "0", "--json"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **piped, text=True, env=environment) as server:
        assert server.stdout is not None and server.stderr is not None
        try:
            url = re.search(r"http://127\.0\.0\.1:\d+", server.stderr.readline())
            assert url is not None
            with urlopen(f"{url[0]}/state.json", timeout=60) as answer:
                assert json.load(answer)["status"] == "running"
            server.send_signal(number)
            server.wait(60)
        finally:
            server.kill()
        assert "Traceback" not in server.stderr.read()
        assert json.loads(server.stdout.read()) == {"url": url[0], "run": str(tmp_path / "run")}
    assert server.returncode == code
    assert (tmp_path / "run" / "log.jsonl").stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_ctrl_c_ends_a_followed_run_quietly(tmp_path: Path) -> None:
    write(tmp_path / "run", START, STEP)
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    command = [sys.executable, "-m", "detronome", "watch", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None and following.stderr is not None
        try:
            assert following.stdout.readline()
            time.sleep(0.2)
            following.send_signal(signal.SIGINT)
            following.wait(60)
        finally:
            following.kill()
            signal.signal(signal.SIGINT, heeded)
        assert following.returncode == 0 and following.stderr.read() == ""
