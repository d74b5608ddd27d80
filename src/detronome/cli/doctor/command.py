"""`detronome doctor`: an examination, an explanation, or a look for updates."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter
from rich.console import Console

from detronome.cli.doctor.blocks import print_lines
from detronome.cli.doctor.pasted import read_pasted
from detronome.cli.doctor.views import examination_lines, explanation_lines, known_error_lines, update_lines
from detronome.cli.options import Json
from detronome.cli.render import print_json
from detronome.doctor.findings import LIMIT_S
from detronome.errors import ConfigError
from detronome.report.terminal import is_live

if TYPE_CHECKING:
    from detronome.doctor.symptoms import Symptom

__all__ = ["doctor"]

_Found = TypeVar("_Found")
_EXIT_UNKNOWN = 1


def doctor(
    *,
    explain: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)] = None,
    list_known: Annotated[bool, Parameter(name="--list", negative=(), show_default=False)] = False,
    updates: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    limit_s: float = LIMIT_S,
    json: Json = False,
) -> int:
    """Examine what is installed and this machine: what is wrong, why, and the command that repairs it.

    Every package is called in a process of its own, so a broken one ends nothing. With --explain, find the cause of an
    error instead: of a pasted text, of a file, or of what comes through a pipe. With --updates, ask the package index
    for newer releases; nothing else here speaks to a server.

    Parameters
    ----------
    explain
        The text of an error, or a file that holds it; with nothing after it the text is read from stdin.
    list_known
        With --explain: print every error that is known, with its cause and its fix.
    updates
        What is behind the newest release, what holds it back, what is a matter of security, and the commands.
    limit_s
        Seconds for the examination, 2 to 3600; what has not answered then is named.
    """
    _require_one_task(explain, list_known, updates)
    if list_known:
        return _list(as_json=json)
    if explain is not None:
        return _explain(explain, as_json=json)
    if updates:
        return _show_updates(as_json=json)
    from detronome.doctor.examination import examine_environment

    examination = _with_status(lambda on_stage: examine_environment(on_stage, limit_s=limit_s))
    if json:
        print_json(examination.to_record())
    else:
        print_lines(lambda width, has_unicode: examination_lines(examination, width, has_unicode))
    return examination.exit_code


def _require_one_task(explain: list[str] | None, list_known: bool, updates: bool) -> None:
    if list_known and (explain is None or explain):
        raise ConfigError(
            "--list prints the errors that --explain knows, and explains none",
            where="--list",
            fix="detronome doctor --explain --list",
        )
    if updates and explain is not None:
        raise ConfigError("--updates and --explain are two tasks", where="--updates", fix="detronome doctor --updates")


def _explain(words: list[str], *, as_json: bool) -> int:
    from detronome.doctor.explain import explain_error

    text = read_pasted(words)
    if not text.strip():
        raise ConfigError(
            "there is no text to explain",
            where="--explain",
            fix="paste the error in quotes after --explain, or pipe it: ... 2>&1 | detronome doctor --explain",
        )
    found = explain_error(text)
    if as_json:
        print_json(found.to_record())
    else:
        print_lines(lambda width, has_unicode: explanation_lines(found, width))
    return 0 if found.best is not None else _EXIT_UNKNOWN


def _list(*, as_json: bool) -> int:
    from detronome.doctor.symptoms import SYMPTOMS

    if as_json:
        print_json({"errors": [_known(symptom) for symptom in SYMPTOMS]})
    else:
        print_lines(lambda width, has_unicode: known_error_lines(SYMPTOMS, width))
    return 0


def _known(symptom: Symptom) -> dict[str, object]:
    return {
        "name": symptom.name,
        "pattern": symptom.pattern.pattern,
        "cause": symptom.cause,
        "fix": symptom.fix,
        "is_consequence": symptom.is_consequence,
    }


def _show_updates(*, as_json: bool) -> int:
    from detronome.doctor.updates import find_updates

    found = _with_status(find_updates)
    if as_json:
        print_json(found.to_record())
    else:
        print_lines(lambda width, has_unicode: update_lines(found, width, has_unicode))
    return found.exit_code


def _with_status(work: Callable[[Callable[[str], None]], _Found]) -> _Found:
    """Return what some work finds; its stages are shown on a terminal."""
    progress = Console(stderr=True, highlight=False)
    if not is_live(progress, sys.stderr):
        return work(lambda stage: None)
    with progress.status("looking at what is installed") as status:
        return work(lambda stage: status.update(stage))
