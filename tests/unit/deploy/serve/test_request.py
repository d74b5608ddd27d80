from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.deploy.serve.limits import Limits, RefusedError
from detronome.deploy.serve.request import parse_request
from detronome.errors import ConfigError

LIMITS = Limits(timeout_s=8)


def test_nothing_asked_gives_the_defaults() -> None:
    asked = parse_request([], "", LIMITS)
    assert (asked.score, asked.max_detections, asked.form, asked.timeout_s) == (0.5, None, "json", 8)


def test_what_is_asked_is_read() -> None:
    query = [("score", "0.25"), ("max_detections", "7"), ("format", "png"), ("timeout", "1.5")]
    asked = parse_request(query, "application/json", LIMITS)
    assert (asked.score, asked.max_detections, asked.form, asked.timeout_s) == (0.25, 7, "png", 1.5)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "json"),
        ("image/png", "png"),
        ("image/*", "jpeg"),
        ("text/html, image/jpeg;q=0.5, image/png; q=0.9", "png"),
        ("application/json;q=0.2, image/jpeg", "jpeg"),
        ("image/png;q=0", "json"),
        ("text/html", "json"),
        ("image/png;q=cat, ;;,", "json"),
    ],
)
def test_accept_chooses_the_form(accept: str, form: str) -> None:
    assert parse_request([], accept, LIMITS).form == form


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ([("score", "1.1")], ["score"]),
        ([("score", "nan")], ["score"]),
        ([("score", "")], ["score"]),
        ([("max_detections", "0")], ["max_detections"]),
        ([("max_detections", "-3"), ("timeout", "9")], ["max_detections", "timeout", "8"]),
        ([("max_detections", "9" * 5000)], ["max_detections"]),
        ([("timeout", "0")], ["timeout"]),
        ([("format", "gif")], ["jpeg"]),
        ([("scor", "1")], ["'scor'", "'score'"]),
        ([("score", "1"), ("score", "0")], ["twice"]),
        ([("x", "1")] * 10_000, ["too many"]),
    ],
)
def test_all_that_is_wrong_is_told(query: list[tuple[str, str]], words: list[str]) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_request(query, "", LIMITS)
    assert caught.value.status == 400
    assert all(word in caught.value.what for word in words)


@given(
    st.lists(st.tuples(st.sampled_from(["score", "max_detections", "format", "timeout", "x"]), st.text(max_size=9))),
    st.text(max_size=50),
)
def test_any_text_is_read_or_refused(query: list[tuple[str, str]], accept: str) -> None:
    try:
        asked = parse_request(query, accept, LIMITS)
    except RefusedError as error:
        assert error.status == 400
    else:
        assert 0 <= asked.score <= 1 and 0 < asked.timeout_s <= 8


def test_limits_are_above_nothing() -> None:
    with pytest.raises(ConfigError, match=r"(?s)max_batch.*max_pixels.*grace_s"):
        Limits(max_batch=0, max_pixels=-1, grace_s=-1)
    with pytest.raises(ConfigError, match=r"(?s)timeout_s.*nan.*max_delay_s.*inf"):
        Limits(timeout_s=math.nan, max_delay_s=math.inf)
