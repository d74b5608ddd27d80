"""`detronome train` from a shell's point of view: signals, exit codes, and the line that goes on with a run."""

import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from detronome.cli import dispatch, main
from detronome.engine.events import Event, StepLogged
from detronome.report.console import ConsoleProgress
from detronome.runtime.signals import Interrupted

Capture = pytest.CaptureFixture[str]
Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    code = end.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


def signalled(patch: pytest.MonkeyPatch, number: int) -> None:
    """Send a signal when the first step is shown."""
    shown = ConsoleProgress.__call__

    def interrupt(self: ConsoleProgress, event: Event) -> None:
        shown(self, event)
        if isinstance(event, StepLogged) and event.step == 1:
            os.kill(os.getpid(), number)

    patch.setattr(ConsoleProgress, "__call__", interrupt)


def train(blocks: Path, settings: Settings, out: str, *more: object) -> list[object]:
    texts = [f"{key}={value}" for key, value in settings.items()]
    return ["train", blocks, "--model", "nano", "--epochs", 1, "--out", out, *more, "--set", *texts]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_ends_with_its_code_and_a_line_to_paste(
    name: str, code: int, capsys: Capture, blocks: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "SIGUSR1" and sys.platform != "linux":
        code = 128 + signal.SIGUSR1
    folder = "my 'run' :x: $HOME"
    with monkeypatch.context() as patch:
        signalled(patch, signal.Signals[name])
        ended, out, err = run(capsys, *train(blocks, tiny_settings, folder, "--json"))
    assert ended == code and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("resume with: ")]
    command = line.removeprefix("resume with: ")
    record = json.loads(out)
    assert (record["reason"], record["signal"], record["resume_with"]) == ("interrupted", name, command)
    program, *arguments = shlex.split(command)
    assert program == "detronome" and arguments == ["train", "--resume", folder]
    if name == "SIGTERM":
        ended, out, _ = run(capsys, *arguments, "--json")
        assert ended == 0 and json.loads(out)["signal"] is None and json.loads(out)["resume_with"] is None


def test_the_same_line_starts_goes_on_and_ends(
    capsys: Capture, blocks: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = train(blocks, tiny_settings, "run", "--if-exists", "resume")
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGUSR1)
        assert run(capsys, *line)[0] == 138
    code, out, err = run(capsys, *line)
    assert code == 0 and "resumed at step" in err and "had ended already" not in err
    code, again, err = run(capsys, *line)
    assert (code, again) == (0, out) and "run had ended already: nothing was trained" in err
    code, out, err = run(capsys, *line, "optim.lr=1", "train.seed=3")
    assert (code, out) == (2, "") and err.count("error:") == 2 and "detronome train --resume run " in err


def test_settings_can_change_on_resume(capsys: Capture, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    code, out, err = run(capsys, "train", "--resume", "run", "--set", "optim.lr=1", "loss.aux_loss=false")
    assert (code, out) == (2, "") and err.count("error:") == 2
    code, _, err = run(capsys, "train", "--resume", "run", "--set", "data.prefetch=3")
    assert code == 0 and "3 (was 2 until now)" in err
    code, _, err = run(capsys, "train", "--resume", "run", "--if-exists", "resume")
    assert code == 2 and "--if-exists cannot be given with --resume" in err


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (Interrupted("SIGINT"), 130), (Interrupted("SIGTERM"), 143)]
)
def test_an_interruption_at_any_other_moment_is_one_line(
    error: BaseException, code: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("detronome.api.training.train", interrupted)
    assert run(capsys, "train", "data") == (code, "", "interrupted\n")


def test_an_interruption_while_the_command_line_itself_is_imported_is_one_line(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dispatch, "run", interrupted)
    assert run(capsys, "--help") == (130, "", "interrupted\n")


def test_help_says_how_a_run_ends(capsys: Capture) -> None:
    _, out, _ = run(capsys, "train", "--help")
    shown = " ".join(out.split())
    for text in ("SIGTERM", "SIGUSR1", "130, 143 or 138", "--if-exists"):
        assert text in shown
