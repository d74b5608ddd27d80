"""What the data doctor found, for the terminal: worst first, each with its first cases, effect and fix.

In a pipe every field is one line, so that it can be searched; on a terminal lines are broken at its width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

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
_LONGEST_CASE = 120
_UNSEEN = "image_in_shards"
_NOT_COPIED = ("file_unreadable", "image_changed", "images_not_checked", "not_repaired")
_NARROWEST = 20
"""Columns of text beside what is indented; on narrower terminals lines are broken by the terminal."""
_MEASURE = Console()


def print_check(report: CheckReport, console: Console | None = None, *, all_cases: bool = False) -> None:
    """Print a report to stdout: what was checked, the findings by severity, repaired copies, the verdict.

    Args:
        report: what was found.
        console: where to print; by default stdout.
        all_cases: print every case that the report has, whole, one a line.
    """
    console = console or Console(highlight=False, markup=False, emoji=False)
    width = console.width if console.is_terminal else None
    for line in _lines(report, width, all_cases):
        console.print(line, soft_wrap=True)


def _lines(report: CheckReport, width: int | None, all_cases: bool) -> Iterator[Text]:
    yield from _header(report, width)
    for severity in _SEVERITIES:
        findings = [finding for finding in report.findings if finding.severity == severity]
        if findings:
            yield Text()
            yield Text(_noun(f"{severity}s", len(findings)), style=_STYLES[severity])
            for finding in findings:
                yield from _finding(finding, report.data, width, all_cases)
    for copy in report.fixed:
        yield Text()
        yield from _fixed(copy, width, all_cases)
    yield Text()
    for verdict in _verdicts(report):
        yield from _block(Text(), verdict, width)


def _header(report: CheckReport, width: int | None) -> Iterator[Text]:
    counts = ", ".join(f"{count:,} {_noun(noun, count)}" for noun, count in report.checked.items() if count)
    yield from _block(Text(), Text(clean_text(report.data), style="bold"), width)
    yield from _block(Text(), Text(f"{counts or 'nothing'} checked in {_duration(report.seconds)}"), width)


def _finding(finding: Finding, data: str, width: int | None, all_cases: bool) -> Iterator[Text]:
    prefix = Text(f"{finding.count:>{_INDENT - 2},}  ", style=_STYLES[finding.severity])
    body = Text(clean_text(finding.what), style="bold").append(f"  {finding.code}", style="dim not bold")
    yield from _block(prefix, body, width)
    fields = [
        ("in", _place(finding, data)),
        *_cases(finding, all_cases),
        ("effect", finding.effect),
        ("fix", finding.fix),
    ]
    for label, text in fields:
        if text:
            prefix = Text(f"{'':{_INDENT}}{label:<{_LABEL}}", style="dim")
            yield from _block(prefix, Text(clean_text(text)), width)


def _cases(finding: Finding, all_cases: bool) -> Iterator[tuple[str, str]]:
    if all_cases:
        for i, case in enumerate(finding.cases):
            yield "" if i else "which", case
    elif finding.cases:
        hidden = finding.count - len(finding.cases)
        more = f"; and {hidden:,} more" if hidden > 0 else ""
        yield "which", "; ".join(_cut(clean_text(case)) for case in finding.cases) + more


def _cut(case: str) -> str:
    """Return a case that is too long without its middle."""
    if len(case) <= _LONGEST_CASE:
        return case
    tail = _LONGEST_CASE // 3
    return f"{case[: _LONGEST_CASE - tail - 5]} ... {case[-tail:]}"


def _place(finding: Finding, data: str) -> str:
    """Return the file or folder as it is called within the data folder, and the split where that does not name it."""
    where = PurePath(finding.where)
    place = str(where.relative_to(data)) if where.is_relative_to(data) else finding.where
    place = "" if place == "." else place
    if not finding.split or finding.split in place:
        return place
    return f"{place} (split {finding.split})" if place else f"split {finding.split}"


def _fixed(copy: FixedFile, width: int | None, all_cases: bool) -> Iterator[Text]:
    if not copy.path:
        yield from _block(Text("no copy  ", style="yellow"), Text(clean_text(copy.source)), width)
        yield from _block(Text(" " * _INDENT), Text("nothing in it could be changed, so no copy was written"), width)
    else:
        yield from _block(Text("repaired copy  ", style="bold green"), Text(clean_text(copy.path)), width)
    for change in copy.changes:
        prefix = Text(f"{change.count:>{_INDENT - 2},}  ", style="green")
        yield from _block(prefix, Text(_change(change, all_cases)), width)
    for error in copy.left:
        yield from _block(Text(f"{'':{_INDENT}}left    ", style="red"), Text(clean_text(error)), width)
    if copy.path and not copy.left:
        yield from _block(Text(" " * _INDENT), Text("it was checked again: no error is left", style="green"), width)
    if copy.then:
        yield from _block(Text(f"{'':{_INDENT}}next    ", style="dim"), Text(clean_text(copy.then)), width)


def _change(change: Change, all_cases: bool) -> str:
    most = len(change.cases) if all_cases else _SHOWN_CHANGES
    hidden = change.count - most
    shown = ", ".join(clean_text(case) for case in change.cases[:most])
    return f"{change.what}: {shown}" + (f" and {hidden:,} more (--all names them)" if hidden > 0 else "")


def _verdicts(report: CheckReport) -> Iterator[Text]:
    of_the_original = _verdict(report)
    if any(copy.path for copy in report.fixed):
        of_the_original = Text("as it is: ").append_text(of_the_original)
    yield of_the_original
    if report.fixed:
        yield _verdict_on_copies(report)


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
    unseen = any(finding.code == _UNSEEN for finding in report.findings)
    verdicts |= {"note": "its annotations are sound"} if unseen else {}
    verdict = Text(f"{told}: {verdicts[worst]}", style="bold green" if worst == "note" else _STYLES[worst])
    if unseen:
        verdict.append(f"; its images were not looked at: detronome data shard --verify {report.data}", "not bold")
    fixable = sum(finding.is_fixable for finding in report.findings)
    if fixable and not report.fixed and not any(finding.code == "not_repaired" for finding in report.findings):
        verdict.append(f"; --fix OUT writes a copy in which {fixable} {_are(fixable)} repaired", style="not bold")
    return verdict


def _verdict_on_copies(report: CheckReport) -> Text:
    """Return what can be said of the copies, and of errors that no copy can mend."""
    copies = [copy for copy in report.fixed if copy.path]
    flawed = sum(bool(copy.left) for copy in report.fixed)
    beyond = [finding.code for finding in report.findings if finding.severity == "error" and _is_beyond(finding)]
    what = "the copy" if len(copies) == 1 else f"{len(copies)} copies" if copies else "no copy"
    if not copies:
        verdict = "no copy was written: nothing could be changed"
    elif flawed or beyond:
        verdict = f"with {what}: errors are left that only you can decide"
    else:
        verdict = f"with {what}: no error is left"
    if flawed:
        verdict += f", in {flawed} of {len(report.fixed)} {_noun('files', len(report.fixed))} (see above)"
    if beyond:
        verdict += f"; outside of them: {', '.join(dict.fromkeys(beyond))}"
    is_sound = not flawed and not beyond
    return Text(verdict, style="bold green" if is_sound else "bold red")


def _is_beyond(finding: Finding) -> bool:
    """Return whether an error concerns several files, or one that is not copied."""
    return not finding.split or finding.code in _NOT_COPIED or finding.code.startswith("panoptic_")


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
