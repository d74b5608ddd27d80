"""What the data doctor found, for the terminal: worst first, each with its first cases, effect and fix.

In a pipe every field is one line, so that it can be searched; on a terminal lines are broken at its width.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from detronome.data.check.findings import Change, CheckReport, Finding, FixedFile, Severity
from detronome.report.formats import clean_text, format_duration

__all__ = ["print_check"]

_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_SHOWN_CHANGES = 10
_INDENT = 9
_LABEL = 8
_NARROWEST = 20
"""Columns of text beside what is indented; on narrower terminals lines are broken by the terminal."""
_MEASURE = Console()


def print_check(report: CheckReport, console: Console | None = None) -> None:
    """Print a report to stdout: what was checked, the findings by severity, repaired copies, the verdict."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    width = console.width if console.is_terminal else None
    for line in _lines(report, width):
        console.print(line, soft_wrap=True)


def _lines(report: CheckReport, width: int | None) -> Iterator[Text]:
    yield from _header(report, width)
    for severity in _SEVERITIES:
        findings = [finding for finding in report.findings if finding.severity == severity]
        if findings:
            yield Text()
            yield Text(_noun(f"{severity}s", len(findings)), style=_STYLES[severity])
            for finding in findings:
                yield from _finding(finding, report.data, width)
    for copy in report.fixed:
        yield Text()
        yield from _fixed(copy, width)
    yield Text()
    yield from _block(Text(), _verdict(report), width)


def _header(report: CheckReport, width: int | None) -> Iterator[Text]:
    counts = ", ".join(f"{count:,} {_noun(noun, count)}" for noun, count in report.checked.items() if count)
    yield from _block(Text(), Text(clean_text(report.data), style="bold"), width)
    yield from _block(Text(), Text(f"{counts or 'nothing'} checked in {_duration(report.seconds)}"), width)


def _finding(finding: Finding, data: str, width: int | None) -> Iterator[Text]:
    prefix = Text(f"{finding.count:>{_INDENT - 2},}  ", style=_STYLES[finding.severity])
    body = Text(clean_text(finding.what), style="bold").append(f"  {finding.code}", style="dim not bold")
    yield from _block(prefix, body, width)
    hidden = finding.count - len(finding.cases)
    cases = "; ".join(clean_text(case) for case in finding.cases) + (f"; and {hidden:,} more" if hidden > 0 else "")
    place = finding.where.removeprefix(data).lstrip("/")
    fields = {"in": place, "which": cases if finding.cases else "", "effect": finding.effect, "fix": finding.fix}
    for label, text in fields.items():
        if text:
            prefix = Text(f"{'':{_INDENT}}{label:<{_LABEL}}", style="dim")
            yield from _block(prefix, Text(clean_text(text)), width)


def _fixed(copy: FixedFile, width: int | None) -> Iterator[Text]:
    yield from _block(Text("repaired copy  ", style="bold green"), Text(clean_text(copy.path)), width)
    for change in copy.changes:
        yield from _block(Text(f"{change.count:>{_INDENT - 2},}  ", style="green"), Text(_change(change)), width)
    if not copy.changes:
        yield Text(f"{'':{_INDENT}}nothing had to be changed")
    if copy.left:
        left = f"{copy.left} {_noun('errors', copy.left)} left that only you can decide: check the copy to see which"
        yield from _block(Text(" " * _INDENT), Text(left, style="yellow"), width)


def _change(change: Change) -> str:
    hidden = change.count - _SHOWN_CHANGES
    shown = ", ".join(clean_text(case) for case in change.cases[:_SHOWN_CHANGES])
    return f"{change.what}: {shown}" + (f" and {hidden:,} more (--json names all)" if hidden > 0 else "")


def _verdict(report: CheckReport) -> Text:
    counts = {severity: sum(f.severity == severity for f in report.findings) for severity in _SEVERITIES}
    told = ", ".join(f"{count} {_noun(f'{severity}s', count)}" for severity, count in counts.items() if count)
    if not told:
        return Text("clean: nothing was found", style="bold green")
    verdicts = {
        "error": "this data stops training, or teaches it something wrong",
        "warning": "this data can be trained on; something of it is lost",
        "note": "this data is sound",
    }
    worst = report.worst or "note"
    verdict = Text(f"{told}: {verdicts[worst]}", style="bold green" if worst == "note" else _STYLES[worst])
    fixable = sum(finding.is_fixable for finding in report.findings)
    if fixable and not report.fixed:
        verdict.append(f"; --fix OUT writes a copy in which {fixable} {_are(fixable)} repaired", style="not bold")
    return verdict


def _block(prefix: Text, body: Text, width: int | None) -> Iterator[Text]:
    """Yield prefix and body as one line, or as lines of the width with the body's beginnings under each other."""
    if width is None:
        yield Text.assemble(prefix, body)
        return
    for place, line in enumerate(body.wrap(_MEASURE, max(_NARROWEST, width - prefix.cell_len))):
        line.rstrip()
        yield Text.assemble(prefix if place == 0 else " " * prefix.cell_len, line)


def _noun(plural: str, count: int) -> str:
    return plural.removesuffix("s") if count == 1 else plural


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(seconds)
