"""What a shell offers after Tab: commands, options, choices, presets, settings, files; and where the script is put."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detronome.cli import main

Capture = pytest.CaptureFixture[str]

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def run(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["completion", *arguments])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash, and a `detronome` beside it that is this one."""
    folder = tmp_path_factory.mktemp("completion")
    program = folder / "detronome"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m detronome "$@"\n')
    program.chmod(0o755)
    done = subprocess.run([str(program), "completion", "bash"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    (folder / "script.bash").write_text(done.stdout)
    return folder / "script.bash"


def offered(script: Path, *lines: str) -> list[list[str]]:
    """Return what bash offers for the last word of each line, as pressing Tab there does."""
    asked = []
    for line in lines:
        words = line.split(" ")
        array = " ".join(f"'{word}'" for word in words)
        asked.append(
            f"COMPREPLY=(); COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
            f'COMP_POINT={len(line)}; _detronome; echo "${{COMPREPLY[*]}}"'
        )
    source = f'PATH="{script.parent}:$PATH"; source "{script}"\n' + "\n".join(asked)
    done = subprocess.run(["bash", "--norc", "-c", source], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line.split() for line in done.stdout.splitlines()]


@needs_bash
def test_bash_offers_commands_options_choices_presets_and_settings(script: Path) -> None:
    commands, data, options, choices, presets, settings, of_nano = offered(
        script,
        "detronome pr",
        "detronome data c",
        "detronome train x --ep",
        "detronome export x --to o",
        "detronome train x --model rtdetr",
        "detronome train x --set optim.lr",
        "detronome train x --model nano --set model.depth",
    )
    assert sorted(commands) == ["predict", "profile"]
    assert sorted(data) == ["cache", "check", "convert"]
    assert options == ["--epochs"]
    assert sorted(choices) == ["onnx", "openvino"]
    assert presets == [f"rtdetr-v2-{size}" for size in "smlx"]
    assert settings == ["optim.lr="]
    assert of_nano == ["model.depths="]  # classic DETR has none


@needs_bash
def test_bash_completes_files_where_nothing_else_fits(script: Path) -> None:
    source = f'source "{script}"; complete -p detronome'
    done = subprocess.run(["bash", "--norc", "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "complete -o default -F _detronome detronome\n"
    assert offered(script, "detronome train nothing-lik") == [[]]


@pytest.mark.parametrize(("shell", "begins"), [("bash", "# Bash"), ("zsh", "#compdef detronome"), ("fish", "# Fish")])
def test_there_is_a_script_for_each_shell(shell: str, begins: str, capsys: Capture) -> None:
    code, out, err = run(capsys, shell)
    assert (code, err) == (0, "") and out.startswith(begins) and "benchmark" in out and "--if-exists" in out
    record = json.loads(run(capsys, shell, "--json")[1])
    assert record == {"shell": shell, "script": out}


def test_it_is_installed_once_where_bash_looks(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'")
    code, out, _ = run(capsys, "bash", "--install", "--json")
    file = Path(json.loads(out)["file"])
    assert code == 0 and file.is_relative_to(tmp_path) and file.read_text() == run(capsys, "bash")[1]
    once = (tmp_path / ".bashrc").read_text()
    assert once.startswith("alias ll='ls -l'\n") and str(file) in once
    assert run(capsys, "bash", "--install")[0] == 0
    assert (tmp_path / ".bashrc").read_text() == once


def test_a_home_that_cannot_be_written_is_told(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for shell in ("bash", "zsh", "fish"):
        code, out, err = run(capsys, shell, "--install")
        assert (code, out) == (1, "") and "the script cannot be written" in err
        assert f"detronome completion {shell} > FILE" in err


def test_zsh_is_told_what_it_needs_beside(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ZSH", "ZSH_CUSTOM"):
        monkeypatch.delenv(name, raising=False)
    assert "compinit" in run(capsys, "zsh", "--install")[2]
    assert "compinit" not in run(capsys, "bash", "--install")[2]


def test_a_shell_that_is_not_known_is_a_mistake(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detronome.cli.completion.detect_shell", lambda: "powershell")
    code, out, err = run(capsys)
    assert (code, out) == (2, "") and "detronome completion bash" in err
