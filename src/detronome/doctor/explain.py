"""From a pasted text to its cause: the earliest symptom that is not a mere consequence of another one."""

from __future__ import annotations

import re
import shlex
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from detronome.doctor.modules import package_for
from detronome.doctor.symptoms import SYMPTOMS, Symptom

__all__ = ["Explanation", "Match", "explain_error"]

_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_LOOKALIKES = str.maketrans({"\u00a0": " ", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\ufeff": None})
"""What web pages and word processors put in place of plain characters."""
_PLACE = re.compile(r"\{(\w+)\}")
_LONGEST_LINE = 200
_NARROWEST, _WIDEST = 40, 300
"""Columns of a terminal that may have broken lines."""
_SAME_ERROR_LINES = 12
"""So many lines after a general symptom belong to the same error."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A symptom that was found in a text."""

    name: str
    cause: str
    fix: Sequence[str]
    line: int
    """Of the text as it was given, from 1."""
    text: str
    """The line."""
    is_consequence: bool


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a text says: the cause, and what else was recognised in it."""

    num_lines: int
    best: Match | None
    others: Sequence[Match]
    last_error: str
    """The last line that looks like an error, for a text that nobody knows."""

    def to_record(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def explain_error(text: str) -> Explanation:
    """Return the cause of the errors in a text: a message, a traceback, a whole log of several ranks.

    Causes come before their consequences, so the earliest symptom counts; those that always follow from something else
    count only where there is nothing else.
    """
    lines = [_plain(line) for line in text.split("\n")]
    found: list[tuple[Symptom, Match]] = []
    for pieces in _readings(lines):
        found = _find(pieces)
        if found:
            break
    matches = [match for _, match in sorted(found, key=lambda pair: _rank(pair[0], pair[1], found))]
    return Explanation(
        num_lines=max((number for number, line in enumerate(lines, start=1) if line.strip()), default=0),
        best=matches[0] if matches else None,
        others=matches[1:],
        last_error=_last_error("\n".join(lines).split("\n")),
    )


def _plain(line: str) -> str:
    """Return a line without colours and lookalikes; what a carriage return begins anew is a line within it."""
    return _CONTROL.sub("", line.removesuffix("\r").replace("\r", "\n").translate(_LOOKALIKES))


def _readings(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield what is read of each line: it itself; a log of JSON that is read; what a terminal has broken, joined."""
    yield [f"{line}\n" for line in lines]
    if any("\\n" in line or '\\"' in line for line in lines):
        yield [line.replace("\\n", "\n").replace('\\"', '"') + "\n" for line in lines]
    width = max(len(part) for line in lines for part in line.split("\n"))
    if _NARROWEST <= width <= _WIDEST:
        yield ["".join(part if len(part) == width else f"{part}\n" for part in line.split("\n")) for line in lines]


def _find(pieces: Sequence[str]) -> list[tuple[Symptom, Match]]:
    """Return the first hit of each symptom in what is read of each line."""
    text = "".join(pieces)
    starts = [0, *accumulate(map(len, pieces))][:-1]
    taken: list[tuple[int, int]] = []
    found: list[tuple[Symptom, Match]] = []
    for symptom in SYMPTOMS:
        for hit in symptom.pattern.finditer(text):
            # A general symptom does not repeat what a special one, which comes before it, has said of the same words.
            if any(begin < hit.end() and hit.start() < end for begin, end in taken):
                continue
            taken.append(hit.span())
            found.append((symptom, _match(symptom, hit, text, starts)))
            break
    return found


def _rank(symptom: Symptom, match: Match, found: Sequence[tuple[Symptom, Match]]) -> tuple[bool, bool, int]:
    """Return what matches are sorted by: a general one stands back where the next lines say more."""
    is_specified = symptom.is_general and any(
        not (other.is_general or other.is_consequence) and 0 <= its.line - match.line <= _SAME_ERROR_LINES
        for other, its in found
    )
    return symptom.is_consequence, is_specified, match.line


def _match(symptom: Symptom, hit: re.Match[str], text: str, starts: Sequence[int]) -> Match:
    groups = {key: value for key, value in hit.groupdict().items() if value}
    at = hit.start("at") if "at" in groups else hit.start()
    end = text.find("\n", at)
    name = next((value for key, value in groups.items() if key != "at"), "")
    words = {**groups, "name": name, "package": package_for(name) or name.split(".")[0]}
    # Whoever wrote the log wrote these words: in a command to paste they are words, and no commands.
    quoted = {key: shlex.quote(value) for key, value in words.items()}
    return Match(
        name=symptom.name,
        cause=_fill(symptom.cause, words),
        fix=[_fill(step, words if step.startswith("#") else quoted) for step in symptom.fix],
        line=bisect_right(starts, at),
        text=_cut(text[text.rfind("\n", 0, at) + 1 : end if end >= 0 else None].strip(), hit[0]),
        is_consequence=symptom.is_consequence,
    )


def _fill(text: str, words: dict[str, str]) -> str:
    return _PLACE.sub(lambda place: words.get(place[1], place[0]), text)


def _cut(line: str, found: str) -> str:
    """Return a line, of a long one the part around what was found."""
    if len(line) <= _LONGEST_LINE:
        return line
    begin = max(0, line.find(found) - 40)
    part = line[begin : begin + _LONGEST_LINE]
    return ("... " if begin else "") + part + (" ..." if begin + _LONGEST_LINE < len(line) else "")


_ERROR_LINE = re.compile(
    r"^\s*(?:\[?\w*rank\d+\]?:\s*)?(?:[\w.]+(?:Error|Exception|Interrupt|Exit)\b.*|(?:error|fatal)\b.*)", re.IGNORECASE
)


def _last_error(lines: Sequence[str]) -> str:
    words = [line.strip() for line in lines if line.strip() and "\ufffd" not in line]  # no binary junk
    named = next((line for line in reversed(words) if _ERROR_LINE.match(line)), "")
    line = named or next(reversed(words), "")
    return _cut(line, line)
