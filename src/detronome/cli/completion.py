"""`detronome completion`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.completion.detect import ShellDetectionError, detect_shell

from detronome.cli.options import Json
from detronome.cli.render import print_json, print_line, print_notice
from detronome.errors import ConfigError, DetronomeError

__all__ = ["completion"]


def completion(
    shell: Literal["bash", "zsh", "fish"] | None = None,
    /,
    *,
    install: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> None:
    """Print the script that lets a shell complete commands, options, models and settings; or install it.

    Parameters
    ----------
    shell
        By default the shell that this command is called from.
    install
        Write the script to the place where the shell looks for it; for bash and zsh a line in ~/.bashrc or ~/.zshrc
        loads it.
    """
    from detronome.cli.commands import app

    shell = shell or _this_shell()
    script = _script(shell)
    if install:
        try:
            file = app.install_completion(shell=shell)
            file.write_text(script, encoding="utf-8")
        except OSError as error:
            raise DetronomeError(
                f"the script cannot be written: {error.strerror or error}",
                where=str(error.filename or Path.home()),
                fix=f"check the rights there, or put it elsewhere: detronome completion {shell} > FILE",
            ) from error
        if json:
            print_json({"shell": shell, "file": str(file)})
            return
        print_line(f"completion for {shell}  {file}")
        needed = ", where ~/.zshrc has, after that line: autoload -Uz compinit && compinit" if shell == "zsh" else ""
        print_notice(f"it is there in every shell that begins from now on{needed}")
        return
    if json:
        print_json({"shell": shell, "script": script})
    elif sys.stdout is not None:  # rich would read emoji into it
        sys.stdout.write(script)


def _script(shell: Literal["bash", "zsh", "fish"]) -> str:
    from detronome.cli.commands import app

    script = app.generate_completion(shell=shell)
    # Where nothing of ours fits, bash is to complete files and folders.
    return script.replace("\ncomplete -F ", "\ncomplete -o default -F ") if shell == "bash" else script


def _this_shell() -> Literal["bash", "zsh", "fish"]:
    try:
        found = detect_shell()
    except ShellDetectionError:
        found = None
    if found is None or found == "powershell":
        raise ConfigError(
            "the shell is not one that can be completed" if found else "it cannot be told which shell this is",
            where="detronome completion",
            fix="name it: detronome completion bash (or zsh, fish)",
        )
    return found
