"""Judging a server's answer before its bytes are believed: status, range, size, version, kind of content.

Nothing here does input or output, so every way in which a server can be wrong is one call in a test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from detronome.data.download.byte_ranges import ByteRange
from detronome.data.download.part_file import Validator

__all__ = [
    "Answer",
    "RefusedError",
    "TransferError",
    "WrongAnswerError",
    "is_web_page",
    "judge_answer",
    "retry_after_s",
]

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)")
_NUMBER = re.compile(r"\s*([0-9]{1,18})\s*")
_WEB_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body")
_TRANSIENT = {408, 425, 429}


class TransferError(Exception):
    """Trouble on the way that may pass: the request is made again after a pause.

    Args:
        reason: what happened, as a clause.
        wait_s: the pause that the server asks for.
    """

    def __init__(self, reason: str, *, wait_s: float | None = None) -> None:
        self.reason = reason
        self.wait_s = wait_s
        super().__init__(reason)


class WrongAnswerError(TransferError):
    """The server answered, but not what was asked: trying again rarely helps, so it is done a few times only."""


class RefusedError(Exception):
    """The server will not give the file, whatever we do.

    Args:
        reason: what it said, as a clause.
        fix: what the user can do.
    """

    def __init__(self, reason: str, *, fix: str = "") -> None:
        self.reason = reason
        self.fix = fix
        super().__init__(reason)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A believable answer: which bytes follow, and of which version of the file."""

    start: int
    end: int
    is_whole: bool
    """The server sends the whole file, asked for or not."""
    validator: Validator


def judge_answer(
    status: int, headers: Mapping[str, str], *, asked: ByteRange | None, size_bytes: int, now: datetime | None = None
) -> Answer:
    """Return what the body of a response holds.

    Args:
        status: of the last response, redirects followed.
        headers: with lower-case names, or a mapping that ignores case.
        asked: the range asked for; None when the whole file was.
        size_bytes: of the whole file, known beforehand.
        now: the time, for a `Retry-After` that is a date.

    Raises:
        TransferError: an error that may pass.
        WrongAnswerError: a web page, another range, another size.
        RefusedError: an error that will not pass.
    """
    if status in _TRANSIENT or status >= 500:
        raise TransferError(f"the server answered {status}", wait_s=retry_after_s(headers.get("retry-after"), now))
    if status == 416:
        raise WrongAnswerError("the server says that the file has no such bytes (416)")
    if status not in (200, 206):
        raise RefusedError(f"the server answered {status}", fix=_advice(status))
    if headers.get("content-type", "").partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml"):
        raise WrongAnswerError("the server sent a web page instead of the file")
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise WrongAnswerError(f"the server sent the file encoded as {headers['content-encoding']!r}")
    validator = Validator(etag=headers.get("etag"), last_modified=headers.get("last-modified"))
    if status == 200:
        _check_length(headers, size_bytes)
        return Answer(start=0, end=size_bytes, is_whole=True, validator=validator)
    if asked is None:
        raise WrongAnswerError("the server sent a part of the file when asked for the whole")
    start, end = _content_range(headers, asked, size_bytes)
    _check_length(headers, end - start)
    return Answer(start=start, end=end, is_whole=False, validator=validator)


def is_web_page(first_bytes: bytes) -> bool:
    """Return whether a body begins as HTML does."""
    return first_bytes[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGE_STARTS)


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a `Retry-After` header asks to wait: a number or a date; None if it says nothing."""
    if value is None:
        return None
    if (number := _NUMBER.fullmatch(value)) is not None:
        return float(number[1])
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - (now or datetime.now(UTC))).total_seconds(), 0.0)


def _content_range(headers: Mapping[str, str], asked: ByteRange, size_bytes: int) -> ByteRange:
    value = headers.get("content-range", "")
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None or match[1] is None:
        raise WrongAnswerError(f"the server sent a part without saying which (Content-Range {value!r})")
    start, end = int(match[1]), int(match[2]) + 1
    if match[3] != "*" and int(match[3]) != size_bytes:
        raise WrongAnswerError(f"the file on the server has {int(match[3]):,} bytes, not {size_bytes:,}")
    if start != asked[0] or not start < end <= asked[1]:
        raise WrongAnswerError(f"the server sent bytes {start}-{end - 1} when asked for {asked[0]}-{asked[1] - 1}")
    return start, end


def _check_length(headers: Mapping[str, str], expected: int) -> None:
    number = _NUMBER.fullmatch(headers.get("content-length", ""))
    if number is not None and int(number[1]) != expected:
        raise WrongAnswerError(f"the server announced {int(number[1]):,} bytes where {expected:,} should come")


def _advice(status: int) -> str:
    if status in (401, 403, 407):
        return "it wants a permission: look at proxy and network, or use a mirror"
    if status in (404, 410):
        return "the file is not there: check the address, or use another mirror"
    return "check the address, or use a mirror"
