"""What a command ends with: exit codes, interruptions, readers that have enough, terminals that know little."""

import errno
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detronome.cli import main

Capture = pytest.CaptureFixture[str]

COMMAND = [sys.executable, "-m", "detronome"]
EXPLAIN = ["doctor", "--explain", "DataLoader worker (pid 7) is killed by signal: Bus error."]
"""Takes no torch, and prints colours and more than ASCII where it may."""


def code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


def environment(**given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "TERM": "xterm-256color", **given}


def in_terminal(arguments: list[str], **given: str) -> tuple[int, str]:
    """Run a command in a terminal of its own; return its exit code and all that it drew."""
    process_id, terminal = pty.fork()
    if process_id == 0:
        os.execve(sys.executable, [*COMMAND, *arguments], environment(**given))
    drawn = b""
    try:
        while select.select([terminal], [], [], 60)[0]:
            drawn += os.read(terminal, 65536)
    except OSError:  # as Linux says that the other side is closed
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]), drawn.decode()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["trian"], 2),
        (["train", "x", "--epohcs", "3"], 2),
        (["train", "x", "--epochs", "many"], 2),
        (["train"], 2),
        (["train", "x", "--set", "optim.lr"], 2),
        (["eval", "a", "b", "--iou-type", "segm"], 2),
        (["data", "shard", "data", "--verify", "x"], 2),
        (["report", "nowhere"], 1),
        (["data", "check", "nowhere"], 1),
        (["eval", "nowhere", "nowhere"], 1),
        (["eval", "--detections", "x.json", "--annotations", "y.json"], 1),
        (["doctor", "--explain", "nothing that is known"], 1),
        (EXPLAIN, 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_cannot_be_asked_for_ends_with_2_and_what_fails_with_1(
    arguments: list[str], code: int, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(*arguments) == code


def test_a_rank_that_is_not_the_main_one_says_nothing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert code_of("trian", "--json") == 2
    assert capsys.readouterr() == ("", "")


def test_what_stands_behind_two_dashes_is_no_option(capsys: Capture) -> None:
    assert code_of("report", "--", "--json") == 1
    assert capsys.readouterr().out == ""


def test_an_interruption_is_a_short_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("detronome.doctor.explain.explain_error", interrupted)
    assert code_of(*EXPLAIN, "--json") == 130
    out, err = capsys.readouterr()
    assert err == "interrupted\n" and json.loads(out)["error"]["exit_code"] == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_process_in_order_and_without_a_traceback(number: signal.Signals, code: int) -> None:
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    try:
        process = subprocess.Popen(
            [*COMMAND, "doctor", "--explain"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(PYTHONVERBOSE="", PYTHONUNBUFFERED="1"),
        )
    finally:
        signal.signal(signal.SIGINT, heeded)
    assert process.stdin is not None
    waiting = Path(f"/proc/{process.pid}/wchan")
    deadline = time.monotonic() + 60
    while "pipe" not in waiting.read_text() and time.monotonic() < deadline:  # until it reads what is piped
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", "interrupted\n")


@pytest.mark.parametrize("arguments", [["completion", "bash"], EXPLAIN], ids=["plain", "rich"])
def test_a_reader_that_has_enough_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, env=environment(), check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code"), [("--version", 0), ("completion bash", 0), ("report nowhere --json", 1), ("nosuch", 2)]
)
def test_a_process_without_stdout_ends_with_its_code(arguments: str, code: int) -> None:
    line = f"exec {shlex.join(COMMAND)} {arguments} >&-"
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert ("error:" in done.stderr) == (code != 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_an_output_that_has_no_room_is_told(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detronome.doctor.explain.explain_error", full)
        patch.setattr("detronome.cli.dispatch._silence_stdout", lambda: None)
        assert code_of(*EXPLAIN) == 1
    assert "the disk is full" in capfd.readouterr().err


def test_a_package_that_is_missing_is_told() -> None:
    code = "import sys; sys.modules['torch'] = None; from detronome.cli import main; main(['plan', 'x', '--json'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    (problem,) = json.loads(done.stdout)["error"]["problems"]
    assert done.returncode == 1 and "'torch'" in problem["what"] and "detronome doctor" in problem["fix"]
    assert "Traceback" not in done.stderr


def test_a_failure_is_one_although_nobody_reads(tmp_path: Path) -> None:
    """What was printed before it cannot be written any more; that must not hide it."""
    (tmp_path / "failing.py").write_text(
        "import sys\nfrom detronome.cli import commands, dispatch\nfrom detronome.errors import DataError\n"
        "def fail():\n    print('a line')\n    raise DataError('it broke')\n"
        "commands.app.command(fail, name='fail')\ndispatch.run(['fail'])\n",
        encoding="utf-8",
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(tmp_path / "failing.py")]
    buffered = environment(PYTHONUNBUFFERED="")
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered, check=False)
    os.close(writer)
    assert done.returncode == 1 and done.stderr.startswith("error: it broke")


@pytest.mark.parametrize(
    "given",
    [{"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["PYTHONIOENCODING", "LANG"],
)
def test_a_stream_that_knows_ascii_alone(given: dict[str, str]) -> None:
    for arguments in (EXPLAIN, ["report", "größe/数据"], ["--help"]):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, env=environment(**given), check=False)
        assert done.returncode in (0, 1) and b"Traceback" not in done.stderr
        assert (done.stdout + done.stderr).isascii()


def test_a_terminal_gets_colours_unless_it_asks_for_none() -> None:
    code, drawn = in_terminal(EXPLAIN)
    assert code == 0 and re.search(r"\x1b\[[0-9;]*3[0-7]", drawn)
    code, drawn = in_terminal(EXPLAIN, NO_COLOR="1")
    assert code == 0 and not re.search(r"\x1b\[(?:[0-9;]*;)?(?:3|4|9|10)[0-9]", drawn)
    code, drawn = in_terminal(EXPLAIN, TERM="dumb")
    assert code == 0 and "\x1b" not in drawn and "cause" in drawn
