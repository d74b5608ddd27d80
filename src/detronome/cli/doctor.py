"""`detronome doctor`. It needs none of our packages but those of the command line: others may be missing or broken."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from detronome.cli.options import Json
from detronome.errors import ConfigError, first_few
from detronome.report.terminal import speaks_unicode

if TYPE_CHECKING:
    from detronome.doctor.explain import Explanation, Match
    from detronome.doctor.findings import Examination, Finding

__all__ = ["doctor"]

_EXIT_UNKNOWN = 1
_STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}
_MARKS = {"ok": "✔", "warning": "▲", "failure": "✘"}
_ASCII_MARKS = {"ok": "ok", "warning": "!", "failure": "X"}
_MARK_WIDTH = 2
_WIDEST_CHECK = 24
_LABEL_WIDTH = 7
_NARROWEST = 30
"""Columns of text beside what is indented; on narrower terminals lines are broken by the terminal."""
_WIDEST = 120
_MEASURE = Console()
_LONGEST_TEXT = 64 * 2**20
"""Characters of a log that are read; the last ones."""


def doctor(
    *,
    explain: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)] = None,
    json: Json = False,
) -> int:
    """Examine what is installed and this machine: what is wrong, why, and the command that repairs it.

    Every package is called in a process of its own, so a broken one ends nothing. With --explain, find the cause of an
    error instead: of a pasted text, of a file, or of what comes through a pipe.

    Parameters
    ----------
    explain
        The text of an error, or a file that holds it; with nothing after it the text is read from stdin.
    """
    if explain is not None:
        return _explain(explain, as_json=json)
    from detronome.doctor.examination import examine_environment

    progress = Console(stderr=True, highlight=False)
    if progress.is_terminal:
        with progress.status("looking at what is installed") as status:
            examination = examine_environment(lambda stage: status.update(stage))
    else:
        examination = examine_environment()
    if json:
        _print_json(examination.to_record())
    else:
        console = _console()
        for line in _examination(examination, _width(console), speaks_unicode(sys.stdout)):
            console.print(line, soft_wrap=True)
    return examination.exit_code


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
        console = _console()
        for line in _explanation(found, _width(console), speaks_unicode(sys.stdout)):
            console.print(line, soft_wrap=True)
    return 0 if found.best is not None else _EXIT_UNKNOWN


def _text(words: list[str]) -> str:
    """Return what is to be explained: the words, the file that they name, or the standard input."""
    if not words:
        if sys.stdin.isatty():
            Console(stderr=True).print("paste the text, then press Ctrl-D", style="dim")
        return sys.stdin.buffer.read().decode(errors="replace")[-_LONGEST_TEXT:]
    if len(words) == 1:
        with suppress(OSError, ValueError):  # a long text is no name of a file
            path = Path(words[0])
            if path.is_file():
                return path.read_text(errors="replace")[-_LONGEST_TEXT:]
    return " ".join(words)


def _explanation(found: Explanation, width: int | None, has_unicode: bool) -> Iterator[Text]:
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
    yield from _block(Text(f"  {'cause':<{_LABEL_WIDTH}}", style="dim"), Text(best.cause), width)
    for place, step in enumerate(best.fix):
        yield Text.assemble((f"  {'fix' if place == 0 else '':<{_LABEL_WIDTH}}", "dim"), _command(step))
    yield from _block(Text(f"  {'seen':<{_LABEL_WIDTH}}", style="dim"), Text(_seen(best, found), style="dim"), width)
    if best.is_consequence:
        note = "this follows from something else, which is not in the text: look for an earlier error"
        yield from _block(Text(f"  {'note':<{_LABEL_WIDTH}}", style="dim"), Text(note, style="yellow"), width)
    if found.others:
        others = [f"{match.name} (line {match.line})" for match in found.others]
        yield from _block(Text(f"  {'also':<{_LABEL_WIDTH}}", style="dim"), Text(first_few(others), style="dim"), width)


def _seen(match: Match, found: Explanation) -> str:
    return match.text if found.num_lines == 1 else f"line {match.line} of {found.num_lines:,}: {match.text}"


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
