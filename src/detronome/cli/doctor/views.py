"""What the doctor shows: an examination, an explanation, the errors that are known, the updates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from detronome.cli.doctor.blocks import LABEL_WIDTH, block, command, field
from detronome.errors import first_few

if TYPE_CHECKING:
    from detronome.doctor.explain import Explanation, Match
    from detronome.doctor.findings import Examination, Finding
    from detronome.doctor.symptoms import Symptom
    from detronome.doctor.updates import Update, Updates

__all__ = ["examination_lines", "explanation_lines", "known_error_lines", "update_lines"]

_STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}
_MARKS = {"ok": "✔", "warning": "▲", "failure": "✘"}
_ASCII_MARKS = {"ok": "+", "warning": "!", "failure": "X"}
_MARK_WIDTH = 2
_WIDEST_CHECK = 24


def examination_lines(examination: Examination, width: int | None, has_unicode: bool) -> Iterator[Text]:
    """Yield findings by group, and the verdict."""
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
    yield from block(prefix, Text(finding.what, style="" if is_ok else style), width)
    if is_ok and not finding.fix:
        return
    indent = " " * prefix.cell_len
    for label, text in (("cause", finding.cause), ("fix", finding.fix), ("seen", finding.evidence)):
        if text:
            yield from field(indent, label, text, width)


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


def explanation_lines(found: Explanation, width: int | None) -> Iterator[Text]:
    """Yield cause and fix of a text, or what to do where nobody knows it."""
    if found.best is None:
        yield Text("nothing in this text is known to the doctor", style="bold yellow")
        if found.last_error:
            yield from field("  ", "seen", found.last_error, width)
        yield from field("  ", "next", "detronome doctor --json > environment.json", None)
        yield from block(
            Text(f"{'':{LABEL_WIDTH + 2}}"),
            Text("report it with that file, the command, and the text from its first error to its end"),
            width,
        )
        return
    best = found.best
    yield Text(best.name, style="bold red" if not best.is_consequence else "bold yellow")
    yield from _cause_and_fix(best.cause, best.fix, width)
    yield from block(Text(f"  {'seen':<{LABEL_WIDTH}}", style="dim"), Text(_seen(best, found), style="dim"), width)
    if best.is_consequence:
        note = "this follows from something else, which is not in the text: look for an earlier error"
        yield from block(Text(f"  {'note':<{LABEL_WIDTH}}", style="dim"), Text(note, style="yellow"), width)
    if found.others:
        others = [f"{match.name} (line {match.line})" for match in found.others]
        yield from block(Text(f"  {'also':<{LABEL_WIDTH}}", style="dim"), Text(first_few(others), style="dim"), width)


def known_error_lines(symptoms: Sequence[Symptom], width: int | None) -> Iterator[Text]:
    """Yield all errors that are known, with cause and fix."""
    for symptom in symptoms:
        yield Text(symptom.name, style="bold yellow" if symptom.is_consequence else "bold red")
        yield from _cause_and_fix(symptom.cause, symptom.fix, width)
        yield Text()
    yield Text(f"{len(symptoms)} errors are known; what stands in {{}} is read from the text", style="dim")


def _cause_and_fix(cause: str, fix: Sequence[str], width: int | None) -> Iterator[Text]:
    yield from block(Text(f"  {'cause':<{LABEL_WIDTH}}", style="dim"), Text(cause), width)
    for place, step in enumerate(fix):
        yield Text.assemble((f"  {'fix' if place == 0 else '':<{LABEL_WIDTH}}", "dim"), command(step))


def _seen(match: Match, found: Explanation) -> str:
    return match.text if found.num_lines == 1 else f"line {match.line} of {found.num_lines:,}: {match.text}"


def update_lines(found: Updates, width: int | None, has_unicode: bool) -> Iterator[Text]:
    """Yield what is behind, what holds it back, and the commands."""
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
        yield Text.assemble((f"{'all' if place == 0 else '':<{LABEL_WIDTH}}", "dim"), command(fix))
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
    yield from block(prefix, Text(rise), width)
    indent = " " * prefix.cell_len
    for hole in update.holes:
        yield from field(indent, "hole", hole, width)
    for holder in update.held_by:
        yield from field(indent, "held", holder, width)
    if update.fix and update.holes:
        yield from field(indent, "fix", update.fix, width)
