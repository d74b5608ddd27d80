from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.deploy.serve.body import UploadBudget, image_in_body, read_body
from detronome.deploy.serve.limits import RefusedError


def read(
    chunks: list[bytes | float | None],
    *,
    headers: dict[str, str] | None = None,
    max_bytes: int = 100,
    seconds: float = 5,
    budget: UploadBudget | None = None,
) -> bytes:
    """Read a body in chunks; a number waits, None is the client's going away."""
    left = list(chunks)

    async def receive() -> MutableMapping[str, Any]:
        while left:
            chunk = left.pop(0)
            if isinstance(chunk, float):
                await asyncio.sleep(chunk)
            elif chunk is None:
                return {"type": "http.disconnect"}
            else:
                return {"type": "http.request", "body": chunk, "more_body": bool(left)}
        return {"type": "http.request", "body": b"", "more_body": False}

    deadline = time.monotonic() + seconds
    budget = budget or UploadBudget(10**6)
    before_bytes = budget.held_bytes
    with budget.share() as take:
        body = asyncio.run(read_body(receive, headers or {}, max_bytes=max_bytes, deadline=deadline, take=take))
        assert budget.held_bytes - before_bytes == len(body)
    return body


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(0, 100))
def test_a_body_is_read_whole_or_refused(chunks: list[bytes], max_bytes: int) -> None:
    whole = b"".join(chunks)
    budget = UploadBudget(10**6)
    if len(whole) <= max_bytes:
        assert read([*chunks], max_bytes=max_bytes, budget=budget) == whole
    else:
        with pytest.raises(RefusedError) as caught:
            read([*chunks], max_bytes=max_bytes, budget=budget)
        assert caught.value.status == 413
    assert budget.held_bytes == 0


@pytest.mark.parametrize("length", ["101", "9" * 30])
def test_a_long_body_is_refused_before_it_comes(length: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read([60.0, b"x"], headers={"content-length": length})
    assert caught.value.status == 413


@pytest.mark.parametrize("length", ["", "-1", "1e3", "٣", "0"])
def test_a_wrong_length_is_not_trusted(length: str) -> None:
    assert read([b"12"], headers={"content-length": length}) == b"12"
    with pytest.raises(RefusedError):
        read([b"x" * 60, b"x" * 60], headers={"content-length": length})


def test_a_slow_client_is_told_and_one_that_left_is_not_waited_for() -> None:
    budget = UploadBudget(1000)
    with pytest.raises(RefusedError) as caught:
        read([b"x", 30.0], seconds=0.05, budget=budget)
    assert caught.value.status == 408
    with pytest.raises(RefusedError) as caught:
        read([b"x", None], budget=budget)
    assert caught.value.status == 499
    assert budget.held_bytes == 0


def test_all_bodies_together_have_a_limit() -> None:
    budget = UploadBudget(100)
    with budget.share() as take:
        take(60)
        with pytest.raises(RefusedError) as caught:
            read([b"x" * 30, b"x" * 30], budget=budget)
        assert caught.value.status == 503 and caught.value.retry_after_s
        assert budget.held_bytes == 60
    assert budget.held_bytes == 0


def test_one_body_alone_is_never_too_much_for_all() -> None:
    budget = UploadBudget(100)
    assert len(read([b"x" * 80, b"x" * 80], max_bytes=200, budget=budget)) == 160
    assert budget.held_bytes == 0


def form(*fields: tuple[str, bytes], boundary: str = "xyz") -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a/../b.jpg"\r\n\r\n'.encode()
        + value
        + b"\r\n"
        for name, value in fields
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


@given(st.binary(max_size=300), st.sampled_from(["image", "file"]))
def test_the_image_of_a_form_is_found(content: bytes, name: str) -> None:
    body = form(("note", b"hi"), (name, content), boundary="0123456789abcdef")
    assert image_in_body(body, 'Multipart/Form-Data; charset=x; boundary="0123456789abcdef"') == content


@pytest.mark.parametrize("content_type", ["", "image/jpeg", "IMAGE/x-strange", "application/octet-stream; a=b"])
def test_a_raw_body_is_the_image(content_type: str) -> None:
    assert image_in_body(b"123", content_type) == b"123"


@pytest.mark.parametrize(
    ("body", "content_type", "status", "word"),
    [
        (b"123", "text/plain", 415, "text/plain"),
        (b"123", "application/x-www-form-urlencoded", 415, "urlencoded"),
        (b"", "multipart/form-data", 400, "boundary"),
        (b"", "multipart/form-data; boundary=" + "x" * 100, 400, "boundary"),
        (b"", "multipart/form-data; boundary=xyz", 400, "cut short"),
        (form(("image", b"123"))[:-10], "multipart/form-data; boundary=xyz", 400, "cut short"),
        (b"noise", "multipart/form-data; boundary=xyz", 400, "cannot be read"),
        (form(("picture", b"123")), "multipart/form-data; boundary=xyz", 400, "'picture'"),
        (form(*[("note", b"")] * 50), "multipart/form-data; boundary=xyz", 400, "more than 16"),
    ],
)
def test_other_bodies_are_refused(body: bytes, content_type: str, status: int, word: str) -> None:
    with pytest.raises(RefusedError) as caught:
        image_in_body(body, content_type)
    assert caught.value.status == status
    assert word in caught.value.what


@given(st.binary(max_size=200), st.binary(max_size=30))
def test_noise_in_forms_is_refused_with_4xx(noise: bytes, boundary: bytes) -> None:
    body = b"--b\r\nContent-Disposition: form-data; name=image" + noise
    for content_type in ("multipart/form-data; boundary=b", f"multipart/form-data; {boundary.decode('latin-1')}"):
        try:
            image_in_body(body, content_type)
        except RefusedError as error:
            assert 400 <= error.status < 500
