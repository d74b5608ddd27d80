"""`detronome doctor`, also `--explain` and `--updates`.

It needs none of our packages but those of the command line: others may be missing or broken.
"""

from __future__ import annotations

import json as json_format
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from detronome.cli.options import Json
from detronome.doctor.findings import LIMIT_S
from detronome.errors import ConfigError, first_few
from detronome.report.terminal import is_live, speaks_unicode

if TYPE_CHECKING:
    from detronome.doctor.explain import Explanation, Match
    from detronome.doctor.findings import Examination, Finding
    from detronome.doctor.symptoms import Symptom
    from detronome.doctor.updates import Update, Updates

__all__ = ["doctor"]

_Found = TypeVar("_Found")
_EXIT_UNKNOWN = 1
_CONTROL = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f]")
_STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}
_MARKS = {"ok": "✔", "warning": "▲", "failure": "✘"}
_ASCII_MARKS = {"ok": "+", "warning": "!", "failure": "X"}
_MARK_WIDTH = 2
_WIDEST_CHECK = 24
_LABEL_WIDTH = 7
_NARROWEST = 30
"""Columns of text beside what is indented; on narrower terminals lines are broken by the terminal."""
_WIDEST = 120
_MEASURE = Console()
_LONGEST_TEXT = 16 * 2**20
"""Bytes of a log that are read, the last ones; half a second of the processor for each million."""
_NOT_TEXT, _MOST_NOT_TEXT = "\ufffd", 0.1
"""What bytes become that are no characters, and the share of it from which on it is no text."""
_LONGEST_PATH = 1000
_LOGS = {".log", ".txt", ".out", ".err"}
"""Endings of words that are meant as a file."""


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
        _print_json(examination.to_record())
    else:
        _print(lambda width, has_unicode: _examination(examination, width, has_unicode))
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


def _with_status(work: Callable[[Callable[[str], None]], _Found]) -> _Found:
    """Return what some work finds; its stages are shown on a terminal."""
    progress = Console(stderr=True, highlight=False)
    if not is_live(progress, sys.stderr):
        return work(lambda stage: None)
    with progress.status("looking at what is installed") as status:
        return work(lambda stage: status.update(stage))


def _print(lines: Callable[[int | None, bool], Iterator[Text]]) -> None:
    console = _console()
    for line in lines(_width(console), speaks_unicode(sys.stdout)):
        # An index or a broken package may have written it: nothing of that is for the terminal.
        line.plain = _CONTROL.sub(lambda found: " " * len(found[0]), line.plain)
        console.print(line, soft_wrap=True)


def _examination(examination: Examination, width: int | None, has_unicode: bool) -> Iterator[Text]:
    dot = " · " if has_unicode else ", "
    head = (f"Detronome {examination.version}", f"Python {examination.python}", examination.platform)
    yield Text(dot.join(head), style="bold")
    yield Text(examination.executable, style="dim")
    marks = _MARKS if has_unicode else _ASCII_MARKS
    column = min(_WIDEST_CHECK, max((len(finding.check) for finding in examination.findings), default=0))
    group = ""
    for finding in examination.findings:
        if finding.group != group:
            group = finding.group
            yield Text()
            yield Text(group, style="bold cyan")
        yield from _finding(finding, marks, column, width)
    yield Text()
    yield _verdict(examination)


def _finding(finding: Finding, marks: dict[str, str], column: int, width: int | None) -> Iterator[Text]:
    severity = str(finding.severity)
    style = _STYLES[severity]
    is_ok = severity == "ok"
    prefix = Text.assemble(
        "  ",
        (f"{marks[severity]:<{_MARK_WIDTH}}", style),
        (f"{finding.check:<{column}}", "" if is_ok else "bold"),
        "  ",
    )
    yield from _block(prefix, Text(finding.what, style="" if is_ok else style), width)
    if is_ok and not finding.fix:
        return
    indent = " " * prefix.cell_len
    for label, text in (("cause", finding.cause), ("fix", finding.fix), ("seen", finding.evidence)):
        if text:
            yield from _field(indent, label, text, width)


def _field(indent: str, label: str, text: str, width: int | None) -> Iterator[Text]:
    prefix = Text(f"{indent}{label:<{_LABEL_WIDTH}}", style="dim")
    if label == "fix":
        yield Text.assemble(prefix, _command(text))  # one line, to be copied
    else:
        yield from _block(prefix, Text(text, style="dim" if label == "seen" else ""), width)


def _command(text: str) -> Text:
    """Return a command to type, its comment paler."""
    if text.startswith("#"):
        return Text(text.removeprefix("#").strip())
    command, mark, comment = text.partition("   # ")
    return Text.assemble((command, "green"), (f"{mark}{comment}", "dim"))


def _verdict(examination: Examination) -> Text:
    from detronome.doctor.findings import Severity

    failures, warnings, sound = (
        examination.count(severity) for severity in (Severity.FAILURE, Severity.WARNING, Severity.OK)
    )
    parts = [
        f"{count} {noun if count == 1 else noun + 's'}"
        for count, noun in ((failures, "failure"), (warnings, "warning"))
        if count
    ]
    style = _STYLES[str(examination.worst)]
    verdict = Text(", ".join(parts) or "all is well", style="bold green" if not parts else style)
    rest = f"; {sound} {'check is' if sound == 1 else 'checks are'} sound, {examination.seconds:.1f} s"
    return verdict.append(rest, style="not bold dim")


def _explain(words: list[str], *, as_json: bool) -> int:
    from detronome.doctor.explain import explain_error

    text = _text(words)
    if not text.strip():
        raise ConfigError(
            "there is no text to explain",
            where="--explain",
            fix="paste the error in quotes after --explain, or pipe it: ... 2>&1 | detronome doctor --explain",
        )
    found = explain_error(text)
    if as_json:
        _print_json(found.to_record())
    else:
        _print(lambda width, has_unicode: _explanation(found, width))
    return 0 if found.best is not None else _EXIT_UNKNOWN


def _text(words: list[str]) -> str:
    """Return what is to be explained: the words, the file that they name, or the standard input."""
    if not words:
        if sys.stdin is None:  # closed
            return ""
        if sys.stdin.isatty():
            Console(stderr=True).print("paste the text, then press Ctrl-D", style="dim")
        return _end_of(sys.stdin.buffer)
    if len(words) > 1 and all(_is_file(word) for word in words):  # the logs of several ranks
        return "\n".join(_text([word]) for word in words)
    if not "".join(words).strip():
        return ""
    if len(words) > 1 or len(words[0]) > _LONGEST_PATH or "\n" in words[0]:
        return " ".join(words)
    path = Path(words[0])
    try:
        if path.is_file():
            with path.open("rb") as file:
                return _end_of(file)
        is_wrong = path.is_dir() or path.suffix in _LOGS
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the text cannot be read: {error}", where=words[0], fix="check the file and its permissions"
        ) from error
    if is_wrong:
        raise ConfigError(
            "this is a folder" if path.is_dir() else "there is no such file",
            where=words[0],
            fix="name the file that holds the error, or paste the error in quotes",
        )
    return words[0]


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # a text that is no name
        return False


def _end_of(file: IO[bytes]) -> str:
    """Return the last part of a long text: a log of a week is not held in memory."""
    kept = b""
    while block := file.read(_LONGEST_TEXT):
        kept = (kept + block)[-_LONGEST_TEXT:]
    text = kept.decode(errors="replace")
    if text.count(_NOT_TEXT) > _MOST_NOT_TEXT * len(text):
        raise ConfigError("this is no text", where="--explain", fix="give the log itself, unpacked")
    return text


def _explanation(found: Explanation, width: int | None) -> Iterator[Text]:
    if found.best is None:
        yield Text("nothing in this text is known to the doctor", style="bold yellow")
        if found.last_error:
            yield from _field("  ", "seen", found.last_error, width)
        yield from _field("  ", "next", "detronome doctor --json > environment.json", None)
        yield from _block(
            Text(f"{'':{_LABEL_WIDTH + 2}}"),
            Text("report it with that file, the command, and the text from its first error to its end"),
            width,
        )
        return
    best = found.best
    yield Text(best.name, style="bold red" if not best.is_consequence else "bold yellow")
    yield from _cause_and_fix(best.cause, best.fix, width)
    yield from _block(Text(f"  {'seen':<{_LABEL_WIDTH}}", style="dim"), Text(_seen(best, found), style="dim"), width)
    if best.is_consequence:
        note = "this follows from something else, which is not in the text: look for an earlier error"
        yield from _block(Text(f"  {'note':<{_LABEL_WIDTH}}", style="dim"), Text(note, style="yellow"), width)
    if found.others:
        others = [f"{match.name} (line {match.line})" for match in found.others]
        yield from _block(Text(f"  {'also':<{_LABEL_WIDTH}}", style="dim"), Text(first_few(others), style="dim"), width)


def _list(*, as_json: bool) -> int:
    from detronome.doctor.symptoms import SYMPTOMS

    if as_json:
        _print_json({"errors": [_known(symptom) for symptom in SYMPTOMS]})
    else:
        _print(lambda width, has_unicode: _table(SYMPTOMS, width))
    return 0


def _known(symptom: Symptom) -> dict[str, object]:
    return {
        "name": symptom.name,
        "pattern": symptom.pattern.pattern,
        "cause": symptom.cause,
        "fix": symptom.fix,
        "is_consequence": symptom.is_consequence,
    }


def _table(symptoms: Sequence[Symptom], width: int | None) -> Iterator[Text]:
    for symptom in symptoms:
        yield Text(symptom.name, style="bold yellow" if symptom.is_consequence else "bold red")
        yield from _cause_and_fix(symptom.cause, symptom.fix, width)
        yield Text()
    yield Text(f"{len(symptoms)} errors are known; what stands in {{}} is read from the text", style="dim")


def _cause_and_fix(cause: str, fix: Sequence[str], width: int | None) -> Iterator[Text]:
    yield from _block(Text(f"  {'cause':<{_LABEL_WIDTH}}", style="dim"), Text(cause), width)
    for place, step in enumerate(fix):
        yield Text.assemble((f"  {'fix' if place == 0 else '':<{_LABEL_WIDTH}}", "dim"), _command(step))


def _seen(match: Match, found: Explanation) -> str:
    return match.text if found.num_lines == 1 else f"line {match.line} of {found.num_lines:,}: {match.text}"


def _show_updates(*, as_json: bool) -> int:
    from detronome.doctor.updates import find_updates

    found = _with_status(find_updates)
    if as_json:
        _print_json(found.to_record())
    else:
        _print(lambda width, has_unicode: _updates(found, width, has_unicode))
    return found.exit_code


def _updates(found: Updates, width: int | None, has_unicode: bool) -> Iterator[Text]:
    marks = _MARKS if has_unicode else _ASCII_MARKS
    yield Text(found.executable, style="dim")
    if found.num_asked:
        asked = f"{found.num_asked} packages that Detronome asks for, at {', '.join(found.indexes)}"
        yield Text(f"{asked}; security holes as {found.holes_from} knows them", style="dim")
    column = max((len(one.package) for one in found.updates), default=0)
    if found.updates:
        yield Text()
    for update in found.updates:
        yield from _update(update, marks, column, width, "→" if has_unicode else "->")
    for finding in found.findings:
        yield Text()
        yield from _finding(finding, marks, len(finding.check), width)
    if found.fixes:
        yield Text()
    for place, fix in enumerate(found.fixes):
        yield Text.assemble((f"{'all' if place == 0 else '':<{_LABEL_WIDTH}}", "dim"), _command(fix))
    if not found.updates and not found.findings:
        yield Text("all are the newest", style="bold green")


def _update(update: Update, marks: dict[str, str], column: int, width: int | None, arrow: str) -> Iterator[Text]:
    severity = str(update.severity)
    is_behind = update.newest != update.installed
    rise = f"{update.installed} {arrow} {update.allowed}" if update.allowed else update.installed
    if is_behind and update.newest != update.allowed:
        rise += f"; {update.newest} is out"
    prefix = Text.assemble(
        "  ",
        (f"{marks[severity] if update.severity != 'ok' else ' ':<{_MARK_WIDTH}}", _STYLES[severity]),
        (f"{update.package:<{column}}  ", "bold"),
    )
    yield from _block(prefix, Text(rise), width)
    indent = " " * prefix.cell_len
    for hole in update.holes:
        yield from _field(indent, "hole", hole, width)
    for holder in update.held_by:
        yield from _field(indent, "held", holder, width)
    if update.fix and update.holes:
        yield from _field(indent, "fix", update.fix, width)


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)


def _width(console: Console) -> int | None:
    """Return the columns of a terminal; None for a pipe, where each field is one line."""
    return min(console.width, _WIDEST) if console.is_terminal else None


def _block(prefix: Text, body: Text, width: int | None) -> Iterator[Text]:
    """Yield prefix and body as one line, or as lines of the width with the body's beginnings under each other."""
    room = (width or 0) - prefix.cell_len
    if width is None or room < _NARROWEST:
        yield Text.assemble(prefix, body)
        return
    for place, line in enumerate(body.wrap(_MEASURE, room)):
        line.rstrip()
        yield Text.assemble(prefix if place == 0 else " " * prefix.cell_len, line)


def _print_json(record: object) -> None:
    json_format.dump(record, sys.stdout, indent=1)
    sys.stdout.write("\n")
