"""A load on an HTTP server that costs the client little, because both share the machine: raw sockets, requests made
beforehand, connections kept open, answers read no further than their length."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

__all__ = ["Answer", "Client", "closed_loop", "open_loop", "post"]


IDLE_S = 2.0


@dataclass(frozen=True)
class Answer:
    """What became of one request."""

    index: int
    """Which request it was."""
    status: int
    """0: no answer, the connection was lost."""
    seconds: float
    """From the first byte sent to the last received."""
    ended: float
    """On the monotonic clock."""
    retry_after: bool
    body: bytes
    late: float = 0.0
    """How much later than planned it was sent: the client's own trouble."""


def post(path: str, body: bytes, *, content_type: str = "image/jpeg") -> bytes:
    """Return a request's bytes."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Client:
    """Keeps connections open and uses them again, newest first."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, request: bytes, index: int) -> Answer:
        """Send one request and return its answer."""
        started = time.monotonic()
        status, retry_after, body, writer = 0, False, b"", None
        try:
            reader, writer = self._open() or await asyncio.open_connection(*self._address)
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            body = await reader.readexactly(length)
            status, retry_after = int(head[9:12]), b"\r\nretry-after:" in head
            if b"\r\nconnection: close" in head:
                writer.close()
            else:
                self._idle.append((time.monotonic(), reader, writer))
        except (OSError, asyncio.IncompleteReadError, ValueError):
            if writer is not None:
                writer.close()
        ended = time.monotonic()
        return Answer(index, status, ended - started, ended, retry_after, body)

    def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Return a connection that was used a moment ago; servers close older ones."""
        if self._idle and self._idle[-1][0] < time.monotonic() - IDLE_S:
            self.close()
        while self._idle:
            _, reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        """Close the connections that are not in use."""
        for _, _, writer in self._idle:
            writer.close()
        self._idle.clear()


async def closed_loop(
    client: Client, requests: Sequence[bytes], *, connections: int, until: Callable[[int], bool]
) -> list[Answer]:
    """Send requests in turn on some connections, each when its last one is answered.

    Args:
        client: sends.
        requests: in turn, again and again.
        connections: at once.
        until: told how many were begun; True ends the load.
    """
    answers: list[Answer] = []
    begun = 0

    async def work() -> None:
        nonlocal begun
        while not until(begun):
            index = begun % len(requests)
            begun += 1
            answers.append(await client.send(requests[index], index))

    await asyncio.gather(*(work() for _ in range(connections)))
    return answers


async def open_loop(client: Client, requests: Sequence[bytes], *, rate: float, seconds: float) -> list[Answer]:
    """Send requests at even times, whether or not the earlier ones are answered."""

    async def send(index: int, planned: float) -> Answer:
        late = time.monotonic() - planned
        return replace(await client.send(requests[index], index), late=late)

    tasks: list[asyncio.Task[Answer]] = []
    with _garbage_kept():
        started = time.monotonic()
        for number in range(round(rate * seconds)):
            wait_s = started + number / rate - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            index = number % len(requests)
            tasks.append(asyncio.create_task(send(index, started + number / rate)))
        return list(await asyncio.gather(*tasks))


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collect no garbage: to look through all its answers stops the client for 0.1 s, and they would seem late."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
