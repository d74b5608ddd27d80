"""What every command promises: a page of help with examples, --json, exit codes, plain text where no person reads."""

import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from rich.console import Console

from detronome.cli import main
from detronome.cli.commands import app

Capture = pytest.CaptureFixture[str]

DOCS = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
HEAVY = ("torch", "torchvision", "numpy", "scipy", "PIL", "simplejpeg", "matplotlib", "httpx2", "jinja2", "yaml")
HEAVY += ("msgspec", "psutil", "pynvml", "safetensors", "hotcoco", "transformers", "markdown_it", "pygments.lexers")


def commands_of(parent: App, *names: str) -> Iterator[tuple[str, App]]:
    """Yield each command that does something, with its words."""
    for name in parent:
        if not name.startswith("-"):
            command = parent[name]
            if command.default_command is not None:
                yield " ".join((*names, name)), command
            else:
                yield from commands_of(command, *names, name)


COMMANDS = dict(commands_of(app))
MISTAKES = {
    "demo": ["--set", "optim.lr"],
    "models": ["--nonsense"],
    "data download": ["coco2018", "folder"],
    "data check": ["nowhere"],
    "data stats": ["nowhere"],
    "data convert": ["nowhere", "out", "--to", "yolo"],
    "data shard": ["nowhere", "out"],
    "data index": ["nowhere"],
    "data cache": ["--older-than", "3"],
    "plan": ["nowhere"],
    "train": ["nowhere"],
    "watch": ["nowhere", "--once"],
    "profile": ["nowhere"],
    "tune": ["nowhere"],
    "search": ["nowhere", "--space", "optim.lr=1e-4..1e-2", "--epochs", "1", "--out", "out"],
    "eval": ["nowhere", "nowhere"],
    "predict": ["nowhere", "nowhere.jpg"],
    "report": ["nowhere"],
    "trim": ["nowhere", "--queries", "10"],
    "export": ["nowhere"],
    "benchmark": ["nowhere", "nowhere"],
    "serve": ["nowhere"],
    "doctor": ["--explain", ""],
    "completion": ["tcsh"],
}
"""For each command something that it must refuse; a new command belongs here too."""


def end_of(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def page(command: str, width: int) -> list[str]:
    text = io.StringIO()
    app.help_print(command.split(), console=Console(file=text, width=width))
    return text.getvalue().splitlines()


def examples(command: App) -> list[str]:
    lines = (command.help_epilogue or "").partition("\n\n")[0].splitlines()
    assert lines[:1] == ["Examples:"]
    return [line.strip() for line in lines[1:] if not line.startswith("  #")]


def test_no_command_is_missing_here() -> None:
    assert set(MISTAKES) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_takes_json(command: str) -> None:
    names = {name for argument in COMMANDS[command].assemble_argument_collection() for name in argument.names}
    assert "--json" in names


@pytest.mark.parametrize("command", COMMANDS)
def test_its_examples_can_be_typed(command: str) -> None:
    shown = examples(COMMANDS[command])
    assert 2 <= len(shown) <= 4
    for line in shown:
        assert len(line) <= 110, line
        words = shlex.split(re.split(r" [|<>] ", line)[0])
        if words[0] == "detronome":
            app.parse_args(words[1:], print_error=False, exit_on_error=False)
    assert any(line.startswith(f"detronome {command}") for line in shown)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["", "data", *COMMANDS])
def test_its_page_fits_and_needs_no_more_than_ascii(command: str, width: int) -> None:
    lines = page(command, width)
    start = lines.index("Examples:")
    ends = [number for number, line in enumerate(lines) if not line and number > start]
    copied = range(start, ends[0] if ends else len(lines))  # examples are whole, whatever the width
    too_long = [line for n, line in enumerate(lines) if len(line) > min(width, 110) and n not in copied]
    assert too_long == []
    assert "\n".join(lines).isascii()
    assert lines[0].startswith("Usage: detronome") and lines == page(command, width)  # and again the same


def test_the_list_of_commands_is_in_groups_with_a_line_for_each() -> None:
    lines = page("", 80)
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups[:6] == ["Begin:", "Data:", "Train:", "Evaluate:", "Deploy:", "Environment:"]
    for command in {command.split()[0] for command in COMMANDS}:
        (line,) = [line for line in lines if re.match(rf"  {command}  +\S", line)]
        assert len(line) <= 80


def test_the_documentation_names_every_command() -> None:
    text = DOCS.read_text()
    assert [command for command in COMMANDS if f"`{command}`" not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_is_one_json_document_on_stdout_and_words_on_stderr(
    command: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = end_of([*command.split(), *MISTAKES[command], "--json"])
    out, err = capsys.readouterr()
    error: dict[str, Any] = json.loads(out)["error"]
    assert error["exit_code"] == code == (2 if error["kind"] == "ConfigError" else 1)
    assert error["kind"].endswith("Error")
    for problem in error["problems"]:
        assert set(problem) == {"what", "where", "fix"} and problem["what"] in err
    assert "Traceback" not in err and "\x1b" not in err and "\r" not in err


@pytest.mark.parametrize("command", COMMANDS)
def test_colour_that_is_forced_into_a_pipe_brings_no_cursor_movements(
    command: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    end_of([*command.split(), *MISTAKES[command]])
    out, err = capsys.readouterr()
    assert out == "" and "\x1b[" in err and "\r" not in err
    assert "\x1b" not in re.sub(r"\x1b\[[0-9;]*m", "", err)


def test_help_version_and_completion_import_nothing_that_takes_time() -> None:
    script = f"""
import sys
from detronome.cli import main
for arguments in (["--version"], ["--help"], *([*c.split(), "--help"] for c in {list(COMMANDS)!r}),
                  ["completion", "bash"], ["__complete", "train", "--model", ""], ["__complete", "train", "--set", ""]):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
print(sorted(set({HEAVY!r}) & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert "rtdetr-v2-s" in done.stdout and "optim.lr=" in done.stdout
