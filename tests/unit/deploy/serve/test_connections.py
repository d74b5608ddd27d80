from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from detronome.deploy.serve.connections import protocol_class
from detronome.deploy.serve.server import _listen
from detronome.errors import ConfigError

uvicorn = pytest.importorskip("uvicorn")
IDLE_S = 0.5
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def slow_app(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(3 * IDLE_S)
    status = 503 if scope["state"]["is_surplus"] else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(
        slow_app, http=protocol_class(IDLE_S, max_connections=5), ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    with _listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def closed_after_s(connection: socket.socket) -> float:
    started = time.monotonic()
    try:
        while connection.recv(1000):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - started


@pytest.mark.parametrize("start", [b"", b"GET / HT", REQUEST[:-2]])
def test_a_connection_without_a_whole_head_is_closed(port: int, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(start)
        assert IDLE_S / 2 < closed_after_s(connection) < 10


def test_a_slow_answer_is_waited_for_and_the_connection_serves_on(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for _ in range(2):
            connection.sendall(REQUEST)
            answer = b""
            while not answer.endswith(b"ok"):
                piece = connection.recv(1000)
                assert piece, "closed while it was being answered"
                answer += piece
        assert closed_after_s(connection) < 10


def test_connections_beyond_the_bound_are_known(port: int) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(7)]
        for connection in connections:
            connection.sendall(REQUEST)
        statuses = [connection.recv(12)[-3:] for connection in connections]
    assert statuses[0] == b"200" and statuses[-2:] == [b"503"] * 2


def test_connections_do_not_gather_small_packets() -> None:
    with _listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("no-such-host.invalid", 0), ("203.0.113.7", 0)])
def test_an_address_that_cannot_be_listened_at_is_told(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match="--port"):
        _listen(host, port)
