"""Every way in which an answer can be wrong, one by one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from detronome.data.download.answers import (
    RefusedError,
    TransferError,
    WrongAnswerError,
    is_web_page,
    judge_answer,
    retry_after_s,
)
from detronome.data.download.part_file import Validator

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
PART = {"content-range": "bytes 10-19/100", "content-length": "10", "etag": '"a"'}


def test_a_right_answer_says_which_bytes_follow() -> None:
    part = judge_answer(206, PART, asked=(10, 20), size_bytes=100)
    assert (part.start, part.end, part.is_whole, part.validator) == (10, 20, False, Validator(etag='"a"'))
    whole = judge_answer(200, {}, asked=(10, 20), size_bytes=100)
    assert (whole.start, whole.end, whole.is_whole, whole.validator) == (0, 100, True, Validator())


@pytest.mark.parametrize("value", ["bytes 10-19/*", "bytes 10-14/100", " bytes 10-10/100 "])
def test_a_part_may_be_shorter_and_the_total_unknown(value: str) -> None:
    answer = judge_answer(206, {"content-range": value}, asked=(10, 20), size_bytes=100)
    assert answer.start == 10 < answer.end <= 20


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes */100",
        "bytes 9-19/100",
        "bytes 10-20/100",
        "bytes 10-9/100",
        "bytes 0-99/100",
        "bytes 10-19/99",
        "bytes 10-19",
        "items 10-19/100",
        "bytes \u0661\u0660-19/100",
        pytest.param(f"bytes 10-19/{'9' * 5000}", id="huge"),
    ],
)
def test_another_range_is_a_wrong_answer(value: str) -> None:
    with pytest.raises(WrongAnswerError):
        judge_answer(206, {"content-range": value}, asked=(10, 20), size_bytes=100)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {"content-length": "99"}),
        (206, {**PART, "content-length": "11"}),
        (200, {"content-type": "Text/HTML; charset=utf-8"}),
        (206, {**PART, "content-type": "application/xhtml+xml"}),
        (200, {"content-encoding": "gzip"}),
        (416, {}),
    ],
)
def test_what_is_not_the_file_is_a_wrong_answer(status: int, headers: dict[str, str]) -> None:
    with pytest.raises(WrongAnswerError):
        judge_answer(status, headers, asked=(10, 20), size_bytes=100)


def test_a_part_when_asked_for_the_whole_is_a_wrong_answer() -> None:
    with pytest.raises(WrongAnswerError):
        judge_answer(206, PART, asked=None, size_bytes=100)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_trouble_that_may_pass_is_not_refused(status: int) -> None:
    with pytest.raises(TransferError, match=str(status)) as caught:
        judge_answer(status, {"retry-after": "7"}, asked=None, size_bytes=1)
    assert caught.value.wait_s == 7
    assert not isinstance(caught.value, WrongAnswerError)


@pytest.mark.parametrize("status", [204, 301, 304, 400, 401, 403, 404, 410, 451])
def test_other_answers_are_refusals_with_advice(status: int) -> None:
    with pytest.raises(RefusedError, match=str(status)) as caught:
        judge_answer(status, {}, asked=None, size_bytes=1)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("0", 0.0),
        (" 120 ", 120.0),
        pytest.param("9" * 5000, None, id="huge"),
        ("Sat, 21 Nov 2026 12:01:30 GMT", 90.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0),
        ("Sat, 21 Nov 2026 12:00:10 -0000", 10.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><p>", b"\xef\xbb\xbf\r\n <HTML lang=en>", b"<head>"])
def test_a_web_page_is_known_by_its_first_bytes(body: bytes) -> None:
    assert is_web_page(body)


@pytest.mark.parametrize("body", [b"", b"PK\x03\x04", b"<?xml version='1.0'?>", b"\xff\xd8"])
def test_other_bytes_are_no_web_page(body: bytes) -> None:
    assert not is_web_page(body)


def test_validators_contradict_only_where_both_speak() -> None:
    weak, strong = Validator(etag='W/"a"'), Validator(etag='"a"', last_modified="x")
    assert not weak.contradicts(strong) and not Validator().contradicts(strong)
    assert strong.contradicts(Validator(etag='"b"', last_modified="x"))
    assert strong.contradicts(Validator(last_modified="y"))
    assert (weak.if_range, strong.if_range, Validator(etag='W/"a"', last_modified="x").if_range) == (None, '"a"', "x")
