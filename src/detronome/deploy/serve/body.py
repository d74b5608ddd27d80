"""The body of a request: read within its bounds, and the image in it. No header is trusted with more than a refusal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from detronome.deploy.serve.limits import RefusedError

__all__ = ["Receive", "UploadBudget", "image_in_body", "read_body"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_IMAGE_FIELDS = ("image", "file")
_MAX_PARTS = 16
_DISCONNECTED = 499
"""What is counted for a client that went away; nobody receives it."""


class UploadBudget:
    """How many bytes of bodies, of requests and of answers, may be held at one moment."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.held_bytes = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Give one request a function that takes so many bytes more; at the end all that it took is given back.

        The function raises a `RefusedError`, 503, where it would be too much.
        """
        taken = 0

        def take(size_bytes: int) -> None:
            nonlocal taken
            # One body alone is never too much: its own limit has let it in.
            if self.held_bytes > taken and self.held_bytes + size_bytes > self._most_bytes:
                raise RefusedError(503, "uploads", "too many large bodies at once", fix="try again", retry_after_s=1)
            self.held_bytes += size_bytes
            taken += size_bytes

        try:
            yield take
        finally:
            self.held_bytes -= taken


async def read_body(
    receive: Receive, headers: Mapping[str, str], *, max_bytes: int, deadline: float, take: Callable[[int], None]
) -> bytes:
    """Return the whole body.

    Args:
        receive: gives the ASGI messages of the request.
        headers: of the request, names in lower case.
        max_bytes: longer bodies are refused: at once where the header says it, else when they get there.
        deadline: on the monotonic clock; a slower client is refused.
        take: is told of each piece, and may refuse it: a share of an `UploadBudget`.

    Raises:
        RefusedError: 413 too long, 408 too slow, 503 too many at once.
    """
    declared = headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > max_bytes):
        raise _too_long(max_bytes)
    chunks: list[bytes] = []
    size_bytes = 0
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError(_DISCONNECTED, "disconnected", "the client went away")
                chunk = message.get("body", b"")
                size_bytes += len(chunk)
                if size_bytes > max_bytes:
                    raise _too_long(max_bytes)
                take(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError as error:
        raise RefusedError(
            408, "slow_upload", "the body did not arrive in time", fix="send it faster, or ask for more time"
        ) from error


def _too_long(max_bytes: int) -> RefusedError:
    return RefusedError(
        413, "too_large", f"the body has more than the limit of {max_bytes:,} bytes", fix="send a smaller file"
    )


def image_in_body(body: bytes, content_type: str) -> bytes:
    """Return the image file in a body: all of it, or the field `image` or `file` of a form.

    What kind of image it is, its bytes say.

    Raises:
        RefusedError: 415 for a type that is no image and no form, 400 for a form without an image.
    """
    kind, _, parameters = content_type.partition(";")
    kind = kind.strip().lower()
    if kind == "multipart/form-data":
        return _image_in_form(body, parameters)
    if kind in ("", "application/octet-stream") or kind.startswith("image/"):
        return body
    raise RefusedError(
        415,
        "content_type",
        f"the content type {kind[:60]!r} is no image",
        fix="send the file with Content-Type: image/jpeg (or image/png, ...), or as multipart/form-data",
    )


def _image_in_form(body: bytes, parameters: str) -> bytes:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header

    _, options = parse_options_header(f"multipart/form-data;{parameters}")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise RefusedError(400, "bad_form", "the form has no valid boundary", fix="let the HTTP library write it")
    form = _Form()
    try:
        form.parse(body, boundary)
    except (FormParserError, ValueError) as error:
        raise RefusedError(400, "bad_form", f"the form cannot be read: {error}", fix="send a sound form") from error
    for name in _IMAGE_FIELDS:
        if name in form.fields:
            return form.fields[name]
    found = ", ".join(repr(name[:40]) for name in form.fields) or "none"
    raise RefusedError(400, "bad_form", f"the form has no field 'image'; its fields: {found}", fix="name it 'image'")


class _Form:
    """The fields of a form that is wholly in memory; of fields with one name, the first."""

    def __init__(self) -> None:
        self.fields: dict[str, bytes] = {}
        self._header_name = self._header_value = b""
        self._name: str | None = None
        self._chunks: list[bytes] = []
        self._num_parts = 0
        self._has_ended = False

    def parse(self, body: bytes, boundary: bytes) -> None:
        from python_multipart.multipart import MultipartParser

        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_name,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_part_data": self._add_data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )
        parser.write(body)
        parser.finalize()
        if not self._has_ended:
            raise ValueError("it is cut short")

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise ValueError(f"it has more than {_MAX_PARTS} fields")
        self._name, self._chunks = None, []

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        from python_multipart.multipart import parse_options_header

        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(self._header_value)
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._header_name = self._header_value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def _end(self) -> None:
        if self._name is not None:
            self.fields.setdefault(self._name, b"".join(self._chunks))

    def _finish(self) -> None:
        self._has_ended = True
